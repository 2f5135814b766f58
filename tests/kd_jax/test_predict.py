import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.command_line import parse_options, run_command
from data_pipeline.conventions import CONVENTIONS
from data_pipeline.layouts.find import find_cases
from data_pipeline.preprocessing import scratch
from kd_jax import predict
from kd_jax.inference import member
from kd_jax.inference import segmenter as segmentation
from kd_jax.inference.load import load_segmenter
from kd_jax.inference.segmenter import segment_case
from kd_jax.postprocessing.rule import Postprocessing, save_postprocessing
from tests.data_pipeline.cases import file_of, write_case, write_nifti
from tests.kd_jax.fake_run import STEP, write_run

CASE = "BraTS2021_00000"


@pytest.fixture(scope="module")
def says_enhancing(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "et", student="ET", teacher="ED")


@pytest.fixture(scope="module")
def random_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "random", student=3, spacing=1.4, patch=16)


@pytest.fixture(scope="module")
def one_window(tmp_path_factory):
    """One window holds the whole brain: nnU-Net's blending weights are not symmetric, their centre is a voxel."""
    return write_run(tmp_path_factory.mktemp("runs") / "one_window", student=3, patch=24)


@pytest.fixture
def data(tmp_path):
    write_case(tmp_path / "data", rng=np.random.default_rng(0))
    return tmp_path / "data"


def run(*arguments):
    return run_command(predict.main, [str(a) for a in arguments])


def brain_box(case, roles):
    """Bounding box of the non-zero voxels, in the order of axes on disk."""
    union = np.any([nib.load(file_of(case, case.name, role)).get_fdata() != 0 for role in roles], axis=0)
    box = np.zeros(union.shape, bool)
    box[tuple(slice(i.min(), i.max() + 1) for i in np.nonzero(union))] = True
    return box


def test_the_label_map_lies_on_the_original_grid_in_the_source_s_values(says_enhancing, data, tmp_path, capsys):
    assert run(says_enhancing, data / CASE, "-o", tmp_path / "out") == 0
    image, source = nib.load(tmp_path / "out" / f"{CASE}.nii.gz"), nib.load(file_of(data / CASE, CASE, "flair"))
    box = brain_box(data / CASE, ("t1ce", "flair"))
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), np.where(box, 4, 0))
    np.testing.assert_array_equal(image.affine, source.affine)
    assert image.get_data_dtype() == np.uint8 and image.header["qform_code"] == source.header["qform_code"]
    out = capsys.readouterr().out
    assert "Not a medical device" in out and f"step {STEP}" in out
    assert "found t1, t1ce, t2, flair; used t1ce, flair" in out
    assert "1 NCR, 2 ED, 4 ET (brats2018, because of file names as in BraTS 2018-2021)" in out
    volume = f"{box.sum() / 1000:.1f} ml"
    assert f"WT {volume}, TC {volume}, ET {volume}" in out


