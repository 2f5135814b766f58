"""Phantoms: facts about single parts, then about a data set of twenty and the folder it is written to."""

import errno
import gzip
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from data_pipeline.conventions import CONVENTIONS, MODALITIES
from data_pipeline.errors import InputError
from data_pipeline.formats import find_cases
from data_pipeline.phantom import __main__ as command
from data_pipeline.phantom import acquisition, anatomy, audit, case, confounders, contrast, labels, write
from data_pipeline.phantom import deformation as deform
from data_pipeline.phantom import growth as gr
from data_pipeline.phantom import plan as plans
from data_pipeline.phantom.grid import BOX_ORIGIN, Grid, box_grid, resample, smooth_field

CASES = 20


@pytest.fixture(scope="module")
def head():
    return anatomy.load_anatomy()


@pytest.fixture(scope="module")
def folder(head, tmp_path_factory):
    """Twenty phantoms at 2 mm, made by two spawned processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "load_anatomy", lambda: head)
        return write.make_phantoms(tmp_path_factory.mktemp("phantoms"), CASES, 0, workers=2, progress=False)


@pytest.fixture(scope="module")
def label_maps(folder):
    return [np.asarray(nib.load(folder / n / f"{n}_seg.nii.gz").dataobj) for n in write.finished_cases(folder)]


@pytest.fixture
def quick(head, monkeypatch):
    """Skip the seconds of reading the template."""
    monkeypatch.setattr(write, "load_anatomy", lambda: head)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("BraTS2021_*/*.nii.gz"))
    return {f"{f.parent.name}/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# ---------------------------------------------------------------- grids and fields


def test_field_is_standard_normal_with_the_correlation_of_its_gaussian():
    # White noise smoothed by a Gaussian of sigma has the correlation exp(-r² / (4 sigma²)).
    fields = [smooth_field(np.random.default_rng(i), box_grid(3.0), 9.0) for i in range(8)]
    values = np.stack(fields)
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.04)
    apart = (values[:, :-3] * values[:, 3:]).mean() / (values**2).mean()
    assert apart == pytest.approx(np.exp(-1 / 4), abs=0.03)


def test_field_does_not_depend_on_the_spacing():
    coarse = smooth_field(np.random.default_rng(3), box_grid(4.0), 8.0)
    fine = smooth_field(np.random.default_rng(3), box_grid(2.0), 8.0)
    shape = tuple(min(a, (b + 1) // 2) for a, b in zip(coarse.shape, fine.shape, strict=True))
    box = tuple(slice(n) for n in shape)
    np.testing.assert_allclose(coarse[box], fine[::2, ::2, ::2][box], atol=1e-5)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=15, deadline=None)
def test_linear_resampling_reproduces_linear_functions(a, b, c):
    source, target = Grid((0, 0, 0), 4.0, (6, 7, 8)), Grid((1.0, 2.5, 3.0), 1.5, (9, 9, 9))

    def plane(grid):
        x, y, z = grid.points()
        return (a * x + b * y + c * z).astype(np.float32)

    np.testing.assert_allclose(resample(plane(source), source, target), plane(target), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- anatomy


def test_template_tissues_are_where_they_belong(head):
    def at(channel, *point):
        return float(head.sample(channel, np.array(point, np.float32).reshape(3, 1))[0])

    assert at("wm", 26, -20, 30) > 0.9  # corona radiata
    assert at("gm", 12, -18, 8) > 0.5  # thalamus
    assert at("gm", 5, 5, 16) + at("wm", 5, 5, 16) < 0.1  # lateral ventricle
    assert at("periventricular", 5, 5, 16) == 1
    assert at("enhancing", 22, -40, 12) > 0.5  # choroid plexus
    assert at("enhancing", 0, -68, 58) > 0.3  # superior sagittal sinus
    assert at("depth", 26, -20, 20) > 30
    assert at("depth", 90, 0, 0) == 0


def test_template_is_symmetric_and_a_subject_is_not(head):
    grid = box_grid(4.0)
    points = grid.points()
    mirrored = points * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)

    def asymmetry(here, there):
        return np.abs(head.sample("wm", here) - head.sample("wm", there)).mean() / head.sample("wm", here).mean()

    bent = deform.random_diffeomorphism(np.random.default_rng(0))
    assert asymmetry(points, mirrored) < 0.03
    assert asymmetry(deform.to_template(points, np.eye(3), bent), deform.to_template(mirrored, np.eye(3), bent)) > 0.15


# ---------------------------------------------------------------- deformation


@pytest.mark.parametrize("seed", range(3))
def test_deformation_is_invertible_and_a_few_millimetres_large(seed):
    displacement = deform.random_diffeomorphism(np.random.default_rng(seed))
    gradient = np.stack([np.stack(np.gradient(d, deform.CONTROL_SPACING)) for d in displacement])
    jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)
    assert np.linalg.det(jacobian).min() > 0
    assert 2.0 < displacement.std() < 5.0


def test_affine_stays_within_five_percent_and_ten_degrees():
    for seed in range(20):
        matrix = deform.random_affine(np.random.default_rng(seed))
        stretch = np.linalg.svd(matrix, compute_uv=False)
        assert stretch.min() > 0.949 and stretch.max() < 1.051
        turn = matrix / stretch.mean()
        assert np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))) < 10 * np.sqrt(3) + 3


def ray(distances):
    """Points along x from the centre of the push."""
    points = np.zeros((3, len(distances), 1, 1), np.float32)
    points[0, :, 0, 0] = distances
    return points


def test_mass_effect_pushes_outwards_and_decays_over_25_mm():
    effect = deform.MassEffect((0.0, 0.0, 0.0), radius=20.0, amplitude=5.0)
    distances = np.array([0.0, 10.0, 20.0, 45.0, 70.0])
    before = deform.before_mass_effect(ray(distances), effect, np.full((5, 1, 1), 50, np.float32))[0].ravel()
    expected = [0, 2.5, 5, 5 * np.exp(-1), 5 * np.exp(-2)]
    np.testing.assert_allclose(distances - before, expected, atol=2e-3)


def test_mass_effect_leaves_the_skull_alone_and_folds_nothing():
    effect = deform.MassEffect((0.0, 0.0, 0.0), radius=15.0, amplitude=0.24 * 15)
    distances = np.linspace(0, 60, 121)
    depth = np.maximum(60 - distances, 0).astype(np.float32).reshape(-1, 1, 1)
    before = deform.before_mass_effect(ray(distances), effect, depth)[0].ravel()
    assert before[-1] == 60
    assert np.all(np.diff(before) > 0)


# ---------------------------------------------------------------- growth


def slab(shape=(24, 20, 18)):
    """White matter beside grey matter, with fluid at one end."""
    wm = np.ones(shape, np.float32)
    wm[:, 12:] = 0
    gm = 1 - wm
    gm[18:], wm[18:] = 0, 0
    return gm, wm


def medium_of(gm, wm, length=2.5, rho=1.0, barrier=None):
    ones = np.ones_like(gm)
    barrier = np.zeros(gm.shape, bool) if barrier is None else barrier
    return gr.make_medium(gm, wm, barrier, length=length, motility=ones, proliferation=rho * ones)


def blob(shape, centre, sigma=2.0):
    squared = sum((np.indices(shape)[i] - centre[i]) ** 2 for i in range(3))
    return np.exp(-squared / (2 * sigma**2)).astype(np.float32)


def test_without_proliferation_cells_are_conserved_and_stay_in_tissue():
    gm, wm = slab()
    medium = medium_of(gm, wm, rho=0.0)
    start = blob(gm.shape, (14, 10, 9)) * medium.tissue
    total = start.sum(dtype=np.float64)
    everywhere = tuple(slice(0, n) for n in gm.shape)
    u = start.copy()
    for _ in range(10):
        u = gr._advance(u, medium, everywhere, gr._time_step(medium))
    assert u.sum(dtype=np.float64) == pytest.approx(total, rel=1e-5)
    assert np.abs(u - start).max() > 0.2
    assert not u[18:].any()


def test_nothing_crosses_a_barrier():
    shape = (20, 12, 12)
    wm = np.ones(shape, np.float32)
    barrier = np.zeros(shape, bool)
    barrier[10] = True
    start = blob(shape, (4, 6, 6))
    start[9:] = 0
    u = gr.grow(medium_of(0 * wm, wm, barrier=barrier), start, 11.4, 0 * wm)
    assert u[:10].min() > 0.1
    assert not u[10:].any()


def test_diffusion_is_ten_times_faster_in_white_than_in_grey_matter():
    gm, wm = slab()
    medium = medium_of(gm, wm, length=3.0)
    assert medium.faces[0][4, 4, 4] == pytest.approx(9.0)
    assert medium.faces[0][4, 16, 4] == pytest.approx(0.9)
    assert medium.faces[1][4, 11, 4] == pytest.approx(2 * 9 * 0.9 / 9.9)  # resistances in series
    assert medium.faces[0][17, 4, 4] == 0


def reference_growth(medium, u, steps, dt):
    """The same scheme over the whole array, written voxel by voxel difference."""
    u = u.astype(np.float64)
    for _ in range(steps):
        change = medium.proliferation * u * (1 - u)
        for axis in range(3):
            flux = medium.faces[axis] * np.diff(u, axis=axis) / medium.spacing**2
            pad = [(0, 0)] * 3
            pad[axis] = (0, 1)
            change += np.pad(flux, pad)
            pad[axis] = (1, 0)
            change -= np.pad(flux, pad)
        u = u + dt * change
    return u


def test_growth_in_its_bounding_box_equals_growth_everywhere():
    shape = (44, 40, 36)
    wm = np.ones(shape, np.float32)
    wm[:, 25:] = 0
    medium = medium_of(1 - wm, wm)
    start = blob(shape, (20, 18, 18), 1.0)
    start[start < 1e-3] = 0
    u = gr.grow(medium, start, 14.0, 0 * wm)
    dt = gr._time_step(medium)
    errors = [np.abs(reference_growth(medium, start, gr._BLOCK * k, dt) - u).max() for k in range(1, 13)]
    assert min(errors) < 1e-3
    assert (u > gr.OEDEMA_LEVEL).sum() * 0.008 == pytest.approx(14.0, rel=0.25)


def test_hidden_cortex_keeps_nothing_and_full_density():
    u = np.array([0, 0.2, 1], np.float32)
    np.testing.assert_allclose(gr.visible(u, np.full(3, 0.5, np.float32)), [0, 0.2 * 0.6, 1])
    np.testing.assert_array_equal(gr.visible(u, np.zeros(3, np.float32)), u)


# ---------------------------------------------------------------- plan and labels


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("count", [20, 40, 80])
def test_a_fifth_of_any_data_set_has_no_enhancing_rim(seed, count):
    poor = [not plans.plan_tumour(np.random.default_rng(i), seed, i).enhancing for i in range(count)]
    assert abs(sum(poor) - plans.POOR_FRACTION * count) <= 2


def planned(**changes):
    fields = {"volume": 30.0, "length": 3.0, "push": 2.0, "cortex": 0.0, "core_level": 0.5}
    fields |= {"rim": 4.0, "gaps": 0.1, "enhancing": True, "spots": 0.0}
    return plans.TumourPlan(**fields | changes)


def labelled(plan):
    grid = Grid((0.0, 0.0, 0.0), 2.0, (30, 30, 30))
    density = np.clip(1.1 * blob(grid.shape, (15, 15, 15), 6.0), 0, 1)
    rngs = {name: np.random.default_rng(i) for i, name in enumerate(("core", "rim", "gaps"))}
    return labels.label_tumour(rngs, plan, density, grid, np.ones(grid.shape, bool)), density


def test_labels_are_nested_and_the_rim_surrounds_the_necrosis():
    label, density = labelled(planned())
    np.testing.assert_array_equal(label > 0, density > gr.OEDEMA_LEVEL)
    assert density[label == labels.ED].mean() < density[label == labels.ET].mean() < density[label == labels.NCR].mean()
    assert label[15, 15, 15] == labels.NCR


def test_gaps_take_their_part_of_the_rim():
    whole = (labelled(planned(gaps=0.0))[0] == labels.ET).sum()
    gapped = (labelled(planned(gaps=0.3))[0] == labels.ET).sum()
    assert gapped / whole == pytest.approx(0.7, abs=0.01)


def test_poorly_enhancing_tumours_have_no_rim():
    none, _ = labelled(planned(enhancing=False))
    spots, _ = labelled(planned(enhancing=False, spots=0.05))
    assert not (none == labels.ET).any()
    assert (spots == labels.ET).sum() == pytest.approx(0.05 * np.isin(spots, (labels.ET, labels.NCR)).sum(), abs=2)


# ---------------------------------------------------------------- contrast


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_tissue_fractions_sum_to_one_with_and_without_a_tumour(seed):
    rng = np.random.default_rng(seed)
    gm, wm, sulci = rng.random((3, 4, 5, 6), np.float32) * np.float32(0.5)
    healthy = contrast.tissue_maps(gm, wm, sulci, contrast.draw_sharpness(rng))
    np.testing.assert_allclose(healthy.sum(0), 1, atol=1e-6)
    core = rng.dirichlet((1, 1, 1), size=gm.shape).astype(np.float32)
    fractions = contrast.insert_tumour(healthy, rng.random(gm.shape, np.float32), core[..., 0], core[..., 1])
    np.testing.assert_allclose(fractions.sum(0), 1, atol=1e-5)
    assert fractions.min() >= -1e-6


def test_oedema_spares_fluid_and_the_core_replaces_it():
    healthy = np.array([1.0, 0, 0], np.float32).reshape(3, 1, 1, 1)
    full, empty = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    assert contrast.insert_tumour(healthy, full, empty, empty)[0] == 1
    assert contrast.insert_tumour(healthy, full, full, empty).ravel().tolist() == [0, 0, 0, 1, 0, 0]


def test_intensities_stay_in_the_published_ranges_and_some_cores_are_cystic():
    drawn = [contrast.draw_intensities(np.random.default_rng(i)) for i in range(300)]
    for modality in MODALITIES:
        for tissue, (low, high) in contrast.RANGES[modality].items():
            values = np.array([d[modality][tissue] for d in drawn])
            if (modality, tissue) == ("flair", "NCR"):
                cystic = values < 1
                assert cystic.mean() == pytest.approx(contrast.CYSTIC_FRACTION, abs=0.06)
                values = values[~cystic]
            assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high


# ---------------------------------------------------------------- acquisition


def test_rician_noise_has_its_known_moments():
    sd, shape = 0.05, (60, 60, 60)
    empty = acquisition.add_rician(np.random.default_rng(0), np.zeros(shape, np.float32), sd)
    assert empty.mean() == pytest.approx(sd * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh
    bright = acquisition.add_rician(np.random.default_rng(1), np.ones(shape, np.float32), sd)
    assert (bright.astype(np.float64) ** 2).mean() == pytest.approx(1 + 2 * sd**2, rel=1e-3)


def test_thick_slices_average_slabs_and_interpolate_between_their_centres():
    ramp = np.repeat(np.arange(8, dtype=np.float32), 9).reshape(8, 3, 3)
    protocol = acquisition.Protocol(2, 2, 0.3, slab=4.0, axis=0, noise=0.0, gain=100)
    thick = acquisition._thick(np.random.default_rng(0), ramp, 2, protocol)
    np.testing.assert_allclose(thick[:, 0, 0], [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.5])


# ---------------------------------------------------------------- confounders


def with_confounders(head, monkeypatch, keep):
    found = []

    def only(rng, around):
        found[:] = [c for c in confounders.draw_confounders(rng, around) if keep(c)]
        return found

    monkeypatch.setattr(case, "draw_confounders", only)
    return case.make_case(head, 5, 1, 4.0), list(found)


def test_vessels_are_bright_on_t1ce_and_absent_from_every_other_modality(head, monkeypatch):
    plain, _ = with_confounders(head, monkeypatch, lambda c: False)
    vessels, found = with_confounders(head, monkeypatch, lambda c: set(c.intensity) == {"t1ce"})
    assert {"vessels", "cortical vessels"} <= {c.name for c in found}
    for modality in ("t1", "t2", "flair"):
        np.testing.assert_array_equal(vessels.images[modality], plain.images[modality])
    rise = vessels.images["t1ce"].astype(float) - plain.images["t1ce"]
    brain = plain.images["t1ce"][plain.images["t1ce"] > 0]
    assert (rise > 0.3 * np.median(brain)).sum() > 100
    np.testing.assert_array_equal(vessels.label, plain.label)


def test_age_related_lesions_show_on_flair_and_not_on_t1ce(head, monkeypatch):
    plain, _ = with_confounders(head, monkeypatch, lambda c: False)
    aged, found = with_confounders(head, monkeypatch, lambda c: "flair" in c.intensity and "t1" not in c.intensity)
    assert "periventricular caps" in {c.name for c in found}
    assert (aged.images["flair"] > plain.images["flair"]).sum() > 50
    np.testing.assert_array_equal(aged.images["t1ce"], plain.images["t1ce"])


def test_blood_is_bright_on_t1_and_t1ce_alike():
    grid = Grid(BOX_ORIGIN, 4.0, (40, 40, 40))
    ones = np.ones(grid.shape, np.float32)
    inside = np.zeros(grid.shape, bool)
    inside[18:22, 18:22, 18:22] = True
    around = confounders.Surroundings(grid, ones > 0, 0 * ones, ones, 0 * ones, 0 * ones, 30 * ones, inside, inside)
    kinds = [c for s in range(40) for c in confounders.draw_confounders(np.random.default_rng(s), around)]
    blood = [c for c in kinds if c.name == "blood"]
    satellites = [c for c in kinds if c.name == "satellite"]
    assert 5 <= len(blood) <= 28 and 8 <= len(satellites) <= 32
    for c in blood:
        assert c.intensity["t1ce"] == pytest.approx(c.intensity["t1"], rel=0.05) and c.intensity["t1"] > 1.1
        assert confounders.apply_confounders(ones, "t1", [c]).max() > 1.1
    for c in satellites:
        assert set(c.intensity) == {"t1ce"} and not (c.fraction * inside).any()


# ---------------------------------------------------------------- the data set


def test_a_voxel_gives_away_as_much_as_in_patients(folder):
    rows = audit.audit_folder(folder)
    assert len(rows) == CASES
    found = audit.medians(rows)
    for key, target in audit.TARGETS.items():
        assert target.low <= found[key] <= target.high, audit.format_audit(rows)


def test_areas_equal_scikit_learn():
    rng = np.random.default_rng(0)
    p, n = np.rint(rng.normal(1, 2, 400)), np.rint(rng.normal(0, 2, 300))
    truth = np.r_[np.ones(400), np.zeros(300)]
    assert audit.auc(p, n) == pytest.approx(roc_auc_score(truth, np.r_[p, n]))
    p, n = rng.normal(0.4, 1, (400, 3)), rng.normal(0, 1, (400, 3)) @ rng.normal(size=(3, 3))
    truth = np.r_[np.ones(200), np.zeros(200)]
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(np.r_[p[::2], n[::2]], truth)
    expected = roc_auc_score(truth, model.decision_function(np.r_[p[1::2], n[1::2]]))
    assert audit.linear_auc(p, n) == pytest.approx(expected, abs=1e-9)


def test_tumours_are_as_large_as_drawn_and_the_labels_are_brats(label_maps):
    volumes = np.array([(s > 0).sum() * 0.008 for s in label_maps])
    assert volumes.min() > 12 and volumes.max() < 125 and volumes.max() > 2 * volumes.min()
    streams = [case._Streams(np.random.SeedSequence([0, i])) for i in range(CASES)]
    drawn = np.array([plans.plan_tumour(s["plan"], 0, i).volume for i, s in enumerate(streams)])
    assert np.median(np.abs(volumes / drawn - 1)) < 0.15
    assert set(np.unique(np.concatenate([np.unique(s) for s in label_maps]))) == {0, 1, 2, 4}


def test_a_fifth_to_a_quarter_of_the_cases_hardly_enhance(label_maps):
    little = sum((s == 4).sum() * 0.008 < min(1.0, 0.02 * (s > 0).sum() * 0.008) for s in label_maps)
    assert 0.2 * CASES <= little <= 0.3 * CASES


def test_files_are_skull_stripped_int16_on_the_brats_field_of_view(folder):
    for name in write.finished_cases(folder)[:4]:
        images = {m: nib.load(folder / name / f"{name}_{m}.nii.gz") for m in MODALITIES}
        voxels = {m: np.asarray(i.dataobj) for m, i in images.items()}
        brain = voxels["t1"] > 0
        for modality, image in images.items():
            assert image.get_data_dtype() == np.int16 and image.shape == (120, 120, 78)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            np.testing.assert_array_equal(np.diag(image.affine), [-2, -2, 2, 1])
            np.testing.assert_array_equal(voxels[modality] > 0, brain)
            assert voxels[modality].min() == 0
        assert 900 < brain.sum() * 0.008 < 2100  # ml
        seg = nib.load(folder / name / f"{name}_seg.nii.gz")
        assert seg.get_data_dtype() == np.uint8
        assert not np.asarray(seg.dataobj)[~brain].any()
    assert case.image_grid(1.0).shape == (240, 240, 155)


def test_the_reader_finds_complete_cases(folder):
    cases = find_cases(folder)
    assert [c.id for c in cases] == [write.case_name(i) for i in range(CASES)]
    assert all(set(c.images) == set(MODALITIES) and c.label is not None for c in cases)
    assert cases[0].convention == CONVENTIONS["brats2018"]


def test_a_case_is_the_same_head_and_tumour_at_every_spacing(head, label_maps):
    coarse = case.make_case(head, 0, 3, 4.0).label
    fine = label_maps[3]
    assert (coarse > 0).sum() * 0.064 == pytest.approx((fine > 0).sum() * 0.008, rel=0.1)
    centre = [4.0 * np.argwhere(coarse > 0).mean(0), 2.0 * np.argwhere(fine[::-1, ::-1] > 0).mean(0)]
    origin = [np.array(case.image_grid(s).origin) for s in (4.0, 2.0)]
    np.testing.assert_allclose(origin[0] + centre[0], origin[1] + centre[1], atol=2.0)


# ---------------------------------------------------------------- the folder


def test_bytes_are_the_same_in_one_process_and_in_two(folder, quick, tmp_path):
    write.make_phantoms(tmp_path, 2, 0, workers=1, progress=False)
    alone, shared = digests(tmp_path), digests(folder)
    assert len(alone) == 10
    assert alone == {name: shared[name] for name in alone}


def test_seeds_differ_and_cases_differ(quick, tmp_path):
    first = digests(write.make_phantoms(tmp_path / "a", 2, 1, 4.0, workers=1, progress=False))
    second = digests(write.make_phantoms(tmp_path / "b", 1, 2, 4.0, workers=1, progress=False))
    assert not set(first.values()) & set(second.values())
    assert len(set(first.values())) == 10


def test_gzip_header_holds_no_time_and_no_name(folder):
    for file in (folder / write.case_name(0)).iterdir():
        header = file.read_bytes()[:10]
        assert header[:3] == b"\x1f\x8b\x08" and header[3] == 0 and header[4:8] == bytes(4)
        gzip.decompress(file.read_bytes())


def test_a_stopped_run_continues_without_touching_finished_cases(quick, tmp_path, monkeypatch):
    whole = digests(write.make_phantoms(tmp_path / "whole", 3, 0, 4.0, workers=1, progress=False))
    real, calls = write._write_file, []

    def stop(*args):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(write, "_write_file", stop)
    with pytest.raises(KeyboardInterrupt):
        write.make_phantoms(tmp_path / "cut", 3, 0, 4.0, workers=1, progress=False)
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [write.case_name(0), write.MANIFEST]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*/*.nii.gz")}
    monkeypatch.setattr(write, "_write_file", real)
    assert digests(write.make_phantoms(tmp_path / "cut", 3, 0, 4.0, workers=1, progress=False)) == whole
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}


def test_a_full_disk_is_one_line_and_leaves_no_half_case(quick, tmp_path, monkeypatch):
    real, calls = Path.write_bytes, []

    def full(self, data):
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        InputError, match="cannot write phantoms \\(No space left on device\\); finished cases are kept"
    ):
        write.make_phantoms(tmp_path, 2, 0, 4.0, workers=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [write.MANIFEST]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write phantoms \\(Not a directory\\)") as caught:
        write.make_phantoms(tmp_path / "file" / "out", 1, 0, progress=False)
    assert "\n" not in str(caught.value)


def test_a_folder_of_other_data_is_refused(quick, tmp_path):
    write.make_phantoms(tmp_path / "a", 1, 0, 8.0, workers=1, progress=False)
    with pytest.raises(InputError, match=r"phantom.json: holds phantoms of .*'seed': 0.*asked for .*'seed': 1"):
        write.make_phantoms(tmp_path / "a", 1, 1, 8.0, progress=False)
    (tmp_path / "b" / "BraTS2021_00000").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds cases but no phantom\.json"):
        write.make_phantoms(tmp_path / "b", 1, 0, progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cases": 0}, "cases: 0 phantoms asked for; give a number from 1"),
        ({"seed": -1}, "seed: -1 is negative"),
        ({"spacing": float("nan")}, "spacing: nan mm; phantoms can be made at 0.5 to 8.0 mm"),
        ({"workers": 0}, "workers: 0; give 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        write.make_phantoms(tmp_path, **({"cases": 1, "seed": 0} | settings))
    assert not list(tmp_path.iterdir())


def test_the_cache_grows_and_answers_without_work(quick, tmp_path, monkeypatch):
    made = []
    real = write.write_case
    monkeypatch.setattr(write, "write_case", lambda *args: made.append(args[-1]) or real(*args))
    two = write.phantom_folder(2, 0, 8.0, cache=tmp_path, workers=1, progress=False)
    three = write.phantom_folder(3, 0, 8.0, cache=tmp_path, workers=1, progress=False)
    again = write.phantom_folder(2, 0, 8.0, cache=tmp_path, workers=1, progress=False)
    assert made == [0, 1, 2] and again == two != three
    assert write.finished_cases(two) == [write.case_name(i) for i in range(2)]
    assert {n: d for n, d in digests(three).items() if n in digests(two)} == digests(two)
    monkeypatch.setattr(write, "load_anatomy", lambda: pytest.fail("the template was read for a finished set"))
    assert write.phantom_folder(3, 0, 8.0, cache=tmp_path, workers=1, progress=False) == three


def test_the_command_writes_audits_and_explains(quick, tmp_path, capsys):
    arguments = [str(tmp_path / "out"), "--cases", "1", "--spacing", "4", "--workers", "1"]
    assert command.main(arguments) == 0
    assert "1 phantoms in" in capsys.readouterr().out
    assert command.main([str(tmp_path / "out"), "--audit"]) == 0
    printed = capsys.readouterr().out
    assert all(target.title in printed for target in audit.TARGETS.values())
    assert command.main([str(tmp_path), "--audit"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no BraTS2021_<number> folders")
