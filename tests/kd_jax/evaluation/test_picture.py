import io
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from data_pipeline.case import Case
from data_pipeline.command_line import run_command
from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.preprocessing.subject import Subject
from data_pipeline.reading.nifti import Geometry
from kd_jax import evaluate
from kd_jax.evaluation import results as evaluation_results
from kd_jax.evaluation.picture import (
    COLOURS,
    CaseView,
    Outcome,
    Row,
    choose_slice,
    draw_cases,
    mean_dice,
    pick_cases,
    radiological,
    take_classes,
    take_view,
)
from kd_jax.inference.segmenter import Segmentation
from kd_jax.metrics import region_scores
from tests.data_pipeline.cases import write_case
from tests.kd_jax.fake_run import write_run, write_split

WHOLE = (slice(0, 12), slice(0, 10), slice(0, 8))


def segmentation(classes, images, crop=WHOLE, spacing=(1.0, 1.0, 1.0)):
    """A segmented case whose brain fills the box."""
    affine, shape = np.diag([*spacing, 1.0]), classes.shape
    grid = Geometry(
        affine=affine,
        spacing=spacing,
        shape=shape,
        source=Path("case_flair.nii.gz"),
        shape_on_disk=shape,
        affine_on_disk=affine,
        header_on_disk=nib.Nifti1Header(),
    )
    subject = Subject(
        case=Case("case", "case", {}, None, CONVENTIONS["brats2018"], "brats"),
        images=images,
        mask=np.ones(images.shape[:3], bool),
        label=None,
        modalities=MODALITIES,
        spacing=spacing,
        crop=crop,
        reference=grid,
        findings=(),
    )
    return Segmentation(classes, None, subject, ())


def scores(prediction, reference, rule="brats"):
    return region_scores(prediction, reference, (1.0, 1.0, 1.0), rule)


def drawn(path, rows):
    draw_cases(path, rows, "title")
    return imread(io.BytesIO(path.read_bytes()))[..., :3]


def middle(image, colour):
    """Mean row and column of the pixels of a colour, the legend's excluded."""
    found = np.argwhere(np.all(np.abs(image - colour) < 0.02, axis=-1))
    return found[found[:, 0] < 0.9 * image.shape[0]].mean(axis=0)


def test_the_slice_with_most_tumour_is_chosen():
    reference = np.zeros((12, 10, 8), np.uint8)
    reference[2:4, 2:4, 2], reference[2:5, 2:5, 5], reference[3, 3, 6] = 3, 1, 2
    assert choose_slice(reference, WHOLE) == 5


def test_without_tumour_it_is_the_middle_of_the_brain():
    crop = (slice(2, 9), slice(1, 8), slice(2, 6))
    assert choose_slice(np.zeros((12, 10, 8), np.uint8), crop) == 4


def test_what_is_kept_of_a_case_has_two_dimensions_and_holds_no_volume():
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, (12, 10, 8)).astype(np.uint8)
    case = segmentation(classes, rng.normal(size=(12, 10, 8, 4)).astype(np.float32))
    view = take_view(case, classes, ("t1ce", "flair"))
    kept = [*view.images.values(), view.reference, take_classes(case, view)]
    assert list(view.images) == ["t1ce", "flair"]
    for array in kept:
        assert array.ndim == 2 and array.dtype == np.uint8
        assert array.base is None or array.base.size == array.size
    np.testing.assert_array_equal(kept[-1], classes[:, :, view.axial])


def test_the_image_of_a_coarser_grid_is_the_slice_that_covers_the_same_place():
    reference = np.zeros((12, 10, 8), np.uint8)
    reference[3, 3, 5] = 1
    crop = (slice(0, 12), slice(0, 10), slice(1, 7))  # 6 slices of 1 mm, 3 of 2 mm: 5 lies in the last of them
    images = np.zeros((6, 5, 3, 4), np.float32)
    images[np.arange(3), 0, np.arange(3)] = 1  # slice i is bright in row i
    view = take_view(segmentation(reference, images, crop), reference, ("t2",))
    assert view.axial == 5 and view.images["t2"][:, 0].argmax() == 2


def test_radiological_convention():
    """RAS+: x grows to the patient's right, y to anterior."""
    plane = np.zeros((4, 3), int)
    plane[0, 1], plane[2, 2] = 1, 2  # at the patient's left; anterior
    screen = radiological(plane)
    assert screen.shape == (3, 4)
    assert screen[1, 3] == 1 and screen[0, 1] == 2
    assert radiological(np.zeros((4, 3, 5))).shape == (3, 4, 5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 3.0)])
