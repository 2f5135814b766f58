"""`kd-jax prepare`: fill the cache that training reads."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.cache.place import cache_home, prepared_folder
from data_pipeline.command_line import add_naming_options, add_workers_option, run_command

_EXAMPLES = """
examples:
  kd-jax prepare /data/BraTS2021 --dry-run
  kd-jax prepare /data/BraTS2021 --cache /scratch/kd_jax --workers 16
  kd-jax train --config paper --data.root /data/BraTS2021 \\
    --data.cache /scratch/kd_jax
Give training the same folders, cache, spacing, label map and --ignore-affine, and it finds every case prepared.
A run that was stopped, in whatever way, continues when you give the same command again.
exit status: 0, or 2 if something has to be repaired first
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(
        lambda given: _prepare(_parser().parse_intermixed_args(given)),
        arguments,
        interrupted="interrupted; give the same command again to continue",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kd-jax prepare",
        description="Crop, normalise and resample every case once, into the cache that training reads. Training does "
        "this before it starts; this command does it on a machine without a GPU.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="folder of a data set, or a CSV")
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=(1.0, 1.0, 1.0),
        metavar="MM",
        help="along x, y and z, as --data.spacing (default: 1 1 1)",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help=f"as --data.cache (default: {cache_home(None)})")
    add_workers_option(parser)
    add_naming_options(parser)
    parser.add_argument("--skip-bad", action="store_true", help="go on without the cases that cannot be used")
    parser.add_argument(
        "--remove-outdated",
        action="store_true",
        help="after that, remove the entries of these cases' former contents; a training that reads them will fail",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the cases that are prepared already, and prepare again those that were damaged on the disk",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what there is to do, and do nothing")
    return parser


def _prepare(options: argparse.Namespace) -> int:
    # Imported when work begins: --help does not wait for SciPy and nibabel.
    from data_pipeline.cache.fill import prepare_cases
    from data_pipeline.cache.key import PreprocessingSettings
    from data_pipeline.cache.survey import in_words, survey_cases
    from data_pipeline.layouts.find import describe, find_cases
    from data_pipeline.preprocessing.resample import as_spacing

    spacing = as_spacing(options.spacing)
    cases = find_cases(options.data, options.label_map, options.layout)
    print("\n".join(describe(cases, options.data)), file=sys.stderr)
    cache = prepared_folder(options.cache)
    if options.dry_run:
        settings = PreprocessingSettings(spacing, options.ignore_affine)
        survey = survey_cases(cases, settings, cache, workers=options.workers, progress=True, verify=options.verify)
        print("\n".join(survey.lines()))
        survey.require_space()
        return 0
    prepared = prepare_cases(
        cases,
        spacing,
        cache,
        workers=min(options.workers, len(cases)),
        skip_bad=options.skip_bad,
        skip_option="--skip-bad",
        ignore_affine=options.ignore_affine,
        remove_outdated=options.remove_outdated,
        verify=options.verify,
    )
    size = sum(file.stat().st_size for case in prepared for file in case.folder.iterdir())
    print(f"{len(prepared)} cases in {cache}, {in_words(size)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
