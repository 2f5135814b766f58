"""The run that holds an imported network."""

import json
import shutil
from pathlib import Path

from data_pipeline.files import folder_atomically, write_atomically
from kd_jax.config.load import dump_config
from kd_jax.config.schema import Config
from kd_jax.models.protocol import Params
from kd_jax.nnunet.imported import Found, orientation_of, provenance
from kd_jax.runs.folder import CONFIG_FILE
from kd_jax.runs.store import save_teacher

IMPORT_FILE = "import.json"


def write_run(run: Path, found: Found, config: Config, params: Params) -> None:
    """Writes the run next to its place and moves it there when it is complete."""
    with folder_atomically(run) as folder:
        write_atomically(folder / CONFIG_FILE, dump_config(config).encode())
        write_atomically(folder / IMPORT_FILE, (json.dumps(provenance(found), indent=2) + "\n").encode())
        save_teacher(folder, params, {"step": 0}, config)
        if run.exists():
            shutil.rmtree(run)


def show_import(run: Path, found: Found, config: Config) -> None:
    """Prints what was found, and the commands that use it."""
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
