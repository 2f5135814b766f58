"""The fingerprint against nnU-Net's own (tests/golden/fingerprint.npz) and against figures computed by hand."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.conventions import MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.fingerprint import measure_cases
from tests.data_pipeline.cases import file_of, rewrite, write_case, write_nifti

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "fingerprint.npz"


def measure(folder: Path, workers: int = 0, **options):
    return measure_cases(find_cases(folder), workers=workers, progress=False, **options)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def drawn(golden, tmp_path_factory):
    """The golden cases as files."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(len(golden["shapes"])):
        images, case = golden[f"images_{number}"], f"BraTS2021_{number:05d}"
        affine = np.diag([*golden[f"spacing_{number}"], 1])
        for channel, m in enumerate(MODALITIES):
            write_nifti(file_of(folder / case, case, m), images[..., channel], affine)
        write_nifti(file_of(folder / case, case, "seg"), golden[f"label_{number}"], affine)
    return folder


def test_it_is_that_of_nnunet(drawn, golden):
    found = measure(drawn)
    np.testing.assert_array_equal(found.shapes, golden["shapes"])
    np.testing.assert_allclose(found.spacings, [golden[f"spacing_{number}"] for number in range(5)], rtol=1e-6)
    assert found.relative_size == pytest.approx(golden["relative_size"].item(), rel=1e-12)
    assert tuple(found.intensities) == MODALITIES
    for channel, m in enumerate(MODALITIES):
        for name, value in vars(found.intensities[m]).items():
            assert value == pytest.approx(golden[f"intensity_{name}"][channel], rel=1e-5), (m, name)


@pytest.mark.slow
def test_processes_change_nothing(drawn):
    assert measure(drawn, workers=2, samples=1000) == measure(drawn, samples=1000)


def test_every_case_weighs_the_same_and_voxels_outside_the_tumour_nothing(tmp_path, rng):
    for number, (value, size) in enumerate(((100, 1), (300, 6))):
        home = write_case(tmp_path, rng=rng, number=number, modalities=("t2",))
        label = np.zeros((14, 16, 12), np.uint8)
        label[4 : 4 + size, 5:9, 5:9] = 2
        rewrite(file_of(home, home.name, "seg"), lambda _, label=label: label)
        image = np.zeros((14, 16, 12), np.int16)
        image[2:12, 3:13, 3:10] = 7
        image[label > 0] = value
        rewrite(file_of(home, home.name, "t2"), lambda _, image=image: image)
    found = measure(tmp_path, samples=1000)
    t2 = found.intensities["t2"]
    assert tuple(found.intensities) == ("t2",)
    assert (t2.mean, t2.median, t2.std, t2.min, t2.max) == (200, 200, 100, 100, 300)
    assert found.shapes == ((10, 10, 7),) * 2
    assert found.relative_size == pytest.approx(700 / (14 * 16 * 12))


def test_axes_are_canonical_whatever_the_order_on_disk(tmp_path, rng):
    turned = np.array([[0, 0, 3.0, 0], [-1.0, 0, 0, 14], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    home = write_case(tmp_path, rng=rng, affine=turned)
    for path in home.iterdir():  # on disk y, z, x
        rewrite(path, lambda values: np.pad(values[2:12, 3:13, 4:9] + 1, ((2, 2), (3, 3), (4, 3))))
    rewrite(file_of(home, home.name, "seg"), lambda values: np.zeros_like(values, np.uint8))
    found = measure(tmp_path)
    assert found.spacings == (pytest.approx((3, 1, 2)),)
    assert found.shapes == ((5, 10, 10),)
    assert not found.intensities  # no tumour


def test_all_that_is_wrong_is_listed_at_once(tmp_path, rng, capsys):
    for number in range(4):
        home = write_case(tmp_path, rng=rng, number=number, label=number != 1)
        if number == 2:
            file_of(home, home.name, "t2").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        measure(tmp_path)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("2 of 4 cases cannot be used") and "--skip-bad" in head
    assert "BraTS2021_00001: no label file" in lines[0] and "BraTS2021_00002_t2.nii.gz: the file has zero" in lines[1]
    assert len(measure(tmp_path, skip_bad=True).shapes) == 2
    assert capsys.readouterr().err.splitlines() == ["left out 2 of 4 cases:", *lines]
