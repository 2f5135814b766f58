import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from data_pipeline.conventions import REGION_CLASSES
from kd_jax.evaluation.tables import as_json, comparison_table, summary_table, write_case_scores
from kd_jax.metrics import (
    METRICS,
    MISSING_REGION_HD95_MM,
    REGIONS,
    Metric,
    dice,
    hd95,
    reference_is_empty,
    region_scores,
    region_volumes_ml,
    sensitivity,
    specificity,
    summarise,
    summarise_cases,
    summarise_pairs,
    volume_ml,
)

ISOTROPIC = (1.0, 1.0, 1.0)
few = settings(max_examples=30)


def mask_of(*voxels, shape=(12, 10, 8)):
    mask = np.zeros(shape, bool)
    mask[tuple(np.array(voxels).T)] = True
    return mask


def blob(seed, shape=(14, 13, 12), quantile=0.85):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return field > np.quantile(field, quantile)


def hd95_by_tree(prediction, reference, spacing):
    """Brute force: surface voxels by six shifts, nearest neighbours by KD-tree."""

    def points(mask):
        padded = np.pad(mask, 1)
        shifts = (np.roll(padded, step, axis) for axis in range(3) for step in (-1, 1))
        inner = np.logical_and.reduce(list(shifts))[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inner) * np.array(spacing)

    a, b = points(prediction), points(reference)
    return max(np.percentile(cKDTree(b).query(a)[0], 95), np.percentile(cKDTree(a).query(b)[0], 95))


masks = st.builds(blob, st.integers(0, 10_000))
spacings = st.tuples(*[st.floats(0.4, 5.0)] * 3)


@pytest.mark.parametrize(("spacing", "distance"), [(ISOTROPIC, 5.0), ((2.0, 0.5, 3.0), math.hypot(6.0, 2.0))])
def test_hd95_of_two_voxels_is_their_distance_in_mm(spacing, distance):
    # Offsets: 3 voxels along the first axis, 4 along the second.
    assert hd95(mask_of((1, 1, 1)), mask_of((4, 5, 1)), spacing) == pytest.approx(distance)


def test_hd95_is_the_larger_direction_and_interpolates_the_percentile():
    # Prediction to reference: {0, 0, ..., 9} over 10 voxels: position 0.95 * 9 = 8.55 -> 0.55 * 9 mm. Back: 0.
    line = mask_of(*[(0, 0, k) for k in range(9)], shape=(1, 1, 18))
    with_outlier = line | mask_of((0, 0, 17), shape=(1, 1, 18))
    assert hd95(with_outlier, line, ISOTROPIC) == pytest.approx(0.55 * 9)


def test_hd95_of_a_single_outlier_differs_from_the_pooled_percentile():
    pooled = pytest.importorskip("medpy.metric.binary", reason="medpy is not installed").hd95
    line = mask_of(*[(0, 0, k) for k in range(9)], shape=(1, 1, 18))
    with_outlier = line | mask_of((0, 0, 17), shape=(1, 1, 18))
    # Pooled: 19 distances, position 0.95 * 18 = 17.1 -> 0.1 * 9 mm.
    assert pooled(with_outlier, line) == pytest.approx(0.1 * 9)


def test_hd95_ignores_the_interior():
    cube = np.zeros((9, 9, 9), bool)
    cube[1:8, 1:8, 1:8] = True
    hollow = cube.copy()
    hollow[4, 4, 4] = False
    # The hole adds six surface voxels at distance 3; 5 % of the 224 surface voxels are 11: the 95th is still 0.
    assert hd95(hollow, cube, ISOTROPIC) == 0


@few
@given(masks, masks, spacings)
def test_hd95_agrees_with_a_kd_tree(a, b, spacing):
    assert hd95(a, b, spacing) == pytest.approx(hd95_by_tree(a, b, spacing), rel=1e-9)


@few
@given(masks, masks, spacings)
def test_hd95_is_symmetric_and_zero_only_for_itself(a, b, spacing):
    assert hd95(a, b, spacing) == hd95(b, a, spacing)
    assert hd95(a, a, spacing) == 0


@few
@given(masks, masks, st.tuples(*[st.integers(0, 6)] * 3))
def test_metrics_do_not_depend_on_where_the_masks_lie(a, b, shift):
    def moved(mask):
        return np.pad(mask, [(s, 6 - s) for s in shift])

    assert hd95(moved(a), moved(b), (1.0, 2.0, 0.7)) == pytest.approx(hd95(a, b, (1.0, 2.0, 0.7)))
    assert dice(moved(a), moved(b)) == dice(a, b)


