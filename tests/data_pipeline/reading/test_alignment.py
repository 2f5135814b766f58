"""Files that do not lie on each other are named with what would mend them; ordinary brains are not suspected."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.layouts.find import find_cases
from data_pipeline.phantom.data_set import case_name
from data_pipeline.reading.alignment import check_alignment
from data_pipeline.reading.checks import CheckedImage
from data_pipeline.reading.scan import inspect_case
from tests.data_pipeline.brains import FILES, FRAGMENT, LABEL, SETS, SHAPE, check, made, mirrored, moved
from tests.data_pipeline.cases import rewrite, write_nifti

MENDED = Path("mended", *Path.cwd().parts[1:])
BACK = {(0, 1): "left", (0, -1): "right", (1, 1): "back", (1, -1): "front", (2, 1): "bottom", (2, -1): "top"}


@pytest.fixture
def case():
    return made(np.random.default_rng(0))


@pytest.mark.parametrize("modalities", SETS, ids="-".join)
@pytest.mark.parametrize("labelled", [True, False])
def test_files_that_fit_are_not_suspected(case, modalities, labelled):
    images, classes = case
    assert check({m: images[m] for m in modalities}, classes if labelled else None) == []


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


def test_two_images_moved_together_are_named(case):
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


@pytest.fixture
def on_disk(phantoms, tmp_path):
    [case] = find_cases(shutil.copytree(phantoms / case_name(0), tmp_path / "phantom"))
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


def test_misaligned_images_are_not_suspected_of_anything_else(on_disk):
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
