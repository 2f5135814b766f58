"""Plans beside those of nnU-Net's planners (tests/golden/planner.json), and what must hold for any data set."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from data_pipeline.conventions import CLASSES
from data_pipeline.errors import InputError
from data_pipeline.preprocessing.fingerprint import Fingerprint
from kd_jax.config.load import parse_config
from kd_jax.planning.plan_file import plan_settings
from kd_jax.planning.planner import plan_networks
from kd_jax.planning.presets import PRESETS, default_memory
from kd_jax.planning.topology import MIN_EDGE, feature_map_size

GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden" / "planner.json").read_text())


def fingerprint(*groups) -> Fingerprint:
    """Of groups of alike cases: spacing, shape, number."""
    spacings = tuple(tuple(spacing) for spacing, _, count in groups for _ in range(count))
    return Fingerprint(spacings, tuple(tuple(shape) for _, shape, count in groups for _ in range(count)), 0.5, {})


BRATS = fingerprint(((1, 1, 1), (140, 171, 137), 1251))


@pytest.mark.parametrize("data", GOLDEN["data"])
def test_plans_are_those_of_nnunet(data):
    measured, plans = fingerprint(*GOLDEN["data"][data]), [p for p in GOLDEN["plans"] if p["data"] == data]
    assert len(plans) >= 10
    for expected in plans:
        spacing = tuple(expected["spacing"]) if "spacing" in expected else None
        plan = plan_networks(measured, expected["preset"], memory=expected["memory"], networks=1, spacing=spacing)
        tables = plan_settings(plan)
        found = tables["data"] | tables["teacher"] | tables["loss"] | tables["train"]
        assert found == expected["plan"], (data, expected["preset"], expected["memory"])


def test_golden_plans_tell_all_rules_apart():
    plans = [entry["plan"] for entry in GOLDEN["plans"]]
    assert {plan["batch_dice"] for plan in plans} == {True, False}
    assert {1, 3} <= {size for plan in plans for kernel in plan["kernels"] for size in kernel}
    assert len({plan["batch"] for plan in plans}) > 5 and len({len(plan["features"]) for plan in plans}) > 3


def test_the_plan_for_brats_is_the_known_one():
    plan = plan_networks(BRATS, "plain", memory=default_memory("plain"))
    assert (plan.patch, plan.batch, plan.batch_dice, plan.spacing) == ((128, 128, 128), 2, False, (1, 1, 1))
    assert plan.network.features == (32, 64, 128, 256, 320, 320)
    assert plan.network.strides == ((1, 1, 1), *((2, 2, 2),) * 5) and plan.network.kernels == ((3, 3, 3),) * 6


def test_the_spacing_of_thick_slices_is_finer_than_the_median_but_not_than_the_other_axes():
    def spacing(*thick):
        cases = [((0.5, 0.8, z), (320, 300, 20), 10) for z in thick]
        return plan_networks(fingerprint(*cases), "plain", memory=16).spacing

    assert spacing(5, 5, 5) == (0.5, 0.8, 5)
    assert spacing(1.5, 5, 6) == pytest.approx((0.5, 0.8, 1.5))  # the 10th percentile
    assert spacing(0.4, 5, 6) == pytest.approx((0.5, 0.8, 0.80001), abs=1e-9)
    assert spacing(0.4, 2.3, 2.4) == pytest.approx((0.5, 0.8, 2.3))  # not three times as coarse


@pytest.mark.parametrize("preset", PRESETS)
def test_two_networks_share_the_memory(preset):
    memory = default_memory(preset, 1)
    assert default_memory(preset) == 2 * memory
    assert plan_networks(BRATS, preset, memory=2 * memory) == plan_networks(BRATS, preset, memory=memory, networks=1)
    assert plan_networks(BRATS, preset, memory=memory).budget == PRESETS[preset].feature_maps / 2


_SPACINGS = st.tuples(*[st.floats(0.3, 8)] * 3)
_SHAPES = st.tuples(*[st.integers(2, 600)] * 3)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(_SPACINGS, _SHAPES, st.integers(1, 40)), min_size=1, max_size=4),
    st.sampled_from(tuple(PRESETS)),
    st.floats(0.5, 120),
    st.integers(1, 3),
)
def test_what_holds_for_every_plan(groups, preset, memory, networks):
    try:
        plan = plan_networks(fingerprint(*groups), preset, memory=memory, networks=networks)
    except InputError:
        reject()
    config = parse_config(plan_settings(plan), "plan")
    assert config.teacher.total_stride == config.student.total_stride
    for edge, stride, median in zip(plan.patch, plan.network.total_stride, plan.median_shape, strict=True):
        assert edge % stride == 0
        assert edge // stride >= min(MIN_EDGE, math.floor(median))
        assert stride & (stride - 1) == 0 and edge < median + stride
    estimate = feature_map_size(plan.network, plan.patch, len(CLASSES))
    assert estimate == plan.feature_maps <= plan.budget
    assert plan.batch == 2 or plan.batch * estimate <= 2 * plan.budget + estimate  # rounded to the nearest number
    assert plan.batch >= 2


@settings(max_examples=8)
@given(_SPACINGS, _SHAPES, st.permutations(range(3)), st.sampled_from(tuple(PRESETS)))
def test_the_order_of_axes_matters_only_to_ties(spacing, shape, order, preset):
    ratios = [n * s for n, s in zip(shape, spacing, strict=True)]
    if len({*spacing}) < 3 or len({*shape}) < 3 or len({*ratios}) < 3:
        reject()

    def turned(triple):
        return tuple(triple[axis] for axis in order)

    try:
        plan = plan_networks(fingerprint((spacing, shape, 9)), preset, memory=16)
    except InputError:
        reject()
    other = plan_networks(fingerprint((turned(spacing), turned(shape), 9)), preset, memory=16)
    assert sorted(other.patch) == sorted(plan.patch) and other.batch == plan.batch
    assert len(other.network.features) == len(plan.network.features)


def test_more_memory_never_means_less_in_a_step():
    sizes = [
        plan.batch * math.prod(plan.patch)
        for plan in (plan_networks(BRATS, "plain", memory=memory) for memory in (4, 8, 16, 24, 48, 80))
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_what_cannot_be_planned_says_why():
    with pytest.raises(InputError, match=r"no patch fits .* 140 x 171 x 137 .* and 0.0005 GB .* 2 network"):
        plan_networks(BRATS, "plain", memory=0.001)
    with pytest.raises(InputError, match=r"no patch fits .* finer spacing if the images are small"):
        plan_networks(fingerprint(((1, 1, 1), (7, 6, 5), 3)), "plain", memory=16)
    with pytest.raises(InputError, match="200 x 256 x 1 voxels; a 3-D network needs 2 or more"):
        plan_networks(fingerprint(((0.5, 0.5, 5), (200, 256, 1), 3)), "plain", memory=16)
