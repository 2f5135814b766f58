"""The front door: what `import kd_jax` promises."""

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt

import kd_jax
from data_pipeline.command_line import run_command
from data_pipeline.conventions import CONVENTIONS
from kd_jax import predict
from kd_jax.postprocessing.rule import Postprocessing, save_postprocessing
from tests.data_pipeline.cases import file_of, write_case
from tests.kd_jax.fake_run import write_run

ROOT = Path(__file__).resolve().parents[2]
CASE = "BraTS2021_00000"
SEEN = ("t1ce", "flair")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "random", student=9, spacing=1.4, patch=16)


@pytest.fixture(scope="module")
def segmenter(run):
    return kd_jax.load(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A patient whose T1CE has axes in another order and direction than the other images."""
    case = write_case(tmp_path_factory.mktemp("data"), rng=np.random.default_rng(0))
    t1ce = file_of(case, CASE, "t1ce")
    nib.save(turned(nib.load(t1ce), "SPL"), t1ce)
    return case


@pytest.fixture(scope="module")
def files(folder):
    return {m: file_of(folder, CASE, m) for m in SEEN}


@pytest.fixture(scope="module")
def predicted(run, folder, tmp_path_factory):
    """What the command writes, on the grid of T1CE, the first image in channel order: labels and probabilities."""
    out = tmp_path_factory.mktemp("out")
    assert run_command(predict.main, [str(run), str(folder), "-o", str(out), "--probabilities"]) == 0
    return tuple(nib.load(out / f"{CASE}{suffix}.nii.gz") for suffix in ("", "_probabilities"))


def turned(image, codes):
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(codes)))


def voxels(image):
    return np.asanyarray(image.dataobj)


def as_arrays(files, codes):
    """The images as arrays with axes in this order, and their affine."""
    images = {m: turned(nib.load(path), codes) for m, path in files.items()}
    return {m: image.get_fdata() for m, image in images.items()}, images["t1ce"].affine


FORMS = {
    "paths": lambda files: files,
    "strings": lambda files: {m: str(path) for m, path in files.items()},
    "nibabel": lambda files: {m: nib.load(path) for m, path in files.items()},
    "mixed": lambda files: {"t1ce": nib.load(files["t1ce"]), "flair": files["flair"]},
    "folder": lambda files: files["t1ce"].parent,
    "case": lambda files: kd_jax.find_cases(files["t1ce"].parent)[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_patient_is_segmented_as_by_the_command(segmenter, files, predicted, form, tmp_path):
    result = segmenter.segment(FORMS[form](files), probabilities=True)
    assert len(np.unique(result.labels)) > 2
    np.testing.assert_array_equal(result.values("brats2018"), voxels(predicted[0]))
    np.testing.assert_array_equal(result.probabilities, voxels(predicted[1]))
    np.testing.assert_array_equal(result.affine, nib.load(files["t1ce"]).affine)
    result.save(tmp_path / "labels.nii.gz", convention="brats2018")
    saved = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(voxels(saved), voxels(predicted[0]))
    assert saved.header["sform_code"] == predicted[0].header["sform_code"]
    np.testing.assert_array_equal(saved.affine, predicted[0].affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPL", "AIR"])
def test_labels_of_arrays_have_the_axes_of_the_arrays(segmenter, files, predicted, codes):
    arrays, affine = as_arrays(files, codes)
    before = {m: array.copy() for m, array in arrays.items()}
    result = segmenter.segment(arrays, affine=affine, probabilities=True)
    np.testing.assert_array_equal(result.values("brats2018"), voxels(turned(predicted[0], codes)))
    np.testing.assert_array_equal(result.probabilities.argmax(-1), result.labels)
    assert result.labels.shape == arrays["t1ce"].shape == result.probabilities.shape[:3]
    for m in arrays:
        np.testing.assert_array_equal(arrays[m], before[m])


def test_the_first_image_given_says_where_the_result_lies(segmenter, files, predicted):
    flair = nib.load(files["flair"])
    result = segmenter.segment({"t1": files["t1ce"], "flair": files["flair"], "t1ce": files["t1ce"]})
    assert nib.aff2axcodes(flair.affine) != nib.aff2axcodes(predicted[0].affine)
    np.testing.assert_array_equal(result.affine, flair.affine)
    codes = nib.aff2axcodes(flair.affine)
    np.testing.assert_array_equal(result.values("brats2018"), voxels(turned(predicted[0], codes)))


def test_the_result_says_how_large_each_part_is(segmenter, files):
    coarse = {m: nib.Nifti1Image(voxels(turned(nib.load(f), "RAS")), np.diag([1, 1.5, 2, 1])) for m, f in files.items()}
    result = segmenter.segment(coarse, accept_raw=True)
    assert result.spacing == (1.0, 1.5, 2.0)
    by_class = {
        name: np.count_nonzero(result.labels == value) * 3e-3 for value, name in enumerate(("", "NCR", "ED", "ET"))
    }
    assert result.volumes_ml["WT"] == pytest.approx(by_class["NCR"] + by_class["ED"] + by_class["ET"])
    assert result.volumes_ml["TC"] == pytest.approx(by_class["NCR"] + by_class["ET"])
    for part in ("WT", "TC", "ET"):
        assert np.count_nonzero(result.mask(part)) * 3e-3 == pytest.approx(result.volumes_ml[part])
    for part in ("NCR", "ED"):
        assert np.count_nonzero(result.mask(part)) * 3e-3 == pytest.approx(by_class[part])
    assert any("spacing 1 x 1.5 x 2 mm" in finding.found for finding in result.findings)
    assert {finding.file for finding in result.findings} <= {Path("t1ce image"), Path("flair image"), None}


def test_values_of_images_by_modality_are_the_labels_unless_a_convention_is_named(segmenter, files):
    by_modality, of_folder = segmenter.segment(files), segmenter.segment(files["t1ce"].parent)
    np.testing.assert_array_equal(by_modality.values(), by_modality.labels)
    np.testing.assert_array_equal(of_folder.values(), CONVENTIONS["brats2018"].encode(of_folder.labels))
    np.testing.assert_array_equal(of_folder.values("msd"), np.array([0, 2, 1, 3])[of_folder.labels])


def test_post_processing_is_that_of_the_command(run, files, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    save_postprocessing(copy, "student", Postprocessing(min_et_ml=100.0))
    segmenter = kd_jax.load(copy)
    assert run_command(predict.main, [str(copy), str(files["t1ce"].parent), "-o", str(tmp_path / "out")]) == 0
    written = voxels(nib.load(tmp_path / "out" / f"{CASE}.nii.gz"))
    plain = segmenter.segment(files, postprocess="none")
    np.testing.assert_array_equal(segmenter.segment(files).values("brats2018"), written)
    assert (plain.values("brats2018") != written).any()
    np.testing.assert_array_equal(
        segmenter.segment(files, postprocess=copy / "postprocessing.json").values("brats2018"), written
    )
    small = segmenter.segment(files, postprocess="none", min_et_ml=100.0)
    np.testing.assert_array_equal(small.labels, np.where(plain.labels == 3, 1, plain.labels))


def test_an_ensemble_is_that_of_the_command(run, files, tmp_path):
    other = write_run(tmp_path / "other", student=4, patch=16, modalities=("t1", "flair"))
    folder = files["t1ce"].parent
    out = tmp_path / "out"
    assert run_command(predict.main, [str(run), str(other), str(folder), "-o", str(out), "--mirror", "x"]) == 0
    ensemble = kd_jax.load(run, other, mirror=("x",))
    assert ensemble.modalities == ("t1", "t1ce", "flair")
    result = ensemble.segment({m: file_of(folder, CASE, m) for m in ("t1ce", "t1", "flair")})
    np.testing.assert_array_equal(result.affine, nib.load(files["t1ce"]).affine)
    written = turned(nib.load(out / f"{CASE}.nii.gz"), nib.aff2axcodes(result.affine))
    np.testing.assert_array_equal(result.values("brats2018"), voxels(written))


def _change(files, modality, change):
    return {m: nib.load(f) if m != modality else change(nib.load(f)) for m, f in files.items()}


def _with(image, values=None, affine=None):
    return nib.Nifti1Image(voxels(image) if values is None else values, image.affine if affine is None else affine)


def _nan(image):
    values = voxels(image).astype(np.float32)
    values[3, 3, 3] = np.nan
    return _with(image, values)


def _moved(image):
    return _with(image, affine=image.affine + np.array([[0, 0, 0, 3.0]] + 3 * [[0] * 4]))


WRONG_IMAGES = {
    "missing": (lambda f: {"flair": f["flair"]}, "no t1ce given; the student sees t1ce, flair: add what is missing"),
    "none": (lambda f: {}, "no images given; give some by modality: t1, t1ce, t2, flair"),
    "name": (lambda f: {**f, "T1CE": f["t1ce"]}, "'T1CE': not a modality (did you mean t1ce?); expected t1, t1ce"),
    "nan": (lambda f: _change(f, "t1ce", _nan), "t1ce image: 1 voxels are NaN or Inf; repeat the preprocessing"),
    "shape": (lambda f: _change(f, "flair", lambda i: i.slicer[1:]), "flair image: shape (13, 16, 12) differs from"),
    "4-D": (
        lambda f: _change(f, "flair", lambda i: _with(i, np.stack([voxels(i)] * 2, -1))),
        "flair image: shape (14, 16, 12, 2), expected one 3-D volume; split",
    ),
    "moved": (
        lambda f: _change(f, "flair", _moved),
        "flair image: affine [1 0 0 -10; 0 1 0 224; 0 0 1 0] differs from [1 0 0 -13; ",
    ),
    "no file": (lambda f: {**f, "flair": f["flair"].with_name("x.nii")}, "x.nii: cannot be read (No such file"),
    "no folder": (lambda f: f["flair"].with_name("nowhere"), "nowhere: "),
    "array": (lambda f: {m: voxels(nib.load(p)) for m, p in f.items()}, "t1ce image: an array does not say where its"),
}


@pytest.mark.parametrize("wrong", WRONG_IMAGES)
def test_images_that_cannot_be_used_are_refused_in_words(segmenter, files, wrong):
    change, found = WRONG_IMAGES[wrong]
    with pytest.raises(kd_jax.InputError) as error:
        segmenter.segment(change(files))
    assert found in str(error.value)


def test_all_errors_come_at_once(segmenter, files):
    with pytest.raises(kd_jax.InputError) as error:
        segmenter.segment({m: _nan(nib.load(path)) for m, path in files.items()})
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()] == ["t1ce image", "flair image"]


def test_images_with_other_affines_are_accepted_when_asked(segmenter, files, predicted):
    result = segmenter.segment(_change(files, "flair", _moved), ignore_affine=True)
    np.testing.assert_array_equal(result.values("brats2018"), voxels(predicted[0]))
    assert any("ignored as requested" in finding.remedy for finding in result.findings)


def test_scans_with_skull_are_refused_unless_accepted(segmenter, files):
    with_skull = {m: _with(image, np.maximum(voxels(image), 5)) for m, image in FORMS["nibabel"](files).items()}
    with_skull = {m: _with(image, np.pad(voxels(image), 1)) for m, image in with_skull.items()}
    with pytest.raises(kd_jax.InputError, match="these look like raw clinical scans") as error:
        segmenter.segment(with_skull)
    assert not any(finding.command for finding in error.value.errors)  # there is no file to mend
    assert segmenter.segment(with_skull, accept_raw=True).findings[0].severity == "warning"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"affine": np.eye(4)}, "affine: only arrays need one"),
        ({"min_et_ml": -1.0}, "min_et_ml -1.0: expected millilitres above 0"),
        ({"postprocess": "nothing"}, "nothing: cannot be read"),
    ],
)
def test_wrong_options_are_refused(segmenter, files, options, found):
    for images in (files, files["t1ce"].parent):
        with pytest.raises(kd_jax.InputError, match=found):
            segmenter.segment(images, **options)


def test_an_affine_of_another_shape_is_refused(segmenter, files):
    with pytest.raises(kd_jax.InputError, match=r"affine: has shape \(3, 3\), expected \(4, 4\)"):
        segmenter.segment(as_arrays(files, "RAS")[0], affine=np.eye(3))


def test_a_folder_of_two_patients_is_refused(segmenter, tmp_path):
    for number in range(2):
        write_case(tmp_path, rng=np.random.default_rng(number), number=number)
    with pytest.raises(kd_jax.InputError, match="holds 2 cases; give one patient's folder, or one case of find_cases"):
        segmenter.segment(tmp_path)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"network": "pupil"}, "holds no pupil"),
        ({"checkpoint": "newest"}, "'newest': expected best or latest"),
        ({"mirror": ("w",)}, "'w' is no axis; expected some of x, y, z"),
    ],
)
def test_what_a_run_does_not_have_is_not_loaded(run, options, found):
    with pytest.raises(kd_jax.InputError, match=found):
        kd_jax.load(run, **options)


def test_wrong_names_are_refused_by_the_result(segmenter, files, tmp_path):
    result = segmenter.segment(files)
    for use, found in (
        (lambda: result.mask("tumour"), "'tumour': not a part of the tumour; expected one of background, NCR, ED, ET"),
        (lambda: result.values("brats2025"), "convention 'brats2025': not known; expected one of brats2013"),
        (lambda: result.save(tmp_path / "labels.png"), "labels are written as NIfTI"),
    ):
        with pytest.raises(kd_jax.InputError) as error:
            use()
        assert found in str(error.value)


def test_every_public_name_is_there_and_documented():
    assert set(kd_jax.__all__) <= set(dir(kd_jax))
    for name in kd_jax.__all__:
        assert getattr(kd_jax, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'predictor'"):
        kd_jax.predictor  # noqa: B018


def test_importing_the_package_takes_no_time_and_no_jax():
    code = (
        "import sys, time; start = time.perf_counter(); import kd_jax; seconds = time.perf_counter() - start; "
        "assert not {'jax', 'numpy', 'nibabel', 'pydantic'} & sys.modules.keys(); assert seconds < 0.1, seconds; "
        "kd_jax.load; assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


PUBLIC = (
    "load",
    "fit",
    "Segmenter",
    "SegmentationResult",
    "find_cases",
    "load_config",
    "Config",
    "UNet",
    "cross_entropy",
)
PUBLIC += ("soft_dice_loss", "segmentation_loss", "barlow_twins", "dice", "hd95", "region_scores")


@pytest.mark.parametrize("name", ["kd_jax", *PUBLIC])
def test_the_examples_of_docstrings_run(name, run, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "runs" / "paper")
    write_case(tmp_path, rng=np.random.default_rng(0)).rename(tmp_path / "patient")
    monkeypatch.chdir(tmp_path)
    shown = kd_jax if name == "kd_jax" else getattr(kd_jax, name)
    examples = [test for test in doctest.DocTestFinder(recurse=name != "kd_jax").find(shown, name) if test.examples]
    assert examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    output = []
    for example in examples:
        runner.run(example, out=output.append, clear_globs=True)
    assert runner.summarize(verbose=False).failed == 0, "".join(output)
