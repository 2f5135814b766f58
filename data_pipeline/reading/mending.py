"""Command lines that mend a file.

Those in Python need only this project's own dependencies; `flirt` is FSL's, `mri_synthstrip` FreeSurfer's. They never
overwrite a file of the data set: they rename it, or write a new one under its full path into the folder `mended`.
"""

import shlex
from pathlib import Path


def rename(path: Path, name: str) -> str:
    """Give the file another name."""
    return f"mv -n {_q(path)} {_q(path.with_name(name))}"


def agree(path: Path) -> str:
    """Make the qform and the voxel sizes agree with the affine that is used."""
    return _python(path, "i = n.load(a); i.set_qform(i.affine, int(i.header['sform_code']) or 1); n.save(i, b)")


def split(path: Path) -> str:
    """One file for each volume of a 4-D file."""
    name = "f'_{k}.nii'.join(b.rsplit('.nii', 1))"
    return _python(path, f"[n.save(v, {name}) for k, v in enumerate(n.four_to_three(n.load(a)))]")


def strip(path: Path) -> str:
    """Remove everything but the brain."""
    return f"{_make_room(path)} && mri_synthstrip -i {_q(path)} -o {_q(_mended(path))}"


def regrid(path: Path, to: Path, *, label: bool) -> str:
    """Bring a file to the grid of another: by their headers or, for an image, by registration."""
    order = 0 if label else 3
    by_header = _python(
        path,
        f"from nibabel.processing import resample_from_to as r; n.save(r(n.load(a), n.load(c), order={order}), b)",
        to,
    )
    if label:
        return by_header
    return (
        f"# if both headers are right\n{by_header}\n# if the patient moved, or a header is wrong\n{register(path, to)}"
    )


def register(path: Path, to: Path) -> str:
    """Bring an image into alignment with another by rigid registration."""
    return f"{_make_room(path)} && flirt -in {_q(path)} -ref {_q(to)} -dof 6 -out {_q(_mended(path))}"


def _python(path: Path, code: str, *others: Path) -> str:
    """A Python command line; the code finds its files as a, b (the mended one) and c."""
    names = ", ".join("abc"[: 2 + len(others)])
    files = " ".join(map(_q, (path, _mended(path), *others)))
    return f"{_make_room(path)} && python -c {_q(f'import sys, nibabel as n; {names} = sys.argv[1:]; {code}')} {files}"


def _make_room(path: Path) -> str:
    return f"mkdir -p {_q(_mended(path).parent)}"


def _mended(path: Path) -> Path:
    """The file's full path below `mended`: files of several cases may share a name."""
    absolute = path.absolute()
    return Path("mended", absolute.relative_to(absolute.anchor))


def _q(text: object) -> str:
    return shlex.quote(str(text))
