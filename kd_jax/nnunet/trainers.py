"""The trainers of nnU-Net 2.8 that change the training of a network, but not the network."""

from data_pipeline.errors import InputError

# All of nnunetv2/training/nnUNetTrainer in 2.8.1 that keep nnUNetTrainer's own `build_network_architecture`: the loss,
# schedule, optimiser, augmentation, sampling or batch is another. nnUNetTrainerBN puts batch norm into the network
# and the Primus trainers take a transformer.
_KNOWN = """
nnUNetTrainer nnUNetTrainerNoDeepSupervision nnUNetTrainer_noDummy2DDA nnUNet_Trainer_BS8
nnUNetTrainerBenchmark_5epochs nnUNetTrainerBenchmark_5epochs_noDataLoading
nnUNetTrainerDA5 nnUNetTrainerDA5ord0 nnUNetTrainerDA5Segord0 nnUNetTrainerDA5_10epochs nnUNetTrainerNoDA
nnUNetTrainer_DASegOrd0 nnUNetTrainer_DASegOrd0_NoMirroring nnUNetTrainerNoMirroring nnUNetTrainer_onlyMirror01
nnUNetTrainer_onlyMirror01_1500ep nnUNetTrainer_onlyMirror01_DASegOrd0 nnUNetTrainer_onlyMirror01_DA5
nnUNetTrainer_warmup nnUNetTrainerCosAnneal
nnUNetTrainerAdan nnUNetTrainerAdan1en3 nnUNetTrainerAdan3en4 nnUNetTrainerAdan1en1 nnUNetTrainerAdanCosAnneal
nnUNetTrainerAdam nnUNetTrainerVanillaAdam nnUNetTrainerVanillaAdam1en3 nnUNetTrainerVanillaAdam3en4
nnUNetTrainerAdam1en3 nnUNetTrainerAdam3en4
nnUNetTrainerDiceLoss nnUNetTrainerDiceCELoss_noSmooth nnUNetTrainerTopk10Loss nnUNetTrainerTopk10LossLS01
nnUNetTrainerDiceTopK10Loss nnUNetTrainerCELoss nnUNetTrainerCELoss_5epochs
nnUNetTrainer_probabilisticOversampling nnUNetTrainer_probabilisticOversampling_033
nnUNetTrainer_probabilisticOversampling_010
nnUNetTrainer_1epoch nnUNetTrainer_5epochs nnUNetTrainer_10epochs nnUNetTrainer_20epochs nnUNetTrainer_50epochs
nnUNetTrainer_100epochs nnUNetTrainer_250epochs nnUNetTrainer_500epochs nnUNetTrainer_750epochs
nnUNetTrainer_2000epochs nnUNetTrainer_4000epochs nnUNetTrainer_8000epochs
nnUNetTrainer_250epochs_NoMirroring nnUNetTrainer_2000epochs_NoMirroring nnUNetTrainer_4000epochs_NoMirroring
nnUNetTrainer_8000epochs_NoMirroring
"""
_WITHOUT_DEEP_SUPERVISION = "nnUNetTrainerNoDeepSupervision"


def is_known(trainer: str) -> bool:
    """Whether this trainer trains the network that the plans describe, on nnU-Net's preprocessing."""
    return trainer in _KNOWN.split()


def is_deeply_supervised(trainer: str) -> bool:
    """Whether this trainer supervises every decoder level."""
    return trainer != _WITHOUT_DEEP_SUPERVISION


def check_trainer(trainer: str, source: object) -> None:
    """Raises InputError for a trainer that may have changed the network, its outputs or the preprocessing."""
    if not is_known(trainer):
        raise InputError(
            f"{source}: was trained by {trainer}, which is none of the trainers of nnU-Net 2.8 that keep the network "
            "of the plans, so it may be another; --any-trainer tries anyway (the weights must fit the plans)"
        )