@pytest.mark.parametrize(
    ("layout", "label_map", "value", "reason"),
    [
        ("2023", None, 3, "because of file names as in BraTS 2023"),
        ("2013", None, 4, "brats2013"),
        ("2021", "3=NCR,1=ED,2=ET", 2, "because of --label-map"),
    ],
)
def test_conventions_follow_names_and_label_map(says_enhancing, tmp_path, capsys, layout, label_map, value, reason):
    case = write_case(tmp_path / "data", rng=np.random.default_rng(1), layout=layout, modalities=("t1ce", "flair"))
    options = ["--label-map", label_map] if label_map else []
    assert run(says_enhancing, case, "-o", tmp_path / "out", *options) == 0
    labels = np.asanyarray(nib.load(tmp_path / "out" / f"{case.name}.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, value}
    assert reason in capsys.readouterr().out


def test_the_teacher_is_used_when_asked(says_enhancing, data, tmp_path):
    assert run(says_enhancing, data, "-o", tmp_path / "out", "--network", "teacher") == 0
    assert set(np.unique(nib.load(tmp_path / "out" / f"{CASE}.nii.gz").get_fdata())) == {0, 2}


def test_probabilities_agree_with_the_label_map(random_run, data, tmp_path):
    assert run(random_run, data, "-o", tmp_path / "out", "--probabilities") == 0
    probabilities = nib.load(tmp_path / "out" / f"{CASE}_probabilities.nii.gz")
    labels = np.asanyarray(nib.load(tmp_path / "out" / f"{CASE}.nii.gz").dataobj)
    p = probabilities.get_fdata()
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(CONVENTIONS["brats2018"].encode(p.argmax(axis=-1)), labels)
    assert (p[~brain_box(data / CASE, ("t1ce", "flair"))] == [1, 0, 0, 0]).all()
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(probabilities.affine, nib.load(tmp_path / "out" / f"{CASE}.nii.gz").affine)


def test_probabilities_of_regions(data, tmp_path, capsys):
    run_of_regions = write_run(tmp_path / "run", student=5, loss="dice_bce")
    assert run(run_of_regions, data, "-o", tmp_path / "out", "--probabilities") == 0
    image = nib.load(tmp_path / "out" / f"{CASE}_probabilities.nii.gz")
    labels = np.asanyarray(nib.load(tmp_path / "out" / f"{CASE}.nii.gz").dataobj)
    wt, tc, et = np.moveaxis(image.get_fdata(), -1, 0) > 0.5
    # nnU-Net paints WT, TC and ET over each other in this order.
    np.testing.assert_array_equal(labels, np.select([et, tc, wt], [4, 1, 2]))
    assert len(np.unique(labels)) > 2
    assert not image.get_fdata()[~brain_box(data / CASE, ("t1ce", "flair"))].any()
    assert image.header["descrip"].item() == b"WT TC ET" and "probabilities of WT, TC, ET" in capsys.readouterr().out


def test_the_result_does_not_depend_on_the_orientation_on_disk(random_run, data, tmp_path):
    turned = tmp_path / "turned" / CASE
    for role in ("t1ce", "flair"):
        image = nib.load(file_of(data / CASE, CASE, role))
        flipped = image.as_reoriented(nib.orientations.axcodes2ornt(("S", "P", "L")))
        turned.mkdir(parents=True, exist_ok=True)
        nib.save(flipped, file_of(turned, CASE, role))
    assert run(random_run, data, "-o", tmp_path / "a") == run(random_run, turned, "-o", tmp_path / "b") == 0
    a, b = (nib.load(tmp_path / name / f"{CASE}.nii.gz") for name in "ab")
    assert nib.aff2axcodes(b.affine) != nib.aff2axcodes(a.affine)
    canonical = [np.asanyarray(nib.as_closest_canonical(image).dataobj) for image in (a, b)]
    np.testing.assert_array_equal(*canonical)


def mirrored(data, folder, axis):
    """The case turned over along an axis on disk, the affine as it was."""
    for role in ("t1ce", "flair"):
        image = nib.load(file_of(data / CASE, CASE, role))
        write_nifti(file_of(folder / CASE, CASE, role), np.flip(np.asanyarray(image.dataobj), axis), image.affine)
    return folder / CASE


@pytest.mark.parametrize("options", [[], ["--mirror"], ["--mirror", "z", "x"]])
def test_mirroring_treats_both_sides_alike_along_the_axes_asked_for(data, tmp_path, one_window, options):
    given = [str(one_window), str(data), "-o", "out", *options]
    axes = parse_options(predict.PredictOptions, given, name="predict").axes
    assert "".join(axes) == {0: "", 1: "xyz", 3: "xz"}[len(options)]
    segmenter = load_segmenter([one_window], None, "best", mirror=axes)

    def classes(source):
        return segment_case(segmenter, *find_cases(source)).classes

    plain = classes(data)
    for axis, name in enumerate("xyz"):
        turned = np.flip(classes(mirrored(data, tmp_path / name, axis)), axis)
        assert (turned == plain).all() == (name in axes)


def test_axes_to_mirror_are_checked(says_enhancing, data, tmp_path, capsys):
    assert run(says_enhancing, data, "-o", tmp_path / "out", "--mirror", "q") == 2
    assert 'invalid value "q" for --mirror. Choose from: "x", "y", "z".' in capsys.readouterr().err


def segment(runs, data, **options):
    """Segment the case with the networks of the runs; the sum of logits is seen through the probabilities."""
    segmenter = load_segmenter(runs, None, "best", mirror=())
    return segmenter, segment_case(segmenter, *find_cases(data), probabilities=True, **options)


def test_the_networks_of_several_runs_are_averaged(random_run, data, tmp_path, capsys):
    other = write_run(tmp_path / "other", student=4, spacing=0.8, patch=16, modalities=("t1", "t2", "flair"))
    assert run(random_run, other, data, "-o", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert f"student of {other}, step {STEP}, uses t1, t2, flair" in out and "ensemble of 2: logits averaged" in out
    _, both = segment([random_run, other], data)
    log_a, log_b = (np.log(segment([r], data)[1].probabilities[both.subject.crop]) for r in (random_run, other))
    mean = np.exp((log_a + log_b) / 2)  # up to the sums that softmax divides by
    inside = (mean > 0.02).all(axis=-1)  # inside both boxes, and numerically sound
    assert inside.sum() > 20
    np.testing.assert_allclose(
        both.probabilities[both.subject.crop][inside], (mean / mean.sum(-1, keepdims=True))[inside], rtol=1e-3
    )
    labels = np.asanyarray(nib.as_closest_canonical(nib.load(tmp_path / "out" / f"{CASE}.nii.gz")).dataobj)
    np.testing.assert_array_equal(CONVENTIONS["brats2018"].encode(both.classes), labels)


def test_an_ensemble_compiles_and_reads_once_for_networks_that_are_alike(data, tmp_path, monkeypatch):
    runs = [write_run(tmp_path / str(i), student=i) for i in range(3)]
    runs.append(write_run(tmp_path / "coarse", student=3, spacing=2.0))
    compiled, read = [], []
    make, load = member.make_predictor, segmentation.load_subject
    monkeypatch.setattr(member, "make_predictor", lambda *a, **k: compiled.append(a) or make(*a, **k))
    monkeypatch.setattr(segmentation, "load_subject", lambda *a, **k: read.append(a) or load(*a, **k))
    segmenter, _ = segment(runs, data)
    assert len(segmenter.members) == 4 and len(compiled) == 1
    assert [args[1] for args in read] == [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]


def test_classes_and_regions_are_not_averaged(random_run, data, tmp_path, capsys):
    regions = write_run(tmp_path / "regions", student=1, loss="dice_bce")
    assert run(random_run, regions, data, "-o", tmp_path / "out") == 2
    assert f"{regions}: its network gives regions, that of {random_run} classes" in capsys.readouterr().err
    assert run(random_run, random_run, data, "-o", tmp_path / "out") == 2
    assert f"{random_run}: given twice" in capsys.readouterr().err


def test_a_network_that_sees_volumes_reversed(data, tmp_path, one_window):
    """Reversed along x and y it makes of a case what it otherwise makes of the case turned over."""
    backwards = write_run(tmp_path / "run", student=3, patch=24, reversed_axes=("x", "y"))
    turned = mirrored(data, tmp_path / "x", 0)
    turned = mirrored(turned.parent, tmp_path / "xy", 1)
    _, expected = segment([one_window], turned)
    _, found = segment([backwards], data)
    np.testing.assert_allclose(found.probabilities, np.flip(expected.probabilities, (0, 1)), atol=1e-5)


def test_a_large_case_is_segmented_on_disk_with_the_same_result(random_run, data, tmp_path, monkeypatch):
    _, in_memory = segment([random_run], data)
    monkeypatch.setattr(scratch, "IN_MEMORY", 1000)
    _, on_disk = segment([random_run], data)
    assert isinstance(on_disk.probabilities, np.memmap) and not isinstance(in_memory.probabilities, np.memmap)
    np.testing.assert_array_equal(on_disk.probabilities, in_memory.probabilities)
    np.testing.assert_array_equal(on_disk.classes, in_memory.classes)


def test_only_what_the_network_sees_is_read(says_enhancing, data, tmp_path):
    case = data / CASE
    for role in ("t1", "t2", "seg"):
        file_of(case, CASE, role).write_bytes(b"not an image")
    assert run(says_enhancing, case, "-o", tmp_path / "out") == 0


def test_bad_cases_are_reported_and_the_others_done(says_enhancing, data, tmp_path, capsys):
    rng = np.random.default_rng(2)
    truncated = write_case(data, rng=rng, number=1)
    flair = file_of(truncated, truncated.name, "flair")
    flair.write_bytes(flair.read_bytes()[:-200])
    write_case(data, rng=rng, number=2, modalities=("t1", "flair"))
    write_case(data, rng=rng, number=3, label=False)
    out = tmp_path / "out"
    assert run(says_enhancing, data, "-o", out) == 1
    names = {p.name for p in out.iterdir()}
    assert names == {f"{CASE}.nii.gz", "BraTS2021_00003.nii.gz", "failures.json"}
    failures = json.loads((out / "failures.json").read_text())
    assert "truncated" in failures["BraTS2021_00001"] and str(flair) in failures["BraTS2021_00001"]
    assert failures["BraTS2021_00002"].startswith("t1ce missing; the student of this run needs t1ce, flair")
    errors = capsys.readouterr().err.splitlines()
    assert [e.split(":")[1].strip() for e in errors if e.startswith("error: ")] == list(failures)
    assert f"2 of 4 cases failed, see {out / 'failures.json'}" in errors

    for name in failures:
        shutil.rmtree(data / name)
    assert run(says_enhancing, data, "-o", out, "--overwrite") == 0
    assert not (out / "failures.json").exists()


def test_results_are_not_replaced_unless_asked(says_enhancing, data, tmp_path, capsys):
    existing = tmp_path / "out" / f"{CASE}.nii.gz"
    existing.parent.mkdir()
    existing.write_text("precious")
    assert run(says_enhancing, data, "-o", tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        f"error: {existing}: already there; choose another --output, or pass --overwrite\n"
    )
    assert existing.read_text() == "precious"
    assert run(says_enhancing, data, "-o", tmp_path / "out", "--overwrite") == 0
    assert nib.load(existing).shape == (14, 16, 12)


def test_an_unwritable_output_is_found_before_the_work(says_enhancing, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(segmentation, "load_subject", lambda *_, **__: pytest.fail("a case was read"))
    (tmp_path / "file").write_text("")
    assert run(says_enhancing, data, "-o", tmp_path / "file" / "out") == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error and len(error.splitlines()) == 1


def test_a_folder_that_is_no_run_is_an_error_that_leaves_nothing(data, tmp_path, capsys):
    assert run(tmp_path / "nowhere", data, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "no such run folder" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "nowhere").exists()


def test_an_input_without_cases_is_an_error(says_enhancing, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(says_enhancing, tmp_path / "empty", "-o", tmp_path / "out") == 2
    assert "no cases found" in capsys.readouterr().err


def test_post_processing_is_applied_where_decided_or_asked_for_and_said(says_enhancing, data, tmp_path, capsys):
    run_copy = shutil.copytree(says_enhancing, tmp_path / "run")
    box = brain_box(data / CASE, ("t1ce", "flair"))
    save_postprocessing(run_copy, "student", Postprocessing(min_et_ml=100.0))
    for options, value, said in (
        ([], 1, "Post-processing: ET below 100 ml"),  # tiny ET is necrotic core
        (["--postprocess", "none"], 4, "Post-processing: none, as asked"),
        (["--postprocess", "none", "--min-et", "50"], 1, "none, as asked; as asked, ET below 50 ml"),
        (["--postprocess", run_copy / "postprocessing.json"], 1, "Post-processing: ET below 100 ml"),
    ):
        assert run(run_copy, data / CASE, "-o", tmp_path / "out", "--overwrite", *options) == 0
        assert said in capsys.readouterr().out
        values = np.asanyarray(nib.load(tmp_path / "out" / f"{CASE}.nii.gz").dataobj)
        np.testing.assert_array_equal(values, np.where(box, value, 0))