@few
@given(masks, st.integers(1, 4), st.integers(0, 2), spacings)
def test_shifting_a_mask_costs_at_most_the_shift(mask, voxels, axis, spacing):
    padded = np.pad(mask, 5)
    shifted = np.roll(padded, voxels, axis)
    assert hd95(padded, shifted, spacing) <= voxels * spacing[axis] + 1e-9


@few
@given(masks, masks, st.floats(0.5, 4.0))
def test_hd95_scales_with_the_spacing(a, b, factor):
    assert hd95(a, b, (factor,) * 3) == pytest.approx(factor * hd95(a, b, ISOTROPIC))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [ISOTROPIC, (1.5, 0.9, 3.0)])
def test_parity_with_medpy(seed, spacing):
    oracle = pytest.importorskip("medpy.metric.binary", reason="medpy is not installed")
    a, b = blob(seed), blob(seed + 100)
    assert dice(a, b) == pytest.approx(oracle.dc(a, b))
    assert sensitivity(a, b) == pytest.approx(oracle.sensitivity(a, b))
    assert specificity(a, b) == pytest.approx(oracle.specificity(a, b))
    # medpy's hd95 pools both directions before the percentile; its directed distances are what ours is made of.
    distances = getattr(oracle, "__surface_distances")
    directed = [np.percentile(distances(x, y, voxelspacing=spacing), 95) for x, y in ((a, b), (b, a))]
    assert hd95(a, b, spacing) == pytest.approx(max(directed))


def test_overlap_counted_by_hand():
    prediction = mask_of((0, 0, 0), (0, 0, 1), (0, 0, 2), shape=(2, 2, 5))
    reference = mask_of((0, 0, 2), (0, 0, 3), shape=(2, 2, 5))
    assert dice(prediction, reference) == pytest.approx(2 * 1 / 5)
    assert sensitivity(prediction, reference) == pytest.approx(1 / 2)
    assert specificity(prediction, reference) == pytest.approx(16 / 18)


def test_volume_is_in_millilitres():
    assert volume_ml(np.ones((10, 10, 10), bool), (1.0, 2.0, 0.5)) == pytest.approx(1.0)


def test_regions_are_nested_unions_of_classes():
    classes = np.array([0, 1, 1, 2, 2, 2, 3], np.uint8).reshape(1, 1, 7)
    assert region_volumes_ml(classes, (10.0, 10.0, 10.0)) == {"WT": 6.0, "TC": 3.0, "ET": 1.0}


def test_region_scores_of_a_hand_made_case():
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[1:3, 1:3, 1:3] = 2
    reference[1, 1, 1] = 1
    prediction = np.where(reference == 1, 2, reference)  # the core is taken for oedema
    scores = region_scores(prediction, reference, ISOTROPIC, "brats")
    assert scores["WT"]["dice"] == 1 and scores["WT"]["hd95_mm"] == 0
    assert scores["TC"]["dice"] == 0 and scores["TC"]["hd95_mm"] == pytest.approx(373.1287, abs=1e-4)
    assert scores["TC"]["sensitivity"] == 0 and scores["TC"]["reference_volume_ml"] == pytest.approx(0.001)
    assert scores["ET"]["dice"] == 1 and scores["ET"]["hd95_mm"] == 0 and reference_is_empty(scores["ET"])


@pytest.mark.parametrize(
    ("predicted", "present", "rule", "expected"),
    [
        (0, 0, "brats", (1.0, 0.0)),
        (3, 0, "brats", (0.0, MISSING_REGION_HD95_MM)),
        (0, 3, "brats", (0.0, MISSING_REGION_HD95_MM)),
        (0, 0, "nan", (math.nan, math.nan)),
        (3, 0, "nan", (0.0, math.nan)),  # a region invented or missed keeps its Dice of 0
        (0, 3, "nan", (0.0, math.nan)),
    ],
)
def test_empty_regions_follow_the_rule(predicted, present, rule, expected):
    prediction, reference = (np.zeros((4, 4, 4), np.uint8) for _ in range(2))
    prediction[1, 1, 1], reference[1, 1, 1] = predicted, present
    for scores in region_scores(prediction, reference, ISOTROPIC, rule).values():
        assert (scores["dice"], scores["hd95_mm"]) == pytest.approx(expected, nan_ok=True)
        assert math.isnan(scores["sensitivity"]) == (present == 0)
        assert reference_is_empty(scores) == (present == 0)


