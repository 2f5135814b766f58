"""A case in any orientation is the same case, and its prediction lies on the grid of its files."""

import itertools
import zlib
from pathlib import Path
from types import MappingProxyType

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from data_pipeline.cache.fill import prepare_cases
from data_pipeline.case import Case
from data_pipeline.conventions import MODALITIES, OUTSIDE_BRAIN
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing.subject import Subject, load_subject, to_original_grid
from data_pipeline.reading.nifti import read_label
from data_pipeline.reading.write_back import write_label
from tests.data_pipeline.cases import tiny_classes, tiny_images

SHAPE = 15, 18, 12
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
TURN = nib.eulerangles.euler2mat(0.07, -0.05, 0.03)  # radians; oblique as scanners are


def base_affine(spacing) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN @ np.diag(spacing), (-90.5, 126.25, -72)
    return affine


def volumes() -> dict[str, np.ndarray]:
    """Different in every direction: the tumour, a box, lies off the centre."""
    rng = np.random.default_rng(0)
    classes = np.roll(tiny_classes(SHAPE), (1, -2, 1), (0, 1, 2))
    images = tiny_images(SHAPE, MODALITIES, rng)
    made = {m: image + np.int16(300) * (classes == 1 + i % 3) for i, (m, image) in enumerate(images.items())}
    return {**made, "seg": np.array([0, 1, 2, 4], np.uint8)[classes]}


def write_turned(folder: Path, orientation: np.ndarray, tail: tuple[int, ...] = (), spacing=(1, 1, 1)) -> Case:
    """The case with its axes stored in another order and direction; sform and qform say so."""
    folder = folder / "BraTS2021_00000"
    folder.mkdir(parents=True)
    for name, values in volumes().items():
        turned = orientations.apply_orientation(values, orientation)
        affine = base_affine(spacing) @ orientations.inv_ornt_aff(orientation, SHAPE)
        image = nib.Nifti1Image(turned.reshape(turned.shape + tail), affine)
        image.header.set_sform(affine, code=2)
        image.header.set_qform(affine, code=1)
        nib.save(image, folder / f"{folder.name}_{name}.nii.gz")
    return find_cases(folder)[0]


def digest(subject: Subject) -> tuple[int, ...]:
    return tuple(zlib.crc32(np.ascontiguousarray(a).tobytes()) for a in (subject.images, subject.mask, subject.label))


def predict_label(subject: Subject, path: Path) -> np.ndarray:
    """The case's own label as a certain network would give it, written for the user."""
    classes = np.where(subject.label == OUTSIDE_BRAIN, 0, subject.label)
    logits = np.eye(4, dtype=np.float32)[classes]
    full = np.concatenate([rows for _, rows in to_original_grid(logits, subject, (1, 0, 0, 0))])
    predicted = full.argmax(axis=-1).astype(np.uint8)
    write_label(path, predicted, subject.reference, subject.case.convention)
    return predicted


def assert_on_the_grid_of(path: Path, reference: Path) -> None:
    written, source = nib.load(path), nib.load(reference)
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    for name in ("sform_code", "qform_code", "xyzt_units", "pixdim", "quatern_b", "quatern_c", "quatern_d", "srow_x"):
        np.testing.assert_array_equal(written.header[name], source.header[name])


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[float, tuple[int, ...]]:
    case = write_turned(tmp_path_factory.mktemp("straight"), ORIENTATIONS[0])
    return {spacing: digest(load_subject(case, spacing)) for spacing in (1.0, 1.6)}


def test_there_are_48_orientations():
    assert len({o.tobytes() for o in ORIENTATIONS}) == 48


@pytest.mark.parametrize("tail", [(), (1,)])
@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(nib.orientations.ornt2axcodes(o)))
def test_every_orientation_is_prepared_alike_and_predicted_on_its_own_grid(tmp_path, expected, orientation, tail):
    case = write_turned(tmp_path, orientation, tail)
    subject = load_subject(case, 1.0)
    assert digest(subject) == expected[1.0]
    assert digest(load_subject(case, 1.6)) == expected[1.6]
    predict_label(subject, tmp_path / "predicted.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "predicted.nii.gz").dataobj), np.asarray(nib.load(case.label).dataobj)
    )
    assert_on_the_grid_of(tmp_path / "predicted.nii.gz", case.images["t1"])


def test_cached_files_are_the_same_bytes(tmp_path):
    folders = []
    for place in (0, 13, 47):
        case = write_turned(tmp_path / str(place), ORIENTATIONS[place], (1,) * (place % 2))
        folders.append(prepare_cases([case], 1.0, tmp_path / f"cache{place}", workers=0, progress=False)[0].folder)
    for name in ("images.npy", "label.npy"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


@pytest.mark.parametrize(
    ("spacing", "whole", "least"),
    [((0.8, 0.8, 0.8), 0.85, 0.65), ((1.25, 1.25, 1.25), 0.97, 0.9), ((1, 1, 2), 0.97, 0.9), ((0.9, 0.9, 4), 0.9, 0.9)],
    ids=str,
)
@pytest.mark.parametrize("orientation", [ORIENTATIONS[0], ORIENTATIONS[29]], ids=["straight", "turned"])
def test_off_1_mm_a_prediction_comes_back_on_the_original_grid(tmp_path, orientation, spacing, whole, least):
    """Dice after 1 mm and back of the tumour and of the worst class, of 24 voxels. Finer files lose detail."""
    case = write_turned(tmp_path, orientation, spacing=spacing)
    subject = load_subject(case, 1.0)
    assert subject.spacing == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(np.multiply(subject.mask.shape, 1.0), brain_mm(case), atol=0.51)
    predicted = predict_label(subject, tmp_path / "predicted.nii.gz")
    assert_on_the_grid_of(tmp_path / "predicted.nii.gz", case.images["t1"])
    label = read_label(case.label, case.convention)[0]
    assert dice(label > 0, predicted > 0) > whole
    assert min(dice(label == index, predicted == index) for index in (1, 2, 3)) > least


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def brain_mm(case: Case) -> np.ndarray:
    """Edges of the brain's bounding box in the file."""
    subject = load_subject(case, load_subject(case, 1.0).reference.spacing)
    return np.multiply(subject.mask.shape, subject.spacing)


def test_a_4d_file_turned_is_prepared_alike(tmp_path, expected):
    case = write_turned(tmp_path, ORIENTATIONS[21])
    images = [nib.load(case.images[m]) for m in MODALITIES]
    joined = tmp_path / "joined.nii.gz"
    stacked = np.stack([np.asarray(image.dataobj) for image in images], axis=-1)
    nib.save(nib.Nifti1Image(stacked, images[0].affine), joined)
    channels = MappingProxyType({m: i for i, m in enumerate(MODALITIES)})
    one = Case(case.id, case.patient, dict.fromkeys(MODALITIES, joined), case.label, case.convention, "msd", channels)
    subject = load_subject(one, 1.0)
    assert digest(subject) == expected[1.0]
    predict_label(subject, tmp_path / "predicted.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(nib.load(tmp_path / "predicted.nii.gz").dataobj), np.asarray(nib.load(case.label).dataobj)
    )
