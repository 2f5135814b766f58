"""Damaged cases are refused or mended as the table of checks says; never a traceback, never in silence."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.check.checked_case import check_case
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.subject import load_subject
from data_pipeline.reading.findings import Finding
from data_pipeline.reading.scan import inspect_case
from tests.data_pipeline.cases import SRI24, file_of, one_case, tiny_images, write_case, write_nifti
from tests.data_pipeline.damaged import ERRORS, MENDED, MISSING, NOTES, WARNINGS

DAMAGES = (*ERRORS, *WARNINGS, *NOTES, *MENDED)


def damaged(folder, damage):
    home = write_case(folder, rng=np.random.default_rng(0), layout=damage.layout)
    for role, spoil in damage.spoil.items():
        spoil(file_of(home, home.name, role, damage.layout))
    (case,) = find_cases(home)
    return case


def test_the_library_is_large_and_its_names_differ():
    assert len({damage.name for damage in DAMAGES}) == len(DAMAGES) >= 70


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_the_check_reports_it(tmp_path, damage):
    report = check_case(damaged(tmp_path, damage), **damage.options)
    if damage.severity is None:
        assert report.findings == ()
        return
    severity = "note" if damage.severity == MISSING else damage.severity
    printed = [str(finding) for finding in report.findings if finding.severity == severity]
    assert any(damage.found in line for line in printed), printed
    everything = "\n".join(map(str, report.findings))
    assert all(part in everything for part in damage.also)
    # Nothing worse than what the table says.
    assert report.worst == (severity if not damage.also or severity == "error" else report.worst)
    for finding in report.findings:
        assert "\n" not in str(finding)
        assert finding.remedy or finding.severity == "note"
    assert report.source.id in repr(report.as_json())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_preparation_refuses_or_mends_it(tmp_path, damage):
    case = damaged(tmp_path, damage)
    if damage.severity == "error":
        with pytest.raises(InputError) as refused:
            load_subject(case, 1.0, **damage.options)
        assert damage.found in str(refused.value)
        errors = [str(f) for f in inspect_case(case, **damage.options).findings if f.severity == "error"]
        assert str(refused.value).splitlines() == [errors[0], *(f"  {line}" for line in errors[1:])]
        return
    subject = load_subject(case, 16.0 if "volume" in damage.name else 1.0, **damage.options)
    assert np.isfinite(subject.images).all()
    assert subject.mask.any()
    if damage.severity in (None, MISSING):
        assert subject.findings == ()
    else:
        assert any(damage.found in note for note in map(Finding.note, subject.findings)), subject.findings


@pytest.mark.parametrize("damage", MENDED, ids=lambda damage: damage.name)
def test_what_is_mended_is_the_undamaged_case(tmp_path, damage):
    found = load_subject(damaged(tmp_path / "damaged", damage), 1.0)
    good = load_subject(one_case(tmp_path / "good", np.random.default_rng(0)), 1.0)
    np.testing.assert_array_equal(found.images, good.images)
    np.testing.assert_array_equal(found.label, good.label)


@pytest.mark.parametrize("damage", [d for d in ERRORS if not d.also and "all" not in d.name], ids=lambda d: d.name)
def test_other_files_of_the_case_are_checked_all_the_same(tmp_path, damage):
    """An error does not hide another one in a file that it does not touch."""
    case = damaged(tmp_path, damage)
    role = next((m for m in ("t1", "t1ce", "t2", "flair") if m in case.images and m not in damage.spoil), None)
    if role is None:
        pytest.skip("all files are damaged")
    case.images[role].write_bytes(b"")
    findings = "\n".join(map(str, inspect_case(case).findings))
    assert f"{case.images[role]}: the file has zero bytes" in findings
    assert damage.found in findings or "differs from" in damage.found  # the reference may be the file just emptied


# --- headers --------------------------------------------------------------------------------------------------------

SHAPE = (6, 7, 5)
# Offset and struct format of the fields of nifti1.h that say what the voxels are and where.
FIELDS = {
    "sizeof_hdr": (0, "i"),
    "ndim": (40, "h"),
    "dim1": (42, "h"),
    "dim2": (44, "h"),
    "dim3": (46, "h"),
    "dim4": (48, "h"),
    "datatype": (70, "h"),
    "bitpix": (72, "h"),
    "qfac": (76, "f"),
    "pixdim1": (80, "f"),
    "pixdim3": (88, "f"),
    "vox_offset": (108, "f"),
    "scl_slope": (112, "f"),
    "scl_inter": (116, "f"),
    "qform_code": (252, "h"),
    "sform_code": (254, "h"),
    "quatern_b": (256, "f"),
    "qoffset_x": (268, "f"),
    "srow_x0": (280, "f"),
    "srow_y1": (300, "f"),
    "srow_z3": (324, "f"),
    "magic": (344, "i"),
}
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 4, 8, 16, 64, 512, 348, 352, 540, 1e9, 1e-9, np.nan, np.inf, -np.inf]),
    st.floats(-1e6, 1e6),
    st.integers(-32768, 32767),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file of one modality, and the others of its case."""
    folder = tmp_path_factory.mktemp("headers") / "BraTS2021_00001"
    for m, data in tiny_images(SHAPE, ("t1", "t2"), np.random.default_rng(0)).items():
        write_nifti(folder / f"BraTS2021_00001_{m}.nii", data + np.int16(3 * (data > 0)), SRI24)
    return folder, (folder / "BraTS2021_00001_t2.nii").read_bytes()