def test_a_registered_metric_is_in_every_file_and_table(monkeypatch, tmp_path):
    def missed_ml(pair):
        return float((pair.reference & ~pair.prediction).sum() * np.prod(pair.spacing) / 1000)

    monkeypatch.setitem(METRICS, "missed_ml", Metric(missed_ml, "Missed (ml)", decimals=2))
    reference = np.full((2, 3, 5), 3, np.uint8)
    prediction = reference.copy()
    prediction[0, 0, :2] = 0
    scores = region_scores(prediction, reference, (10.0, 10.0, 10.0), "brats")
    assert [region["missed_ml"] for region in scores.values()] == [2.0] * 3
    write_case_scores(tmp_path / "cases.csv", {"a": scores})
    with (tmp_path / "cases.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["TC_missed_ml"]) == 2.0
    paired = summarise_pairs([scores], [scores])
    assert as_json(paired.first)["ET"]["missed_ml"]["mean"] == 2.0
    for table in (summary_table("one", paired.first), comparison_table("two", paired, "a", "b")):
        assert list(table.columns[1].cells).count("Missed (ml)") == 3
        assert list(table.columns[2].cells)[-1] == "2.00"


def test_a_metric_without_a_heading_is_in_the_files_alone():
    reference = np.full((2, 2, 2), 3, np.uint8)
    summaries = summarise_cases([region_scores(reference, reference, ISOTROPIC, "brats")])
    assert "volume_ml" in as_json(summaries)["WT"]
    assert set(summary_table("", summaries).columns[1].cells) == {"Dice", "HD95 (mm)", "Sensitivity", "Specificity"}


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        region_scores(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), ISOTROPIC, "nan")


def test_summary_leaves_out_nan_and_counts_it():
    s = summarise([1.0, math.nan, 3.0, 8.0], [False, True, False, False])
    assert (s.mean, s.median, s.q1, s.q3) == (4.0, 3.0, 2.0, 5.5)
    assert s.sd == pytest.approx(math.sqrt(13))
    assert (s.n, s.left_out, s.reference_empty) == (3, 1, 1)


def test_summary_of_one_and_of_no_value():
    assert math.isnan(summarise([2.0]).sd) and summarise([2.0]).mean == 2.0
    nothing = summarise([math.nan])
    assert math.isnan(nothing.mean) and math.isnan(nothing.median) and (nothing.n, nothing.left_out) == (0, 1)


def test_summaries_over_cases_and_pairs():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 4, (5, 5, 5)).astype(np.uint8)
    perfect = region_scores(reference, reference, ISOTROPIC, "nan")
    nothing = region_scores(np.zeros_like(reference), reference, ISOTROPIC, "nan")
    summaries = summarise_cases([perfect, nothing])
    paired = summarise_pairs([perfect, perfect], [nothing, perfect])
    for region in REGIONS:
        assert summaries[region]["dice"].mean == 0.5
        assert summaries[region]["hd95_mm"].n == 1 and summaries[region]["hd95_mm"].left_out == 1
        assert paired.difference[region]["dice"].mean == 0.5
        # HD95 of `nothing` is undefined, so that pair counts on neither side.
        for side in paired:
            assert (side[region]["hd95_mm"].n, side[region]["hd95_mm"].left_out) == (1, 1)
    with pytest.raises(ValueError, match="shorter"):
        summarise_pairs([perfect], [])


@few
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6))
def test_the_difference_of_paired_means_is_the_mean_difference(seeds):
    def scores(seed):  # seeds not 3 modulo 4 leave regions empty, where HD95 is undefined
        classes = np.random.default_rng(seed).choice([0, seed % 4], (3, 3, 3)).astype(np.uint8)
        return region_scores(classes, np.full((3, 3, 3), 3, np.uint8), ISOTROPIC, "nan")

    paired = summarise_pairs(*([scores(seed) for seed in side] for side in zip(*seeds, strict=True)))
    for region in REGIONS:
        first, second, difference = (side[region]["hd95_mm"] for side in paired)
        assert difference.mean == pytest.approx(first.mean - second.mean, nan_ok=True)


@few
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_the_scores_of_a_case_are_those_of_its_regions(first, second):
    """Cropping to what is not background changes nothing, specificity included."""

    def nested(seed):
        field = blob(seed, quantile=0.9).astype(np.uint8) + blob(seed, quantile=0.95) + blob(seed, quantile=0.98)
        return np.pad(np.array([0, 2, 1, 3], np.uint8)[field], ((3, 1), (0, 2), (4, 0)))

    prediction, reference, spacing = nested(first), nested(second), (1.0, 2.0, 0.5)
    for region, scores in region_scores(prediction, reference, spacing, "nan").items():
        a, b = (np.isin(classes, REGION_CLASSES[region]) for classes in (prediction, reference))
        assert scores == {
            "dice": dice(a, b),
            "hd95_mm": hd95(a, b, spacing),
            "sensitivity": sensitivity(a, b),
            "specificity": specificity(a, b),
            "volume_ml": volume_ml(a, spacing),
            "reference_volume_ml": volume_ml(b, spacing),
        }
