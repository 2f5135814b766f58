"""Volumes in memory to cut patches from."""

import numpy as np

from data_pipeline.conventions import OUTSIDE_BRAIN

SHAPE = (18, 20, 16)


def random_volume(rng, shape=SHAPE, channels=4):
    """A random image with negative values inside a brain, zero in the rim around it, and a label with all classes."""
    label = np.full(shape, OUTSIDE_BRAIN, np.uint8)
    inner = tuple(slice(2, -2) for _ in shape)
    label[inner] = rng.integers(0, 4, label[inner].shape)
    image = rng.standard_normal((*shape, channels), dtype=np.float32) * (label != OUTSIDE_BRAIN)[..., None]
    return image.astype(np.float32), label
