"""Phantoms: how a tumour grows and how it is labelled."""

import numpy as np
import pytest

from data_pipeline.phantom import growth as gr
from data_pipeline.phantom import labels, properties
from data_pipeline.phantom.grid import Grid

# ---------------------------------------------------------------- growth


def slab(shape=(24, 20, 18)):
    """White matter next to grey matter, with fluid at one end."""
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


# ---------------------------------------------------------------- properties and labels


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("count", [20, 40, 80])
def test_a_fifth_of_any_data_set_has_no_enhancing_rim(seed, count):
    poor = [not properties.draw_properties(np.random.default_rng(i), seed, i).enhancing for i in range(count)]
    assert abs(sum(poor) - properties.POOR_FRACTION * count) <= 2


def planned(**changes):
    fields = {"volume": 30.0, "length": 3.0, "push": 2.0, "cortex": 0.0, "core_level": 0.5}
    fields |= {"rim": 4.0, "gaps": 0.1, "enhancing": True, "spots": 0.0}
    return properties.TumourProperties(**fields | changes)


def labelled(drawn):
    grid = Grid((0.0, 0.0, 0.0), 2.0, (30, 30, 30))
    density = np.clip(1.1 * blob(grid.shape, (15, 15, 15), 6.0), 0, 1)
    rngs = {name: np.random.default_rng(i) for i, name in enumerate(("core", "rim", "gaps"))}
    return labels.label_tumour(rngs, drawn, density, grid, np.ones(grid.shape, bool)), density


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
