"""A library of damaged cases: the damage done to a good case, and the finding it must lead to.

Each damage is a row of the table of checks or a combination of rows. `severity` and `found` are what the
check must say; a case with an error must be refused by `load_subject` with the same words, any other
must load, with the words among its notes.
"""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from data_pipeline.conventions import Index3
from tests.data_pipeline.cases import SRI24, rewrite, write_nifti

Spoil = Callable[[Path], Any]
MISSING = "missing"
"""Severity of what the check notes and a network may need: the case loads without a word."""


@dataclass(frozen=True)
class Damage:
    """One way in which a case can be damaged.

    Attributes:
      name: for the test's id.
      spoil: file by role ("t1", ..., "seg"), each with the damage done to it.
      severity: of the expected finding; None for damage that is repaired silently.
      found: must be part of that finding.
      layout: of the case.
      also: parts of other findings that must be there.
      options: of the check.
    """

    name: str
    spoil: dict[str, Spoil]
    severity: str | None
    found: str
    layout: str = "2021"
    also: tuple[str, ...] = ()
    options: dict[str, bool] = field(default_factory=dict)


def voxels(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> Spoil:
    return lambda path: rewrite(path, change, affine)


def content(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes on disk."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def stream(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes under gzip, which stays valid."""
    return content(lambda packed: gzip.compress(change(gzip.decompress(packed))))


def header(offset: int, form: str, *values: float) -> Spoil:
    """Overwrite a field of the NIfTI header (offsets as in nifti1.h)."""

    def change(raw: bytes) -> bytes:
        field_ = struct.pack("<" + form, *values)
        return raw[:offset] + field_ + raw[offset + len(field_) :]

    return stream(change)


def one(value: float, place: Index3 = (7, 8, 6), dtype: type = np.float64) -> Spoil:
    """One voxel has another value."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[place] = value
        return array

    return voxels(change)


def z_score(array: np.ndarray) -> np.ndarray:
    inside = array != 0
    return np.where(inside, (array - array[inside].mean()) / array[inside].std(), 0).astype(np.float32)


def noise(array: np.ndarray) -> np.ndarray:
    return (array + np.random.default_rng(7).integers(1, 99, array.shape)).astype(np.int16)


def shifted(by: float) -> np.ndarray:
    affine = SRI24.copy()
    affine[1, 3] += by
    return affine


def copy_of(role: str) -> Spoil:
    return lambda path: path.write_bytes(path.with_name(path.name.replace("_flair", f"_{role}")).read_bytes())


def another_qform(path: Path) -> None:
    image = nib.load(path)
    image.set_sform(SRI24, 1)
    image.set_qform(shifted(3), 1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def rgb(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    write_nifti(path, np.zeros((14, 16, 12), kind))


def link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.nii.gz")


def remove(path: Path) -> None:
    path.unlink()


def everywhere(spoil: Spoil, *, label: bool = True) -> dict[str, Spoil]:
    roles = ("t1", "t1ce", "t2", "flair", *(("seg",) if label else ()))
    return dict.fromkeys(roles, spoil)


ERRORS = (
    # Files that cannot be read.
    Damage("zero bytes", {"t1": content(lambda b: b"")}, "error", "zero bytes"),
    Damage("gzip cut in its data", {"flair": content(lambda b: b[:-200])}, "error", "truncated or damaged"),
    Damage("gzip cut in its checksum", {"t2": content(lambda b: b[:-4])}, "error", "truncated or damaged"),
    Damage("gzip cut in its header", {"t2": content(lambda b: b[:5])}, "error", "truncated or damaged"),
    Damage("another checksum", {"t1ce": content(lambda b: b[:-8] + b"abcd" + b[-4:])}, "error", "not a valid gzip"),
    Damage("not gzip", {"t1": content(gzip.decompress)}, "error", "not compressed"),
    Damage("an error page", {"t1": content(lambda b: b"<html>404 Not Found</html>")}, "error", "not a valid gzip file"),
    Damage("a packed error page", {"t1": stream(lambda b: b"<html>404</html>" * 40)}, "error", "not a NIfTI file"),
    Damage("nothing packed", {"t1": stream(lambda b: b"")}, "error", "not a NIfTI file"),
    Damage("cut in the header", {"t1": stream(lambda b: b[:100])}, "error", "not a NIfTI file"),
    Damage("cut before the voxels", {"t1": stream(lambda b: b[:352])}, "error", "voxel data are incomplete"),
    Damage("cut in the voxels", {"t1": stream(lambda b: b[:-2])}, "error", "voxel data are incomplete"),
    Damage("link to nothing", {"t2": link_to_nothing}, "error", "cannot be read (No such file or directory)"),
    Damage("label cut", {"seg": content(lambda b: b[:-20])}, "error", "truncated or damaged"),
    # Headers.
    Damage("size of header", {"t1": header(0, "i", 347)}, "error", "not a NIfTI file"),
    Damage("magic", {"t1": header(344, "4s", b"abc\0")}, "error", "not a NIfTI file"),  # type: ignore[arg-type]
    Damage("unknown data type", {"t1": header(70, "hh", 999, 16)}, "error", "not a NIfTI file"),
    Damage("terabytes claimed", {"t1": header(40, "5h", 4, 999, 999, 999, 9999)}, "error", "19938065974002 bytes, got"),
    Damage("metres claimed", {"t1": header(40, "4h", 3, 32767, 32767, 1)}, "error", "are not an image of a head"),
    Damage("longer than the file", {"t1": header(40, "4h", 3, 28, 16, 12)}, "error", "voxel data are incomplete"),
    Damage("an axis of length 0", {"t1": header(40, "4h", 3, 14, 0, 12)}, "error", "shape (14, 0, 12)"),
    Damage("two axes", {"t1": header(40, "4h", 2, 14, 16, 1)}, "error", "shape (14, 16), expected one 3-D volume"),
    Damage("voxels beyond the end", {"t1": header(108, "f", 1e6)}, "error", "are incomplete"),
    Damage("NaN in the sform", {"t1": header(280, "f", np.nan)}, "error", "is not invertible"),
    Damage("singular sform", {"t1": header(280, "4f", 0, 0, 0, 0)}, "error", "is not invertible"),
    Damage("in metres", everywhere(voxels(lambda v: v, SRI24 / 1000)), "error", "are not an image of a head"),
    Damage("in micrometres", everywhere(voxels(lambda v: v, SRI24 * 1000)), "error", "are not an image of a head"),
    # Voxels.
    Damage("one NaN", {"t1ce": one(np.nan)}, "error", "1 voxels are NaN or Inf"),
    Damage("one Inf", {"t1ce": one(np.inf)}, "error", "1 voxels are NaN or Inf"),
    Damage("beyond float32", {"t1ce": one(1e300)}, "error", "1 voxels are NaN or Inf"),
    Damage("all NaN", {"t1": voxels(lambda v: np.full(v.shape, np.nan))}, "error", "2688 voxels are NaN or Inf"),
    Damage("empty", {"flair": voxels(np.zeros_like)}, "error", "the image is empty"),
    Damage("constant", {"flair": voxels(lambda v: np.full_like(v, 7))}, "error", "the image is constant"),
    Damage("complex", {"t2": voxels(lambda v: v.astype(np.complex64))}, "error", "voxels of type complex64"),
    Damage("colours", {"t2": rgb}, "error", "expected real numbers"),
    Damage("two volumes", {"t1": voxels(lambda v: np.stack([v, v], -1))}, "error", "shape (14, 16, 12, 2), expected"),
    Damage("five axes", {"t1": voxels(lambda v: np.stack([v] * 3, -1)[..., None, :])}, "error", "expected one 3-D"),
    # The case.
    Damage("another shape", {"t2": voxels(lambda v: v[:-1])}, "error", "shape (13, 16, 12) differs from"),
    Damage("another shape of all but one", {"t1": voxels(lambda v: v[:, 1:])}, "error", "differs from (14, 15, 12)"),
    Damage("another shape of the label", {"seg": voxels(lambda v: v[:, :-2])}, "error", "shape (14, 14, 12) differs"),
    Damage("another affine", {"t2": voxels(lambda v: v, shifted(2))}, "error", "differs from [1 0 0 -13; 0 1 0 224;"),
    Damage("another affine of the label", {"seg": voxels(lambda v: v, shifted(0.01))}, "error", "--ignore-affine"),
    Damage("another spacing", {"flair": voxels(lambda v: v, np.diag([-2, -1, 1, 1]))}, "error", "differs from"),
    Damage("no image", everywhere(remove, label=False), "error", "none of the modalities"),
    # Labels.
    Damage("2013's 3 in 2021", {"seg": one(3, dtype=np.uint8)}, "error", "found label 3, expected one of 0, 1, 2, 4"),
    Damage("4 in 2023", {"seg": one(4, dtype=np.uint8)}, "error", "--layout brats2024", layout="2023"),
    Damage("label 7", {"seg": one(7)}, "error", "found label 7"),
    Damage("label -1", {"seg": one(-1, dtype=np.int16)}, "error", "found label -1"),
    Damage("label 300", {"seg": one(300, dtype=np.int16)}, "error", "found label 300"),
    Damage("label 1e20", {"seg": one(1e20)}, "error", "found label 100000000000000000000"),
    Damage("label 0.5", {"seg": one(0.5)}, "error", "found the label value 0.5, expected integers"),
    Damage("label NaN", {"seg": one(np.nan)}, "error", "found the label value nan, expected integers"),
    Damage("label Inf", {"seg": one(np.inf)}, "error", "found the label value inf, expected integers"),
    Damage("label -Inf", {"seg": one(-np.inf)}, "error", "found the label value -inf, expected integers"),
    Damage("label of two volumes", {"seg": voxels(lambda v: np.stack([v, v], -1))}, "error", "expected one 3-D volume"),
    # Several at once: all are reported.
    Damage(
        "four files",
        {"t1": content(lambda b: b[:-200]), "t2": one(np.nan), "flair": voxels(lambda v: v[:-1]), "seg": one(7)},
        "error",
        "truncated or damaged",
        also=("1 voxels are NaN or Inf", "shape (13, 16, 12) differs", "found label 7"),
    ),
    Damage(
        "all images",
        everywhere(content(lambda b: b""), label=False),
        "error",
        "_t1.nii.gz: the file has zero bytes",
        also=tuple(f"_{m}.nii.gz: the file has zero bytes" for m in ("t1ce", "t2", "flair")),
    ),
    Damage(
        "an error and a warning",
        {"seg": voxels(lambda v: v[:-1]), "t1ce": voxels(noise)},
        "error",
        "shape (13, 16, 12) differs",
        also=("100% of the voxels are not background",),
    ),
)

WARNINGS = (
    Damage(
        "another affine, ignored",
        {"t2": voxels(lambda v: v, shifted(2))},
        "warning",
        "by more than 0.001; ignored as requested",
        options={"ignore_affine": True},
    ),
    Damage("2 mm", everywhere(voxels(lambda v: v, SRI24 * 2)), "warning", "spacing 2 x 2 x 2 mm, not the 1 mm"),
    Damage("thick slices", everywhere(voxels(lambda v: v, SRI24 @ np.diag([1, 1, 5, 1]))), "warning", "1 x 1 x 5 mm"),
    Damage("skull by share", {"t1": voxels(noise)}, "warning", "100% of the voxels are not background"),
    Damage(
        "skull by volume",
        everywhere(voxels(lambda v: v, SRI24 @ np.diag([16, 16, 16, 1]))),
        "warning",
        "litres are not background, more than a brain has",
        also=("look like raw clinical scans (skull in t1, t1ce, t2, flair; spacing 16 x 16 x 16 mm of t1",),
    ),
    Damage(
        "raw scan",
        everywhere(voxels(noise, SRI24 @ np.diag([0.5, 0.5, 3, 1])), label=False)
        | {"seg": voxels(lambda v: v, SRI24 @ np.diag([0.5, 0.5, 3, 1]))},
        "warning",
        "look like raw clinical scans",
        also=("100% of the voxels", "spacing 0.5 x 0.5 x 3 mm"),
    ),
    Damage("one file twice", {"flair": copy_of("t2")}, "warning", "_t2.nii.gz and BraTS2021_00000_flair.nii.gz are"),
    Damage("no tumour", {"seg": voxels(np.zeros_like)}, "warning", "no tumour is labelled"),
    Damage("sform and qform", everywhere(another_qform), "warning", "and qform [-1 0 0 0; 0 -1 0 242; 0 0 1 0] differ"),
    Damage("pixdim", {"t1": header(80, "3f", 3, 3, 3)}, "warning", "pixdim gives 3 x 3 x 3 mm per voxel, the affine 1"),
    Damage("NaN in pixdim", {"t1": header(80, "f", np.nan)}, "warning", "pixdim gives nan x 1 x 1 mm"),
)

NOTES = (
    Damage("one negative voxel", {"t2": one(-3, (0, 0, 0))}, "note", "1 negative voxels clipped to 0"),
    Damage("z-scores around 0", {"t2": voxels(z_score)}, "note", "already normalised, with background 0"),
    Damage("z-scores", {"t1": voxels(lambda v: (v - 80.0) / 9)}, "note", "constant -8.889: the image is already norm"),
    Damage("tumour outside the brain", {"seg": one(2, (0, 0, 0), np.uint8)}, "note", "1 tumour voxels lie outside"),
    Damage("a modality missing", {"t1": remove, "t2": remove}, MISSING, "no t1, t2"),
    Damage("no label", {"seg": remove}, MISSING, "no label file"),
    Damage(
        "normalised and negative",
        {"t1": voxels(z_score), "t2": one(-3, (0, 0, 0)), "seg": voxels(np.zeros_like)},
        "note",
        "already normalised",
        also=("1 negative voxels clipped to 0", "no tumour is labelled"),
    ),
)

MENDED = (
    Damage("a trailing axis", everywhere(voxels(lambda v: v[..., None])), None, ""),
    Damage("two trailing axes", {"t1": voxels(lambda v: v[..., None, None])}, None, ""),
    Damage("label as float", {"seg": voxels(lambda v: v.astype(np.float64))}, None, ""),
    Damage("label as scaled float", {"seg": voxels(lambda v: v.astype(np.float32) + np.float32(1e-5))}, None, ""),
    Damage("float64", {"t1": voxels(lambda v: v.astype(np.float64))}, None, ""),
    Damage("affine off by rounding", {"t2": voxels(lambda v: v, shifted(5e-4))}, None, ""),
)
