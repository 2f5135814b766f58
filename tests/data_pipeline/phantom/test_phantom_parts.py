"""Phantoms: facts about single steps of making one, without the template. Growth and labels are elsewhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from data_pipeline.conventions import MODALITIES
from data_pipeline.phantom import acquisition, audit, confounders, intensities
from data_pipeline.phantom import deformation as deform
from data_pipeline.phantom.grid import BOX_ORIGIN, Grid, box_grid, resample, smooth_field

# ---------------------------------------------------------------- grids and fields


def test_field_is_standard_normal_with_the_correlation_of_its_gaussian():
    # White noise smoothed by a Gaussian of sigma has the correlation exp(-r² / (4 sigma²)).
    fields = [smooth_field(np.random.default_rng(i), box_grid(3.0), 9.0) for i in range(8)]
    values = np.stack(fields)
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert values.std() == pytest.approx(1, abs=0.04)
    correlation = (values[:, :-3] * values[:, 3:]).mean() / (values**2).mean()
    assert correlation == pytest.approx(np.exp(-1 / 4), abs=0.03)


def test_field_does_not_depend_on_the_spacing():
    coarse = smooth_field(np.random.default_rng(3), box_grid(4.0), 8.0)
    fine = smooth_field(np.random.default_rng(3), box_grid(2.0), 8.0)
    shape = tuple(min(a, (b + 1) // 2) for a, b in zip(coarse.shape, fine.shape, strict=True))
    box = tuple(slice(n) for n in shape)
    np.testing.assert_allclose(coarse[box], fine[::2, ::2, ::2][box], atol=1e-5)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
@settings(max_examples=15)
def test_linear_resampling_reproduces_linear_functions(a, b, c):
    source, target = Grid((0, 0, 0), 4.0, (6, 7, 8)), Grid((1.0, 2.5, 3.0), 1.5, (9, 9, 9))

    def plane(grid):
        x, y, z = grid.points()
        return (a * x + b * y + c * z).astype(np.float32)

    np.testing.assert_allclose(resample(plane(source), source, target), plane(target), rtol=1e-4, atol=1e-4)


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


# ---------------------------------------------------------------- intensities


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_tissue_fractions_sum_to_one_with_and_without_a_tumour(seed):
    rng = np.random.default_rng(seed)
    gm, wm, sulci = rng.random((3, 4, 5, 6), np.float32) * np.float32(0.5)
    healthy = intensities.tissue_maps(gm, wm, sulci, intensities.draw_sharpness(rng))
    np.testing.assert_allclose(healthy.sum(0), 1, atol=1e-6)
    core = rng.dirichlet((1, 1, 1), size=gm.shape).astype(np.float32)
    fractions = intensities.insert_tumour(healthy, rng.random(gm.shape, np.float32), core[..., 0], core[..., 1])
    np.testing.assert_allclose(fractions.sum(0), 1, atol=1e-5)
    assert fractions.min() >= -1e-6


def test_oedema_spares_fluid_and_the_core_replaces_it():
    healthy = np.array([1.0, 0, 0], np.float32).reshape(3, 1, 1, 1)
    full, empty = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32)
    assert intensities.insert_tumour(healthy, full, empty, empty)[0] == 1
    assert intensities.insert_tumour(healthy, full, full, empty).ravel().tolist() == [0, 0, 0, 1, 0, 0]


def test_intensities_stay_in_the_published_ranges_and_some_cores_are_cystic():
    drawn = [intensities.draw_intensities(np.random.default_rng(i)) for i in range(300)]
    for modality in MODALITIES:
        for tissue, (low, high) in intensities.RANGES[modality].items():
            values = np.array([d[modality][tissue] for d in drawn])
            if (modality, tissue) == ("flair", "NCR"):
                cystic = values < 1
                assert cystic.mean() == pytest.approx(intensities.CYSTIC_FRACTION, abs=0.06)
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


# ---------------------------------------------------------------- audit


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
