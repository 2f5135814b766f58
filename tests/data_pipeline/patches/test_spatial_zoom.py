"""Patches zoomed along the axes; the oracle is the interpolation that knows any angle."""

import numpy as np
import pytest

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.patches.spatial_turn import turn
from data_pipeline.patches.spatial_zoom import zoom
from tests.data_pipeline.volumes import SHAPE, random_volume

NOTHING, ALL = np.zeros(3, int), np.array(SHAPE)


@pytest.mark.parametrize("scales", [(0.7, 0.7, 0.7), (1.4, 1.4, 1.4), (1.0, 0.83, 0.83), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("start", [(3.3, 4.2, 2.6), (-5.4, 9.7, -0.3), (2.0, 3.0, 1.0), (40.0, 0.0, 0.0)])
def test_zooming_equals_turning_by_nothing(rng, scales, start):
    """Inside the volume, beyond its borders, and where nothing of it is left."""
    image, label = random_volume(rng)
    image += label[..., None] == OUTSIDE_BRAIN  # up to the border, where the image must fade to 0
    label[label == OUTSIDE_BRAIN] = 3
    patch, scales, start = (9, 12, 11), np.array(scales), np.array(start)
    expected = turn(image, label, np.diag(scales), start, patch, NOTHING, ALL)
    got = zoom(image, label, scales, start, patch)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=2e-5)
    assert (got[1] != expected[1]).mean() < 0.002  # near ties are decided by rounding


def test_channels_are_contiguous(rng):
    image, label = random_volume(rng)
    got, _ = zoom(image, label, np.full(3, 0.9), np.ones(3), (8, 7, 6))
    assert got.dtype == np.float32 and all(got[..., c].flags.c_contiguous for c in range(4))
