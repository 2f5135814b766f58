"""The training command: turns its arguments into a run that trains.

Without arguments it trains a small pair on the embedded phantom. This module writes config.json, environment.json,
split.json and splits_final.json to the run folder, `kd_jax.training.loop` all other files.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from data_pipeline.errors import InputError
from kd_jax.config.load import SettingsHelp, add_setting_arguments, load_config, overrides_from, refuse_unknown
from kd_jax.config.schema import Config
from kd_jax.objective.joint import prepare_config
from kd_jax.planning.plan_file import read_plan
from kd_jax.runs.folder import check_new_run, default_run, open_run, resume_run
from kd_jax.runs.restore import Restored
from kd_jax.runs.split_files import resume_split
from kd_jax.training.cases import gather_cases
from kd_jax.training.devices import connect_hosts, local_batch, on_first_host, say
from kd_jax.training.loop import train
from kd_jax.training.teacher import check_teacher, load_teacher, teacher_settings


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    args, unknown = _parser().parse_known_args(arguments)
    refuse_unknown(unknown)
    if args.distributed or args.coordinator:
        connect_hosts(args.coordinator, args.processes, args.process)
    if args.resume:
        return _resume(args)
    config, teacher = _configure(args)
    local_batch(config.train.batch)
    if args.run is None and jax.process_count() > 1:
        raise InputError("--run: several hosts need one folder, on the file system they share; give it")
    run = args.run or default_run(config)
    on_first_host("run folder checked", lambda: check_new_run(run, overwrite=args.overwrite))
    if config.data.root is not None and args.config is None and args.plan is None:
        say("settings are those of the small phantom run; for BraTS use --config paper")
    cases = gather_cases(config)
    opened = partial(open_run, run, config, cases.record, cases.folds, arguments, overwrite=args.overwrite)
    on_first_host("run opened", opened)
    return train(config, run, cases, resume=False, teacher=None if teacher is None else teacher.params)


def _resume(args: argparse.Namespace) -> int:
    """Continues a run with the configuration in its folder, from its latest checkpoint."""
    given = {"--config": args.config, "--plan": args.plan, "--teacher-from": args.teacher_from}
    refused = [name for name, value in given.items() if value is not None] + ["--overwrite"] * args.overwrite
    if args.run is None or refused:
        raise InputError(f"--resume takes the run as --run RUN, and no {' or '.join(refused) or 'other folder'}")
    config = resume_run(args.run, overrides_from(args))
    cases = gather_cases(config)
    on_first_host("split checked", lambda: resume_split(args.run, cases.record, cases.folds))
    return train(config, args.run, cases, resume=True)


def _configure(args: argparse.Namespace) -> tuple[Config, Restored | None]:
    """The configuration: the file, then the plan, then the given teacher, then the command line; a later one wins."""
    layers = [] if args.plan is None else [read_plan(args.plan)]
    teacher = None if args.teacher_from is None else load_teacher(args.teacher_from)
    if teacher is not None:
        layers.append({"teacher": teacher_settings(teacher)})
    config = load_config(args.config, overrides_from(args), layers)
    check_teacher(config, teacher, args.teacher_from)
    return prepare_config(config), teacher


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax train",
        usage="kd-jax train [--config FILE] [--plan FILE] [--teacher-from RUN] [--run RUN] [--resume] "
        "[--overwrite] [--SECTION.KEY VALUE ...]",
        description="Train a teacher on all modalities and a student on a subset at the same time. Without "
        "arguments: a small pair on the embedded phantom, in minutes on a laptop. Ctrl-C saves and says how to go on.",
        formatter_class=SettingsHelp,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings, or a preset: paper, nnunet")
    parser.add_argument("--plan", type=Path, metavar="FILE", help="plan that kd-jax plan wrote; it wins over --config")
    parser.add_argument(
        "--teacher-from",
        type=Path,
        metavar="RUN",
        help="start with the trained teacher of this run, also one imported from nnU-Net, whatever [teacher] says; "
        "with --distillation.update student it is held still",
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="run folder (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="continue --run RUN from its latest checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start anew where RUN holds a run; it is lost")
    hosts = parser.add_argument_group("several hosts")
    hosts.add_argument(
        "--distributed", action="store_true", help="join the cluster found (SLURM, Open MPI, Cloud TPU, Kubernetes)"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where no cluster is found")
    hosts.add_argument("--processes", type=int, metavar="N", help="number of processes, with --coordinator")
    hosts.add_argument("--process", type=int, metavar="I", help="which one this is, with --coordinator")
    add_setting_arguments(parser)
    return parser
