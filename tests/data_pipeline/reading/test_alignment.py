"""Files that do not lie on each other are named with what would mend them; ordinary brains are not suspected."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from data_pipeline.formats import find_cases
from data_pipeline.phantom.write import make_phantoms
from data_pipeline.reading.alignment import check_alignment
from data_pipeline.reading.checks import CheckedImage
from data_pipeline.reading.information import FLIPS
from data_pipeline.reading.mirrored import flip_name
from data_pipeline.reading.scan import inspect_case
from tests.data_pipeline.cases import rewrite, write_nifti

SHAPE = (46, 52, 40)
FILES = {m: Path(f"case_{m}.nii.gz") for m in ("t1", "t1ce", "t2", "flair")}
LABEL = Path("case_seg.nii.gz")
MENDED = Path("mended", *Path.cwd().parts[1:])
FRAGMENT = (1, 1, 1)
"""Spacing with which so few voxels are less than a brain."""
CONTRAST = {"t1": lambda x: x, "t1ce": lambda x: x**2 + x, "t2": lambda x: 3 - x, "flair": lambda x: np.sin(2 * x)}


def made(rng, asymmetry=0.5):
    """Four modalities of one brain, off the centre of the grid and nearly symmetric left to right, with oedema."""
    tissue = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    tissue /= tissue.std()
    tissue = (1 - asymmetry) * (tissue + tissue[::-1]) + asymmetry * tissue
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    brain = (
        sum(((grid[axis] - at) / size) ** 2 for axis, (at, size) in enumerate([(0, 0.8), (-0.1, 0.8), (0.05, 0.9)])) < 1
    )
    oedema = brain & (sum((grid[axis] - at) ** 2 for axis, at in enumerate([0.4, -0.3, 0.3])) < 0.25**2)
    images = {}
    for m, contrast in CONTRAST.items():
        data = 10 + contrast(tissue) + 0.2 * rng.normal(size=SHAPE)
        data[oedema] += 5 if m == "flair" else 0
        images[m] = CheckedImage(np.where(brain, data, 0).astype(np.float32), brain, False, ())
    return images, np.where(oedema, np.uint8(2), np.uint8(0))


@pytest.fixture
def case():
    return made(np.random.default_rng(0))


def mirrored(image, axes):
    return CheckedImage(np.flip(image.data, axes), np.flip(image.foreground, axes), False, ())


def check(images, classes=None, spacing=(4, 4, 4)):
    union = np.logical_or.reduce([image.foreground for image in images.values()])
    crop = ndimage.find_objects(union.view(np.uint8))[0]
    files = {m: FILES[m] for m in images}
    return check_alignment(images, crop, union[crop], spacing, files, classes, None if classes is None else LABEL)


SETS = [("t1", "t1ce", "t2", "flair"), ("t1ce", "t2", "flair"), ("t1ce", "flair"), ("t1", "t2"), ("flair",)]


@pytest.mark.parametrize("modalities", SETS, ids="-".join)
@pytest.mark.parametrize("labelled", [True, False])
def test_files_that_fit_are_not_suspected(case, modalities, labelled):
    images, classes = case
    assert check({m: images[m] for m in modalities}, classes if labelled else None) == []


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
    data = images["t1"].data - 5 * (classes == 2)
    assert check({"flair": CheckedImage(data, images["t1"].foreground, False, ())}, classes) == []


def moved(image, axis, voxels):
    return CheckedImage(np.roll(image.data, voxels, axis), np.roll(image.foreground, voxels, axis), False, ())


BACK = {(0, 1): "left", (0, -1): "right", (1, 1): "back", (1, -1): "front", (2, 1): "bottom", (2, -1): "top"}


@pytest.mark.parametrize(("axis", "sign"), BACK)
@pytest.mark.parametrize("voxels", [1, 2])
@pytest.mark.parametrize("modalities", SETS[:2], ids="-".join)
def test_a_moved_image_is_named_with_the_way_back(case, axis, sign, voxels, modalities):
    images, classes = case
    images = {m: images[m] for m in modalities} | {"t2": moved(images["t2"], axis, sign * voxels)}
    [finding] = check(images, classes)
    others = ", ".join(m.upper() for m in modalities if m != "t2")
    way = f"about {4 * voxels} mm to the {BACK[axis, sign]}"
    assert (finding.severity, finding.file) == ("warning", FILES["t2"])
    assert finding.found == f"T2 fits {others} better when moved {way}"
    assert finding.command.endswith("-in case_t2.nii.gz -ref case_t1ce.nii.gz -dof 6 -out " + str(MENDED / FILES["t2"]))


def test_distances_are_millimetres(case):
    images, _ = case
    images["flair"] = moved(images["flair"], 1, 1)
    [finding] = check(images, spacing=(4, 5, 6))
    assert finding.found.endswith("about 5 mm to the back")
    images["flair"] = moved(images["flair"], 1, 1)
    [finding] = check(images, spacing=(2, 2.5, 4))  # two voxels are the nearest to 4 mm
    assert finding.found.endswith("about 5 mm to the back")


def test_of_two_moved_images_either_may_be_the_one(case):
    images, _ = case
    [finding] = check({"t1ce": images["t1ce"], "flair": moved(images["flair"], 2, 1)})
    assert finding.found in (
        "T1CE fits FLAIR better when moved about 4 mm to the top",
        "FLAIR fits T1CE better when moved about 4 mm to the bottom",
    )


def test_two_moved_together_are_told_from_the_others(case):
    images, _ = case
    for m in ("t2", "flair"):
        images[m] = moved(images[m], 0, 2)
    found = {f.file: f.found for f in check(images)}
    assert found.keys() in ({FILES["t2"], FILES["flair"]}, {FILES["t1"], FILES["t1ce"]})
    assert all(text.endswith(("to the left", "to the right")) for text in found.values())


def test_a_moved_and_a_mirrored_image(case):
    images, classes = case
    images["t1"], images["t2"] = moved(images["t1"], 1, -1), mirrored(images["t2"], 0)
    found = {f.file: f.found.split("better when ")[1] for f in check(images, classes)}
    assert found == {FILES["t1"]: "moved about 4 mm to the front", FILES["t2"]: "mirrored left-right"}


@pytest.mark.parametrize(("axis", "sign"), BACK)
@pytest.mark.parametrize("modalities", SETS[:3], ids="-".join)
def test_a_moved_label_is_named_with_the_way_back(case, axis, sign, modalities):
    images, classes = case
    images = {m: images[m] for m in modalities}
    [finding] = check(images, np.roll(classes, 2 * sign, axis))
    assert (finding.severity, finding.file, finding.command) == ("warning", LABEL, None)
    others = ", ".join(m.upper() for m in modalities)
    assert finding.found == f"label fits {others} better when moved about 8 mm to the {BACK[axis, sign]}"
    assert "another origin" in finding.remedy


def test_a_label_moves_with_the_images_it_was_drawn_on(case):
    images, classes = case
    with_it = {m: moved(image, 1, 1) for m, image in images.items()}
    assert check(with_it, np.roll(classes, 1, 1)) == []
    with_it["t1"] = images["t1"]
    assert [f.file for f in check(with_it, np.roll(classes, 1, 1))] == [FILES["t1"]]
    assert (
        check({m: i for m, i in images.items() if m != "flair"}, np.roll(classes, 2, 1)) == []
    )  # nothing to see it by


@pytest.fixture
def stranger():
    return made(np.random.default_rng(7))[0]


@pytest.mark.parametrize("name", FILES)
def test_an_image_of_another_patient_is_named(case, stranger, name):
    images, classes = case
    images[name] = stranger[name]
    [finding] = check(images, classes if name != "flair" else None)
    others = ", ".join(m.upper() for m in FILES if m != name)
    assert (finding.severity, finding.file) == ("warning", FILES[name])
    assert finding.brief().startswith(f"{name.upper()} has little in common with {others}: another patient's, or not")
    assert f"-in {FILES[name]} -ref case_{'t1' if name == 't1ce' else 't1ce'}.nii.gz" in finding.command


def test_images_of_two_patients_two_each(case, stranger):
    images = {**case[0], "t2": stranger["t2"], "flair": stranger["flair"]}
    [finding] = check(images)
    assert "have little in common with" in finding.found
    assert {*finding.found.split(":")[0].replace(",", "").split()} >= {"T1", "T1CE", "T2", "FLAIR"}


def test_images_far_from_each_other_have_nothing_in_common(case):
    images, _ = case
    images["t1"] = moved(images["t1"], 1, 6)
    [finding] = check(images)
    assert finding.file == FILES["t1"] and "little in common" in finding.found


def test_a_fragment_or_too_few_voxels_are_not_judged(case, stranger):
    images = {**case[0], "t1": stranger["t1"], "t2": moved(case[0]["t2"], 0, 1)}
    assert len(check(images)) == 2
    assert check(images, spacing=(1, 1, 1)) == []
    coarse = {m: CheckedImage(i.data[::3, ::3, ::3], i.foreground[::3, ::3, ::3], False, ()) for m, i in images.items()}
    assert check(coarse, spacing=(12, 12, 12)) == []


def constant(images, shape):
    return {m: CheckedImage(np.ones(shape, np.float32), np.ones(shape, bool), False, ()) for m in images}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (5, 5, 5), SHAPE])
@pytest.mark.parametrize("label", [0, 2])
def test_odd_input_is_not_judged(rng, shape, label):
    classes = np.full(shape, label, np.uint8)
    everywhere = np.ones(shape, bool)
    noise = {m: CheckedImage(rng.normal(size=shape).astype(np.float32), everywhere, False, ()) for m in FILES}
    for images in (noise, constant(FILES, shape), {**noise, **constant(["t1", "flair"], shape)}, {"t1": noise["t1"]}):
        assert check(images, classes, FRAGMENT) == check(images, spacing=FRAGMENT) == []
    nothing = {m: CheckedImage(i.data, ~everywhere, False, ()) for m, i in noise.items()}
    assert (
        check_alignment(nothing, tuple(slice(0, n) for n in shape), ~everywhere, FRAGMENT, FILES, classes, LABEL) == []
    )
    assert check({**noise, "flair": nothing["flair"]}, classes, FRAGMENT) == []
    huge = {
        m: CheckedImage(i.data / np.abs(i.data).max() * np.float32(3e38), everywhere, False, ())
        for m, i in noise.items()
    }
    assert check(huge, classes, FRAGMENT) == []


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    make_phantoms(folder, 1, 0, 2.0, 1, progress=False)
    return folder


@pytest.fixture
def on_disk(phantom, tmp_path):
    [case] = find_cases(shutil.copytree(phantom, tmp_path / "phantom"))
    return case


def mirrored_files(case, **options):
    found = [f for f in inspect_case(case, **options).findings if "mirrored" in f.found]
    return {f.file: f.found.rsplit("mirrored ")[1] for f in found}


def test_files_on_disk(on_disk):
    assert mirrored_files(on_disk) == {}
    flair, label = on_disk.images["flair"], on_disk.label
    rewrite(flair, lambda voxels: voxels[::-1])
    assert mirrored_files(on_disk) == {flair: "left-right"}
    rewrite(label, lambda voxels: voxels[::-1])
    assert mirrored_files(on_disk) == {flair: "left-right", label: "left-right"}


def test_a_moved_file_on_disk(on_disk):
    t2 = on_disk.images["t2"]
    rewrite(t2, lambda voxels: np.roll(voxels, 3, 1))
    [finding] = [f for f in inspect_case(on_disk).findings if "better when moved" in f.found]
    assert finding.file == t2 and "T2 fits T1, T1CE, FLAIR" in finding.found
    assert shlex.split(finding.command)[5:9] == ["-in", str(t2), "-ref", str(on_disk.images["t1ce"])]


def test_of_images_that_lie_apart_nothing_else_is_said(on_disk):
    """T2 lies where T1 has no brain, and would be taken for a wrong file by its tissues."""
    t2 = on_disk.images["t2"]
    rewrite(t2, lambda voxels: np.roll(voxels, 12, 1))
    [_, finding] = [f for f in inspect_case(on_disk).findings if f.severity == "warning"]
    assert finding.file == t2 and "little in common" in finding.found


def test_volumes_of_one_file_have_no_command_of_their_own(on_disk, tmp_path):
    images = {m: nib.load(path) for m, path in on_disk.images.items()}
    volumes = [np.roll(np.asanyarray(image.dataobj), 3 * (m == "t2"), 1) for m, image in images.items()]
    whole = write_nifti(tmp_path / "4d.nii.gz", np.stack(volumes, -1), images["t1"].affine)
    channels = {m: number for number, m in enumerate(images)}
    case = replace(on_disk, images=dict.fromkeys(images, whole), channels=channels, label=None)
    [finding] = [f for f in inspect_case(case).findings if "better when moved" in f.found]
    assert (finding.file, finding.command) == (whole, None) and finding.found.startswith("T2 fits")


def test_a_wrong_header_that_is_ignored_is_found_out(on_disk):
    """LPS voxels under an RAS affine are an error; where that is ignored, they are a half turn away."""
    t2 = on_disk.images["t2"]
    rewrite(t2, lambda voxels: voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert mirrored_files(on_disk) == {}
    assert mirrored_files(on_disk, ignore_affine=True) == {t2: "left-right and front-back"}