def test_what_is_left_and_anterior_is_drawn_right_and_above_in_the_aspect_of_the_patient(tmp_path, spacing):
    classes = np.zeros((60, 40), np.uint8)
    classes[2:8, 18:22], classes[28:32, 33:39], classes[28:32, 2:8] = 1, 2, 3  # left, anterior, posterior
    box = (slice(0, 60), slice(0, 40))
    view = CaseView(3, {"flair": np.zeros((60, 40), np.uint8)}, classes, box, spacing)
    image = drawn(tmp_path / "cases.png", [Row("case", view, {})])
    left, anterior, posterior = (middle(image, to_rgb(COLOURS[name])) for name in ("NCR", "ED", "ET"))
    assert left[1] > anterior[1] + 20 and anterior[0] < left[0] < posterior[0]
    pixels_per_mm = (left[1] - anterior[1]) / ((29.5 - 4.5) * spacing[0])
    assert (posterior[0] - anterior[0]) / ((35.5 - 4.5) * spacing[1]) == pytest.approx(pixels_per_mm, rel=0.05)


def test_the_overlay_lies_on_the_image_where_the_brain_s_box_is_only_a_part(tmp_path):
    classes = np.zeros((60, 40), np.uint8)
    classes[20:26, 12:18] = 3
    grey = np.zeros((15, 10), np.uint8)  # 2 mm voxels of a box of 30 × 20
    grey[5:8, 2:5] = 255  # 10 + 2 · 5 = 20 to 26, 8 + 2 · 2 = 12 to 18
    view = CaseView(3, {"t1": grey}, classes, (slice(10, 40), slice(8, 28)), (1.0, 1.0))
    image = drawn(tmp_path / "cases.png", [Row("case", view, {})])
    third = image.shape[1] // 2
    white = middle(image[:, :third], (1.0, 1.0, 1.0))
    outline = middle(image[:, third:], to_rgb(COLOURS["ET"]))
    assert white[0] == pytest.approx(outline[0], abs=2)


def test_cases_are_picked_evenly_from_the_worst_to_the_best():
    means = {f"case{i}": i / 10 for i in (4, 9, 0, 6, 2, 7, 1)}
    assert pick_cases(means) == ["case0", "case2", "case6", "case9"]
    assert pick_cases({"b": 0.5, "a": 0.5, "c": math.nan}) == ["a", "b", "c"]


def test_the_mean_leaves_out_regions_without_a_dice():
    empty, full = np.zeros((3, 3, 3), np.uint8), np.full((3, 3, 3), 2, np.uint8)
    assert mean_dice(scores(full, full, "nan")) == 1  # only WT is there
    assert math.isnan(mean_dice(scores(empty, empty, "nan")))


def test_a_network_without_a_result_has_the_reason_in_its_place(tmp_path):
    plane = np.zeros((12, 10), np.uint8)
    view = CaseView(3, {"flair": plane, "t1ce": plane}, plane, WHOLE[:2], (1.0, 1.0))
    volume = np.zeros((3, 3, 3), np.uint8)
    rows = [Row("case", view, {"student": Outcome(plane, scores(volume, volume)), "teacher": "no t1"})]
    without = [Row("case", view, {"student": rows[0].networks["student"]})]
    assert drawn(tmp_path / "a.png", rows).shape[1] > drawn(tmp_path / "b.png", without).shape[1]


def test_a_picture_that_cannot_be_written_is_named(tmp_path):
    plane = np.zeros((12, 10), np.uint8)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cases\.png: cannot be written"):
        view = CaseView(3, {"flair": plane}, plane, WHOLE[:2], (1.0, 1.0))
        draw_cases(tmp_path / "file" / "cases.png", [Row("case", view, {})], "title")


def test_evaluate_draws_both_networks_on_the_same_slices_and_names_the_file(tmp_path, capsys, monkeypatch):
    for number in range(5):
        write_case(tmp_path / "data", rng=np.random.default_rng(number), number=number)
    write_case(
        tmp_path / "data", rng=np.random.default_rng(5), number=5, modalities=("t1ce", "flair"), shape=(14, 16, 14)
    )
    run = write_run(tmp_path / "run", student="ET", teacher="background")
    write_split(run, tmp_path / "data", train=[], validation=[])
    seen = []
    monkeypatch.setattr(evaluation_results, "draw_cases", lambda *a: seen.append(a) or draw_cases(*a))
    assert run_command(evaluate.main, [str(run), "--data", str(tmp_path / "data"), "--network", "both"]) == 0
    picture = run / "evaluation" / "data" / "cases.png"
    assert imread(picture).ndim == 3
    out = " ".join(capsys.readouterr().out.split())
    assert f"Picture: {picture} (4 of 6 cases, from the student's worst mean Dice to its best)" in out
    ((_, rows, title),) = seen
    assert len(rows) == 4 and "run on data: 4 of 6 cases, from the student's worst mean Dice to its best" in title
    means = [mean_dice(row.networks["student"].scores) for row in rows]
    assert means == sorted(means)
    for row in rows:
        assert list(row.view.images) == ["t1ce", "flair"] and list(row.networks) == ["student", "teacher"]
        if isinstance(row.networks["teacher"], Outcome):
            assert not row.networks["teacher"].classes.any()
        else:
            assert row.networks["teacher"] == "no t1, t2, which the teacher needs"
