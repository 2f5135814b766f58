"""`kd-jax train`: trains a teacher and its students.

Without arguments it is a small pair on the embedded phantom. The run folder gets config.json, environment.json,
split.json and splits_final.json here, the rest from `kd_jax.training.loop`.

Worker processes import the main module again, so this one imports nothing heavy before the work begins.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from data_pipeline.command_line import parse_options, run_command
from data_pipeline.errors import InputError

_RUN = Group("Run", sort_key=1)
_HOSTS = Group("Several hosts", sort_key=9)
_EPILOGUE = (
    "Every setting is also a key of a TOML file for --config: --train.epochs 9 is epochs = 9 in the table train. A "
    "setting of a distillation term is --distillation.TERM.KEY VALUE, that of one of several students "
    "--students.NAME.KEY VALUE. The command line wins over --teacher-from, that over --plan, and that over --config. "
    "Values of a list have spaces or commas between them."
    """

examples:
  kd-jax train
  kd-jax train --config paper --data.root /data/BraTS2021 --fold 0
  kd-jax train --config paper --data.root /data/BraTS2021 --distillation.weight 0
  kd-jax train --run runs/mine --resume
"""
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to train, and where."""

    config: Annotated[
        Path | None, Parameter(group=_RUN, metavar="FILE", help="TOML file of settings, or a preset: paper, nnunet")
    ] = None
    plan: Annotated[
        Path | None, Parameter(group=_RUN, metavar="FILE", help="plan of kd-jax plan; it wins over --config")
    ] = None
    teacher_from: Annotated[
        Path | None,
        Parameter(
            group=_RUN,
            metavar="RUN",
            help="start with the trained teacher of this run, also one imported from nnU-Net, whatever [teacher] says; "
            "with --distillation.update student it is held still",
        ),
    ] = None
    run: Annotated[
        Path | None, Parameter(group=_RUN, metavar="RUN", help="run folder; by default a new one under runs/")
    ] = None
    resume: Annotated[bool, Parameter(group=_RUN, help="continue --run RUN from its latest checkpoint")] = False
    overwrite: Annotated[bool, Parameter(group=_RUN, help="start anew where RUN holds a run; it is lost")] = False
    distributed: Annotated[
        bool, Parameter(group=_HOSTS, help="join the cluster found (SLURM, Open MPI, Cloud TPU, Kubernetes)")
    ] = False
    coordinator: Annotated[
        str | None,
        Parameter(group=_HOSTS, metavar="HOST:PORT", help="address of process 0, where no cluster is found"),
    ] = None
    processes: Annotated[
        int | None, Parameter(group=_HOSTS, metavar="N", help="number of processes, with --coordinator")
    ] = None
    process: Annotated[
        int | None, Parameter(group=_HOSTS, metavar="I", help="which one this is, with --coordinator")
    ] = None
    help_all: Annotated[bool, Parameter(help="show every setting with its meaning and default, and exit")] = False


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options, settings = parse(arguments)
    # Imported when work begins: --help and worker processes do not wait for JAX.
    import jax

    from kd_jax.runs.folder import default_run, resume_run
    from kd_jax.training.configure import configure
    from kd_jax.training.devices import connect_hosts, say
    from kd_jax.training.fit import continue_run, start_run

    if options.distributed or options.coordinator:
        connect_hosts(options.coordinator, options.processes, options.process)
    if options.resume:
        run = _run_to_resume(options)
        return continue_run(resume_run(run, settings), run)
    config, teacher = configure(options.config, options.plan, options.teacher_from, settings)
    if options.run is None and jax.process_count() > 1:
        raise InputError("--run: several hosts need one folder, on the file system they share; give it")
    if config.data.root is not None and options.config is None and options.plan is None:
        say("settings are those of the small phantom run; for BraTS use --config paper")
    return start_run(
        config,
        options.run or default_run(config),
        command=["python", "-m", "kd_jax.train", *arguments],
        overwrite=options.overwrite,
        teacher=None if teacher is None else teacher.params,
    )


def parse(arguments: Sequence[str]) -> tuple[RunOptions, Mapping[str, Any]]:
    """The options of a run, and the settings that were given, as nested tables."""
    from kd_jax.config.arguments import settings_type

    everything = "--help-all" in arguments
    given: Any = settings_type(arguments, everything=everything)

    def collect(
        *,
        options: Annotated[RunOptions, Parameter(name="*")] = RunOptions(),
        settings: Annotated[given, Parameter(name="*")] = None,
    ) -> tuple[RunOptions, Mapping[str, Any]]:
        """Train a teacher on all modalities and students on subsets, at the same time.

        Without arguments: a small pair on the embedded phantom, in minutes on a laptop. Ctrl-C saves and says how to
        go on.
        """
        return options, settings or {}

    return parse_options(collect, ["--help"] if everything else arguments, name="kd-jax train", epilogue=_EPILOGUE)


def _run_to_resume(options: RunOptions) -> Path:
    """The run to go on with; what it started with is in its checkpoint, so nothing else may be given."""
    given = {"--config": options.config, "--plan": options.plan, "--teacher-from": options.teacher_from}
    refused = [name for name, value in given.items() if value is not None] + ["--overwrite"] * options.overwrite
    if options.run is None or refused:
        raise InputError(f"--resume takes the run as --run RUN, and no {' or '.join(refused) or 'other folder'}")
    return options.run


if __name__ == "__main__":
    sys.exit(run_command(main))