def packed(form: str, value: float) -> bytes:
    if form == "f":
        with np.errstate(over="ignore"):
            return np.float32(value).tobytes()
    low, high = (-(2**15), 2**15 - 1) if form == "h" else (-(2**31), 2**31 - 1)
    return struct.pack("<" + form, int(np.clip(np.nan_to_num(value), low, high)))


def assert_refused_or_read_as_nibabel_does(folder, raw: bytes) -> None:
    path = folder / "BraTS2021_00001_t2.nii"
    path.write_bytes(raw)
    (case,) = find_cases(folder)
    report = check_case(case)
    if report.worst == "error":
        with pytest.raises(InputError):
            load_subject(case, 1.0)
        return
    oracle = nib.load(path)
    values = np.asanyarray(oracle.dataobj)
    assert report.shape == SHAPE
    assert values.size == np.prod(SHAPE)
    np.testing.assert_allclose(oracle.affine, SRI24, atol=1e-3)
    subject = load_subject(case, 1.0)
    assert np.isfinite(subject.images).all()


@settings(max_examples=75, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(sorted(FIELDS)), NUMBERS, min_size=1, max_size=3))
@example(changes={"scl_slope": np.inf})
@example(changes={"sform_code": 0, "qform_code": 1, "quatern_b": 5})
@example(changes={"dim1": -6})
@example(changes={"ndim": 7})
@example(changes={"vox_offset": np.nan})
@example(changes={"vox_offset": -352.0})
@example(changes={"bitpix": 8})
def test_any_header_is_refused_or_read_as_nibabel_does(sound, changes):
    folder, raw = sound
    for name, value in changes.items():
        offset, form = FIELDS[name]
        field = packed(form, value)
        raw = raw[:offset] + field + raw[offset + len(field) :]
    assert_refused_or_read_as_nibabel_does(folder, raw)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bytes_in_the_header_are_refused_or_read(sound, data):
    folder, raw = sound
    noise = data.draw(st.binary(min_size=1, max_size=40))
    at = data.draw(st.integers(0, 352 - len(noise)))
    assert_refused_or_read_as_nibabel_does(folder, raw[:at] + noise + raw[at + len(noise) :])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(sound, data):
    folder, raw = sound
    packed_ = data.draw(st.booleans())
    whole = gzip.compress(raw, mtime=0) if packed_ else raw
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    cut = folder.parent / "cut" / folder.name
    write_nifti(cut / "BraTS2021_00001_t1.nii", np.ones(SHAPE, np.int16) * np.arange(5, dtype=np.int16))
    for name in ("BraTS2021_00001_t2.nii", "BraTS2021_00001_t2.nii.gz"):
        (cut / name).unlink(missing_ok=True)
    (cut / f"BraTS2021_00001_t2.nii{'.gz' if packed_ else ''}").write_bytes(part)
    (case,) = find_cases(cut)
    assert [f.file for f in inspect_case(case).findings if f.severity == "error"] == [case.images["t2"]]
    with pytest.raises(InputError, match="BraTS2021_00001_t2"):
        load_subject(case, 1.0)
