"""Import a network that nnU-Net v2 trained: `kd-jax import-nnunet RESULT`.

Makes a run whose teacher is that network. evaluate and predict work with it, and train takes it as --teacher-from. The
command needs no PyTorch and runs nothing that a checkpoint names.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.command_line import parse_options, run_command
from data_pipeline.conventions import MODALITIES, Modality
from data_pipeline.errors import InputError
from kd_jax.nnunet.result_files import Kept

_UNDERSTOOD = (
    "Understood: nnU-Net 2.0 to 2.8, 3d_fullres, PlainConvUNet and ResidualEncoderUNet; the classes NCR, ED and ET or "
    "the regions WT, TC and ET; all or some of the modalities t1, t1ce, t2, flair. PyTorch is not needed."
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Import a network that nnU-Net v2 trained for brain tumours, as the teacher of a run.

    The run is there to evaluate the network, to predict with it, or to teach a student (train --teacher-from RUN).
    """

    result: Annotated[
        Path, Parameter(help="nnU-Net's folder TRAINER__PLANS__3d_fullres, the fold_N in it, or a checkpoint_*.pth")
    ] = field(kw_only=False)
    run: Annotated[
        Path | None,
        Parameter(
            metavar="RUN", help="folder to make; by default runs/DATASET_nnunet_foldN, as nnU-Net names the data set"
        ),
    ] = None
    fold: Annotated[str | None, Parameter(metavar="N", help="fold to import if there are several: a number or all")] = (
        None
    )
    checkpoint: Annotated[
        Kept, Parameter(metavar="final|best", show_choices=False, help="that of the last or of the best epoch")
    ] = "final"
    plans: Annotated[Path | None, Parameter(metavar="FILE", help="plans.json, if it is not next to the checkpoint")] = (
        None
    )
    dataset: Annotated[
        Path | None, Parameter(metavar="FILE", help="dataset.json, if it is not next to the checkpoint")
    ] = None
    channels: Annotated[
        tuple[Modality, ...] | None,
        Parameter(
            metavar="MODALITY...",
            show_choices=False,
            help=f"modalities of the network's channels, in order: {', '.join(MODALITIES)}; by default by dataset.json",
        ),
    ] = None
    labels: Annotated[
        str | None,
        Parameter(
            metavar="MAP",
            help='meaning of nnU-Net\'s label values, e.g. "1=NCR,2=ED,3=ET"; by default by the names in dataset.json',
        ),
    ] = None
    orientation: Annotated[
        str | None,
        Parameter(
            metavar="XYZ",
            help="directions of the axes of the training files: three letters, R or L, A or P, S or I; by default LPS, "
            "as BraTS is stored, or RAS where nnU-Net's reader reorients files",
        ),
    ] = None
    any_trainer: Annotated[bool, Parameter(help="accept a trainer that is not known to fit")] = False
    overwrite: Annotated[bool, Parameter(help="replace the run that is there")] = False


def main(arguments: Sequence[str]) -> int:
    """Imports as the command line says."""
    options = parse_options(ImportOptions, arguments, name="kd-jax import-nnunet", epilogue=_UNDERSTOOD)
    # Imported when work begins: --help does not wait for JAX.
    from kd_jax.nnunet.imported import import_config, import_params, read_network
    from kd_jax.nnunet.result_files import find_result
    from kd_jax.nnunet.run import show_import, write_run
    from kd_jax.runs.folder import CONFIG_FILE, check_new_run

    result = find_result(options.result, options.fold, options.checkpoint, options.plans, options.dataset)
    found = read_network(
        result,
        channels=options.channels,
        labels=options.labels,
        orientation=options.orientation,
        any_trainer=options.any_trainer,
    )
    config = import_config(found)
    params = import_params(found, config)
    run = options.run or Path("runs") / f"{Path(found.plan.dataset).name}_nnunet_fold{found.checkpoint.fold}"
    if (run / CONFIG_FILE).exists() and not options.overwrite:
        raise InputError(f"{run}: holds a run; replace it with --overwrite, or give another --run")
    check_new_run(run, overwrite=options.overwrite)
    write_run(run, found, config, params)
    show_import(run, found, config)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
