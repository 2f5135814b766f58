"""The survey before cases are prepared: cached, changed, disk use."""

import shutil
from types import MappingProxyType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.cache.estimate import BRAIN_BOX, prepared_bytes
from data_pipeline.cache.fill import prepare_cases
from data_pipeline.cache.key import PreprocessingSettings
from data_pipeline.cache.survey import Survey, survey_cases
from data_pipeline.case import Case
from data_pipeline.errors import FileError, InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.phantom.anatomy import CHANNELS
from data_pipeline.preprocessing.resample import as_spacing
from tests.data_pipeline.cases import one_case, rewrite, write_case

ONE_MM = 1.0, 1.0, 1.0


def survey(cases, cache, spacing=2.0, **options) -> Survey:
    return survey_cases(cases, PreprocessingSettings(as_spacing(spacing), False), cache, workers=2, **options)


@pytest.fixture
def cases(tmp_path, rng) -> list[Case]:
    for number in range(4):
        write_case(tmp_path / "data", rng=rng, number=number)
    return find_cases(tmp_path / "data")


def test_cached_and_changed_cases_are_counted(cases, tmp_path):
    cache = tmp_path / "cache"
    empty = survey(cases, cache)
    assert (empty.total, empty.missing, empty.outdated) == (4, 4, {})
    assert not cache.exists()  # looking leaves no trace
    prepared = prepare_cases(cases[:3], 2.0, cache, workers=0, progress=False)
    rewrite(cases[1].images["t1"], lambda v: v + (v > 0).astype(v.dtype))
    found = survey(cases, cache)
    assert found.prepared == {0: prepared[0], 2: prepared[2]}
    assert list(found.outdated) == [cases[1].id]
    expected = "1 cases changed since they were prepared, first BraTS2021_00001; their old entries take"
    assert any(line.startswith(expected) for line in found.lines())
    assert survey(cases, cache, spacing=1.5).outdated == {}  # other settings are no change
    cases[2].images["t1"].unlink()
    assert sorted(survey(cases, cache).prepared) == [0]


def test_only_cases_with_an_entry_are_hashed(cases, tmp_path, monkeypatch):
    prepare_cases(cases[:1], 2.0, tmp_path / "cache", workers=0, progress=False)
    hashed = []
    monkeypatch.setattr("data_pipeline.cache.survey.hash_files", lambda case: hashed.append(case.id) or {})
    survey(cases, tmp_path / "cache")
    assert hashed == [cases[0].id]


@pytest.mark.parametrize("name", ["images.npy", "label.npy", "foreground.npz"])
def test_damage_that_leaves_the_size_is_found_on_demand(cases, tmp_path, name):
    cache = tmp_path / "cache"
    prepared = prepare_cases(cases, 2.0, cache, workers=0, progress=False)
    damaged = prepared[1].folder / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert survey(cases, cache).missing == 0
    found = survey(cases, cache, verify=True)
    assert (found.damaged, sorted(found.prepared)) == ({cases[1].id: prepared[1].folder}, [0, 2, 3])
    assert "1 entries are damaged on the disk and will be prepared again: BraTS2021_00001" in found.lines()
    assert damaged.exists()  # looking changes nothing
    others = {case.id: case.folder.stat().st_ctime_ns for case in (prepared[0], prepared[2], prepared[3])}
    again = prepare_cases(cases, 2.0, cache, workers=0, progress=False, verify=True)
    assert again == prepared and damaged.read_bytes() == whole
    assert others == {case.id: case.folder.stat().st_ctime_ns for case in again if case.id in others}
    assert survey(cases, cache, verify=True).damaged == {}


def test_an_entry_that_cannot_be_read_is_damaged(cases, tmp_path, monkeypatch):
    [entry] = prepare_cases(cases[:1], 2.0, tmp_path / "cache", workers=0, progress=False)
    assert entry.intact()

    def broken(path):
        raise FileError(path, "cannot be read (Input/output error)", "check the path and permissions")

    monkeypatch.setattr("data_pipeline.cache.entry.hash_file", broken)
    assert not entry.intact()


def test_the_estimate_is_an_upper_bound_of_what_is_written(cases, tmp_path):
    for spacing in (1.0, 2.0, (0.7, 1.0, 3.0)):
        for entry in prepare_cases(cases, spacing, tmp_path / "cache", workers=0, progress=False):
            written = sum(file.stat().st_size for file in entry.folder.iterdir())
            assert written <= prepared_bytes(entry.source, as_spacing(spacing))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_brain_takes_at_most_its_bounding_box(tmp_path, rng, name, kind):
    """Of BraTS's 8.9 litres half; a volume that is smaller than a brain's box, whatever its voxels are."""
    case, path = one_case(tmp_path, rng), tmp_path / name
    cubic = 17 * BRAIN_BOX
    for shape, edges, spacing, expected in (
        ((240, 240, 155), (1, 1, 1), ONE_MM, cubic),
        ((240, 240, 155, 1), (-1, 1, 1), (2.0, 2.0, 2.0), cubic / 8),
        ((100, 80, 20), (1, 1, 5), ONE_MM, 17 * 100 * 80 * 20 * 5),
        ((10, 10, 10), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 17 * 1000),
    ):
        nib.save(kind(np.broadcast_to(np.uint8(0), shape), np.diag([*edges, 1.0])), path)
        turned = Case(case.id, case.patient, MappingProxyType({"t1": path}), case.label, case.convention, case.layout)
        assert 0 <= prepared_bytes(turned, spacing) - expected <= 400_000


@pytest.mark.parametrize("content", [b"", b"no NIfTI" * 100, None])
def test_a_header_that_cannot_be_read_takes_no_room(tmp_path, rng, content):
    case = one_case(tmp_path, rng)
    path = next(iter(case.images.values()))
    path.unlink() if content is None else path.write_bytes(content)
    assert prepared_bytes(case, ONE_MM) == 0


def test_what_does_not_fit_is_refused_before_anything_is_written(cases, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(InputError, match=r"takes about 1\.7 MB, but only 1\.0 MB are free; .*--cache DIR"):
        prepare_cases(cases, 1.0, cache, workers=0, progress=False)
    assert not cache.exists()
    monkeypatch.undo()
    prepare_cases(cases, 1.0, cache, workers=0, progress=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=0))
    assert len(prepare_cases(cases, 1.0, cache, workers=0, progress=False)) == 4  # nothing is needed


def test_the_box_holds_the_brain_of_the_template(head):
    brain = np.argwhere(head.maps[CHANNELS.index("depth")] > 0)  # on a grid of 1 mm
    assert (np.ptp(brain, axis=0) + 1).prod() < BRAIN_BOX
