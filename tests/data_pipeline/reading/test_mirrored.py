"""Mirrored files are named with their mirroring; ordinary and symmetric brains are not suspected."""

import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.reading.checks import CheckedImage
from data_pipeline.reading.information import FLIPS
from data_pipeline.reading.mirrored import flip_name
from tests.data_pipeline.brains import FILES, LABEL, SETS, check, made, mirrored


@pytest.fixture
def case():
    return made(np.random.default_rng(0))


@pytest.mark.parametrize("axes", FLIPS[1:], ids=flip_name)
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["t1", "flair"])
def test_one_mirrored_image_is_named(case, axes, labelled, name):
    images, classes = case
    images[name] = mirrored(images[name], axes)
    [finding] = check(images, classes if labelled else None)
    assert (finding.severity, finding.file) == ("warning", FILES[name])
    assert finding.found == f"{name.upper()} fits the case's other files better when mirrored {flip_name(axes)}"
    assert "flip back" in finding.remedy


def test_mirrorings_have_names_of_canonical_axes():
    names = ["left-right", "front-back", "left-right and front-back", "top-bottom"]
    assert [flip_name(axes) for axes in [(0,), (1,), (0, 1), (2,)]] == names


@pytest.mark.parametrize("axes", FLIPS[1:], ids=flip_name)
@pytest.mark.parametrize("modalities", SETS[:3], ids="-".join)
def test_a_mirrored_label_is_named(case, axes, modalities):
    images, classes = case
    [finding] = check({m: images[m] for m in modalities}, np.flip(classes, axes))
    assert finding.file == LABEL
    assert finding.found == f"label fits the case's other files better when mirrored {flip_name(axes)}"


def test_of_two_images_both_are_named_and_the_label_decides(case):
    images, classes = case
    two = {"t1ce": mirrored(images["t1ce"], 0), "flair": images["flair"]}
    [finding] = check(two)
    assert finding.found == "T1CE and FLAIR fit each other better when mirrored left-right"
    [finding] = check(two, classes)
    assert finding.file == FILES["t1ce"]
    [finding] = check(two, classes[::-1])
    assert finding.file == FILES["flair"]


def test_two_against_two_are_named_together(case):
    images, classes = case
    for m in ("t2", "flair"):
        images[m] = mirrored(images[m], (0, 1))
    [finding] = check(images)
    assert finding.found.startswith("T1, T1CE and T2, FLAIR fit each other better when mirrored left-right and front")
    assert [f.file for f in check(images, classes)] == [FILES["t2"], FILES["flair"]]


def test_two_files_mirrored_in_their_own_ways(case):
    images, _ = case
    images["t1"], images["t2"] = mirrored(images["t1"], 0), mirrored(images["t2"], 2)
    found = {f.file: f.found.rsplit("mirrored ")[1] for f in check(images)}
    assert found == {FILES["t1"]: "left-right", FILES["t2"]: "top-bottom"}


def test_mirrored_about_the_brain_as_after_registration(case):
    images, _ = case
    crop = ndimage.find_objects(images["t2"].foreground.view(np.uint8))[0]
    for axes in FLIPS[1:]:
        changed = images["t2"].data.copy()
        changed[crop] = np.flip(changed[crop], axes)
        [finding] = check({**images, "t2": CheckedImage(changed, changed != 0, False, ())})
        assert finding.file == FILES["t2"] and finding.found.endswith(flip_name(axes))


def test_a_speck_outside_the_brain_changes_nothing(case):
    fine = {m: enlarged(image) for m, image in case[0].items()}
    fine["t2"].foreground[1, 2, 1] = True
    fine["flair"] = mirrored(fine["flair"], 0)
    assert [f.file for f in check(fine)] == [FILES["flair"]]


def enlarged(image):
    """Twice as many voxels per axis."""
    return CheckedImage(
        np.kron(image.data, np.ones((2, 2, 2), np.float32)),
        np.kron(image.foreground, np.ones((2, 2, 2), bool)),
        False,
        (),
    )


def test_scale_offset_and_normalisation_do_not_matter(case):
    images, classes = case
    shifted = {m: CheckedImage(0.01 * i.data - 7, i.foreground, False, ()) for m, i in images.items()}
    assert check(shifted, classes) == []
    shifted["t1"] = mirrored(shifted["t1"], 0)
    assert [f.file for f in check(shifted, classes)] == [FILES["t1"]]


def test_a_symmetric_brain_looks_the_same_in_the_mirror():
    images, _ = made(np.random.default_rng(1), asymmetry=0)
    for m in ("t1", "t1ce", "t2"):
        assert check({m: images[m], "flair": mirrored(images["flair"], 0)}) == []


def test_a_label_on_both_sides_is_not_judged(case):
    images, classes = case
    both = np.maximum(classes, classes[::-1])
    assert check({"flair": images["flair"]}, both[::-1]) == []


def test_another_image_under_the_name_of_flair_is_no_mirrored_label(case):
    """Oedema that is darker than the other side, which is not bright either."""
    images, classes = case
    data = images["t1"].data - np.float32(5) * (classes == 2)
    assert check({"flair": CheckedImage(data, images["t1"].foreground, False, ())}, classes) == []
