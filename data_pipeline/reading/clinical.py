"""Raw clinical scans: how they are recognised, and the commands that bring them to the space of BraTS.

DICOM -> NIfTI -> rigid to T1CE -> rigid to the SRI24 atlas at 1 mm -> one brain mask for all. The programs are FSL,
FreeSurfer's SynthStrip and dcm2niix: they do registration better than this project could.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_pipeline.conventions import Modality
from data_pipeline.errors import InputError
from data_pipeline.reading.checks import SPACING_TOLERANCE, compare_grids
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.nifti import Geometry

ANCHORS: tuple[Modality, ...] = ("t1ce", "t1", "t2", "flair")
"""The first of these that a case has is what its other images are registered to: T1CE has the finest detail."""
_OPENED = 200  # files that are opened to look for DICOM's mark
_DICOM_NAME = re.compile(r".*\.(dcm|dicom|ima)", re.IGNORECASE)
_NIFTI_NAME = re.compile(r".*\.nii(\.gz)?", re.IGNORECASE)


def raw_scan(
    case: str,
    grids: Mapping[Modality, Geometry],
    skulls: Sequence[Modality],
    *,
    commands: bool,
    refuse: bool,
) -> list[Finding]:
    """Recognise a case that was never preprocessed: a skull in all modalities, or in some and no common grid of 1 mm.

    Args:
      case: its id.
      grids: of its modalities.
      skulls: the modalities that show more than a brain.
      commands: every modality has a file of its own, so that commands can name it.
      refuse: an error instead of a warning.
    """
    spacings = {m: " x ".join(f"{s:.3g}" for s in grid.spacing) for m, grid in grids.items()}
    coarse = [m for m in skulls if max(abs(s - 1) for s in grids[m].spacing) > SPACING_TOLERANCE]
    first, *others = grids.values()
    differ = any(compare_grids(first, other) for other in others)
    if not skulls or not (coarse or differ or len(skulls) == len(grids)):
        return []
    signs = [f"skull in {', '.join(skulls)}"]
    signs += [f"spacing {spacings[m]} mm of {m}" for m in coarse]
    signs += ["modalities on different grids"] if differ else []
    files = {m: grid.source for m, grid in grids.items()}
    return [
        Finding(
            "error" if refuse else "warning",
            None,
            f"these look like raw clinical scans ({'; '.join(signs)})",
            "bring them to the space of BraTS first; kd-jax check prints the commands "
            "(to segment them as they are: kd-jax predict --accept-raw)",
            to_atlas(case, files) if commands else None,
        )
    ]


def to_atlas(case: str, files: Mapping[Modality, Path]) -> str:
    """Command lines from a case's own files to skull-stripped images on the grid of SRI24, under BraTS 2021's names."""
    anchor = next(m for m in ANCHORS if m in files)
    moving = [m for m in files if m != anchor]
    home, work = f"sri24/{case}", f"sri24/{case}/work"
    final = {m: _q(f"{home}/{case}_{m}.nii.gz") for m in files}
    straight = {m: _q(f"{work}/{m}.nii.gz") for m in files}
    mask = _q(f"{work}/mask.nii.gz")
    lines = [
        "# needs FSL, FreeSurfer 7.3 or later, and the SRI24 atlas with skull: https://www.nitrc.org/projects/sri24",
        "ATLAS=spgr_unstrip.nii",
        f"mkdir -p {_q(work)}",
        *(f"fslreorient2std {_q(str(path))} {straight[m]}" for m, path in files.items()),
        f"# {anchor} to the atlas, the others to {anchor}; each is resampled once, to 1 mm",
        f'flirt -in {straight[anchor]} -ref "$ATLAS" -dof 6 -omat {_matrix(work, anchor, "atlas")} '
        f"-out {final[anchor]}",
    ]
    for m in moving:
        to_anchor, to_target = _matrix(work, m, anchor), _matrix(work, m, "atlas")
        lines += [
            f"flirt -in {straight[m]} -ref {straight[anchor]} -dof 6 -omat {to_anchor}",
            f"convert_xfm -omat {to_target} -concat {_matrix(work, anchor, 'atlas')} {to_anchor}",
            f'flirt -in {straight[m]} -ref "$ATLAS" -applyxfm -init {to_target} -out {final[m]}',
        ]
    lines += [
        "# one brain mask for all",
        f"mri_synthstrip -i {final[anchor]} -o {final[anchor]} -m {mask}",
        *(f"fslmaths {final[m]} -mas {mask} {final[m]}" for m in moving),
        f"rm -r {_q(work)}",
    ]
    return "\n".join(lines)


def from_dicom(folder: Path) -> str:
    """The command line that converts a folder of DICOM series."""
    return f"mkdir -p nifti && dcm2niix -z y -f %i_%s_%d -o nifti {_q(str(folder))}"


def dicom_answer(root: Path) -> InputError | None:
    """The error for a folder with DICOM files and no NIfTI; None for any other folder."""
    found: Path | None = None
    for number, path in enumerate(_files(root)):
        if _NIFTI_NAME.fullmatch(path.name):
            return None
        if found is None and (_DICOM_NAME.fullmatch(path.name) or (number < _OPENED and _has_mark(path))):
            found = path
    if found is None:
        return None
    return InputError(
        f"{root}: DICOM files ({found.relative_to(root)}), expected NIfTI; convert them, then name the series "
        f"<case>_{{t1,t1ce,t2,flair}}.nii.gz in a folder <case>:\n  {from_dicom(root)}"
    )


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder) / name for name in sorted(names))


def _has_mark(path: Path) -> bool:
    """Whether the file has DICM after a preamble of 128 bytes: DICOM files may have any name."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _matrix(work: str, moving: str, target: str) -> str:
    return _q(f"{work}/{moving}_to_{target}.mat")


def _q(text: str) -> str:
    return shlex.quote(text)
