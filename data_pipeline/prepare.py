"""`kd-jax prepare`: fill the cache that training reads."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from data_pipeline.cache.place import cache_home, prepared_folder
from data_pipeline.command_line import NamingOptions, WorkerOptions, parse_options, run_command

_EXAMPLES = """\
examples:
  kd-jax prepare /data/BraTS2021 --dry-run
  kd-jax prepare /data/BraTS2021 --cache /scratch/kd_jax --workers 16
  kd-jax train --config paper --data.root /data/BraTS2021 \\
    --data.cache /scratch/kd_jax
Give training the same folders, cache, spacing, label map and --ignore-affine, and it finds every case prepared.
A run that was stopped, in whatever way, continues when you give the same command again.
exit status: 0, or 2 if something has to be repaired first
"""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(NamingOptions, WorkerOptions):
    """Crop, normalise and resample every case once, into the cache that training reads.

    Training does this before it starts; this command does it on a machine without a GPU.
    """

    data: Annotated[tuple[Path, ...], Parameter(required=True, help="folders of data sets, or CSV files")] = field(
        kw_only=False
    )
    spacing: Annotated[
        tuple[float, float, float], Parameter(metavar="X Y Z", help="voxel size in mm, as --data.spacing")
    ] = (1.0, 1.0, 1.0)
    cache: Annotated[Path | None, Parameter(metavar="DIR", help=f"as --data.cache; by default {cache_home(None)}")] = (
        None
    )
    skip_bad: Annotated[bool, Parameter(help="go on without the cases that cannot be used")] = False
    remove_outdated: Annotated[
        bool,
        Parameter(
            help="after that, remove the entries of these cases' former contents; a training that reads them will fail"
        ),
    ] = False
    verify: Annotated[
        bool,
        Parameter(
            help="read the cases that are prepared already, and prepare again those that were damaged on the disk"
        ),
    ] = False
    dry_run: Annotated[bool, Parameter(help="print what there is to do, and do nothing")] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_command(_prepare, arguments, interrupted="interrupted; give the same command again to continue")


def _prepare(arguments: Sequence[str]) -> int:
    options = parse_options(PrepareOptions, arguments, name="kd-jax prepare", epilogue=_EXAMPLES)
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
        survey = survey_cases(cases, settings, cache, workers=options.processes, progress=True, verify=options.verify)
        print("\n".join(survey.lines()))
        survey.require_space()
        return 0
    prepared = prepare_cases(
        cases,
        spacing,
        cache,
        workers=min(options.processes, len(cases)),
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
