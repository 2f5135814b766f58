"""Patches at any angle; the oracle is scipy.ndimage."""

import numpy as np
import pytest
import scipy.ndimage as ndi

from data_pipeline.conventions import OUTSIDE_BRAIN
from data_pipeline.patches.spatial import rotation_zoom
from data_pipeline.patches.spatial_turn import turn
from tests.data_pipeline.volumes import SHAPE, random_volume


@pytest.mark.parametrize("zoom", [0.7, 1.0, 1.4])
def test_resampling_equals_scipy(rng, zoom):
    """The label's indicators, too, are interpolated; where one leads by more than rounding it must be taken."""
    image, label = random_volume(rng)
    patch = (11, 12, 13)
    matrix = rotation_zoom((25.0, -17.0, 8.0), (zoom, zoom, zoom))
    origin = np.array([5, 3, 4]) + (np.array(patch) - 1) / 2 @ (np.eye(3) - matrix.T)
    got_image, got_label = turn(image, label, matrix, origin, patch, np.zeros(3, int), np.array(SHAPE))

    def turned(volume, beyond):
        return ndi.affine_transform(
            volume.astype(np.float64), matrix, origin, output_shape=patch, order=1, mode="grid-constant", cval=beyond
        )

    for c in range(4):
        np.testing.assert_allclose(got_image[..., c], turned(image[..., c], 0), atol=2e-5)
    names = np.array([OUTSIDE_BRAIN, 0, 1, 2, 3])
    scores = np.stack([turned(label == name, float(name == OUTSIDE_BRAIN)) for name in names])
    first, second = np.sort(scores, axis=0)[[-1, -2]]
    clear = first - second > 0.002
    assert clear.mean() > 0.97
    np.testing.assert_array_equal(got_label[clear], names[scores.argmax(axis=0)][clear])
