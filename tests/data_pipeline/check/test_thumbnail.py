import io

import matplotlib.pyplot as plt
import numpy as np
import pytest

from data_pipeline.check.thumbnail import COLOURS, LARGEST_SIDE, thumbnail
from data_pipeline.reading.scan import Scan, read_scan
from tests.data_pipeline.cases import one_case


def pixels(picture: bytes) -> np.ndarray:
    """Decoded by matplotlib's reader: RGB in 0 to 1."""
    return plt.imread(io.BytesIO(picture), format="png")[..., :3]


def scan_of(tmp_path, rng, **options) -> Scan:
    return read_scan(one_case(tmp_path, rng, **options), label=True)


def coloured(image: np.ndarray) -> np.ndarray:
    return np.ptp(image, axis=-1) > 0.05


def test_front_is_up_and_the_patients_right_is_left(tmp_path, rng):
    scan = scan_of(tmp_path, rng, shape=(20, 30, 12))
    classes = np.zeros(scan.reference.shape, np.uint8)
    inside = classes[scan.crop]
    inside[-4:, -4:, 5] = 2  # canonical axes run to the right and to the front
    picture = pixels(thumbnail(Scan(scan.images, scan.mask, scan.crop, scan.reference, classes, ())))
    rows, columns = np.nonzero(coloured(picture))
    assert rows.max() < picture.shape[0] / 2 and columns.max() < picture.shape[1] / 2
    assert picture.shape[:2] == (inside.shape[1], inside.shape[0])


def test_the_slice_with_most_tumour_in_the_regions_colours(tmp_path, rng):
    scan = scan_of(tmp_path, rng)
    picture = pixels(thumbnail(scan))
    shown = {tuple(np.sign(np.diff(p)).astype(int)) for p in picture[coloured(picture)].round(2)}
    hues = {tuple(np.sign(np.diff(rgb)).astype(int)) for name, rgb in COLOURS[1:4]}
    assert shown == hues


def test_without_a_label_there_is_no_colour(tmp_path, rng):
    assert not coloured(pixels(thumbnail(scan_of(tmp_path, rng, label=False)))).any()


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 1, 4)])
def test_large_volumes_give_small_pictures_in_proportion(tmp_path, rng, spacing):
    affine = np.diag([*spacing, 1.0])
    scan = scan_of(tmp_path, rng, shape=(300, 400, 4), affine=affine, modalities=("t2",))
    picture = thumbnail(scan)
    height, width = pixels(picture).shape[:2]
    assert max(height, width) <= LARGEST_SIDE
    d, h, _ = (s.stop - s.start for s in scan.crop)
    assert height / width == pytest.approx(h * spacing[1] / (d * spacing[0]), rel=0.03)
    assert len(picture) < 30_000  # noise of full depth; brains take a third
