"""Import a network that nnU-Net v2 trained: `kd-jax import-nnunet RESULT`.

Makes a run whose teacher is that network. evaluate and predict work with it, and train takes it as --teacher-from. The
command needs no PyTorch and runs nothing that a checkpoint names.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from data_pipeline.command_line import run_command
from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.files import folder_atomically, write_atomically
from kd_jax.config.load import dump_config
from kd_jax.config.schema import Config
from kd_jax.nnunet.imported import Found, import_config, import_params, orientation_of, provenance, read_network
from kd_jax.nnunet.result_files import Kept, find_result
from kd_jax.nnunet.weights import Params
from kd_jax.runs.folder import CONFIG_FILE, check_new_run
from kd_jax.runs.store import save_teacher

IMPORT_FILE = "import.json"


def main(arguments: Sequence[str]) -> int:
    """Imports as the command line says."""
    args = _parser().parse_args(arguments)
    result = find_result(args.result, args.fold, args.checkpoint, args.plans, args.dataset)
    found = read_network(
        result,
        channels=args.channels,
        labels=args.labels,
        orientation=args.orientation,
        any_trainer=args.any_trainer,
    )
    config = import_config(found)
    params = import_params(found, config)
    run = args.run or Path("runs") / f"{Path(found.plan.dataset).name}_nnunet_fold{found.checkpoint.fold}"
    if (run / CONFIG_FILE).exists() and not args.overwrite:
        raise InputError(f"{run}: holds a run; replace it with --overwrite, or give another --run")
    check_new_run(run, overwrite=args.overwrite)
    _write(run, config, params, provenance(found))
    _show(run, found, config)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax import-nnunet",
        description="Import a network that nnU-Net v2 trained for brain tumours, as the teacher of a run: to "
        "evaluate it, to predict with it, or to teach a student (train --teacher-from RUN).",
        epilog="Understood: nnU-Net 2.0 to 2.8, 3d_fullres, PlainConvUNet and ResidualEncoderUNet; the classes NCR, ED "
        "and ET or the regions WT, TC and ET; all or some of the modalities t1, t1ce, t2, flair. PyTorch is "
        "not needed.",
    )
    parser.add_argument(
        "result",
        type=Path,
        metavar="RESULT",
        help="nnU-Net's folder TRAINER__PLANS__3d_fullres, the fold_N in it, or a checkpoint_*.pth",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        help="folder to make (default: runs/DATASET_nnunet_foldN, as nnU-Net names it)",
    )
    parser.add_argument("--fold", metavar="N", help="fold to import if there are several: a number or all")
    parser.add_argument(
        "--checkpoint", choices=get_args(Kept), default="final", help="of the last or best epoch (default: %(default)s)"
    )
    parser.add_argument("--plans", type=Path, metavar="FILE", help="plans.json, if it is not next to the checkpoint")
    parser.add_argument(
        "--dataset", type=Path, metavar="FILE", help="dataset.json, if it is not next to the checkpoint"
    )
    parser.add_argument(
        "--channels",
        nargs="+",
        choices=MODALITIES,
        metavar="MODALITY",
        help=f"modalities of the network's channels, in order: {', '.join(MODALITIES)} (default: by dataset.json)",
    )
    parser.add_argument(
        "--labels",
        metavar="MAP",
        help='meaning of nnU-Net\'s label values, e.g. "1=NCR,2=ED,3=ET" (default: by the names in dataset.json)',
    )
    parser.add_argument(
        "--orientation",
        metavar="XYZ",
        help="directions of the axes of the training files: three letters, R or L, A or P, S or I "
        "(default: LPS, as BraTS is stored; RAS where nnU-Net's reader reorients files)",
    )
    parser.add_argument("--any-trainer", action="store_true", help="accept a trainer that is not known to fit")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    return parser


def _write(run: Path, config: Config, params: Params, provenance: dict[str, Any]) -> None:
    """Writes the run next to its place and moves it there when it is complete."""
    with folder_atomically(run) as folder:
        write_atomically(folder / CONFIG_FILE, dump_config(config).encode())
        write_atomically(folder / IMPORT_FILE, (json.dumps(provenance, indent=2) + "\n").encode())
        save_teacher(folder, params, {"step": 0}, config)
        if run.exists():
            shutil.rmtree(run)


def _show(run: Path, found: Found, config: Config) -> None:
    checkpoint, plan, teacher = found.checkpoint, found.plan, config.teacher
    outputs = ", ".join(f"{ours} = {theirs}" for ours, theirs in found.outputs.names.items())
    by = "" if checkpoint.epoch is None else f", after epoch {checkpoint.epoch}"
    print(f"{found.result.checkpoint}: {checkpoint.trainer}, {plan.name}, fold {checkpoint.fold}{by}")
    print(f"  network      {teacher.encoder}, features {' '.join(map(str, teacher.features))}")
    print(f"  patch        {' '.join(map(str, plan.patch))} voxels of {' '.join(f'{s:g}' for s in plan.spacing)} mm")
    print(f"  channels     {' '.join(found.modalities)}")
    print(f"  {config.outputs:12} {outputs}")
    letters = orientation_of(found.reversed_axes)
    print(f"  orientation  trained on volumes stored towards {letters}; --orientation says otherwise")
    for note in plan.notes:
        print(f"  note: {note}")
    print(f"written to {run}; next:")
    print(f"  kd-jax predict {run} PATIENT -o OUT")
    print(f"  kd-jax evaluate {run} --data CASES")
    print(
        f"  kd-jax train --config {run / CONFIG_FILE} --teacher-from {run} --data.root CASES "
        "--student.modalities flair t1ce --distillation.weight 0.1"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
