"""A data set of twenty phantoms, measured as a whole; made by two processes."""

import nibabel as nib
import numpy as np
import pytest

from data_pipeline.phantom import audit, data_set, make, properties
from tests.data_pipeline.phantoms import digests

CASES = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(head, tmp_path_factory):
    """Twenty phantoms at 2 mm, made by two spawned processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_set, "load_anatomy", lambda: head)
        return data_set.make_phantoms(tmp_path_factory.mktemp("phantoms"), CASES, 0, workers=2, progress=False)


@pytest.fixture(scope="module")
def label_maps(folder):
    return [np.asarray(nib.load(folder / n / f"{n}_seg.nii.gz").dataobj) for n in data_set.finished_cases(folder)]


def test_a_voxel_gives_away_as_much_as_in_patients(folder):
    rows = audit.audit_folder(folder)
    assert len(rows) == CASES
    found = audit.medians(rows)
    for key, target in audit.TARGETS.items():
        assert target.low <= found[key] <= target.high, audit.format_audit(rows)


def test_tumours_are_as_large_as_drawn_and_the_labels_are_brats(label_maps):
    volumes = np.array([(s > 0).sum() * 0.008 for s in label_maps])
    assert volumes.min() > 12 and volumes.max() < 125 and volumes.max() > 2 * volumes.min()
    streams = [make._Streams(np.random.SeedSequence([0, i])) for i in range(CASES)]
    drawn = np.array([properties.draw_properties(s["plan"], 0, i).volume for i, s in enumerate(streams)])
    assert np.median(np.abs(volumes / drawn - 1)) < 0.15
    assert set(np.unique(np.concatenate([np.unique(s) for s in label_maps]))) == {0, 1, 2, 4}


def test_a_fifth_to_a_quarter_of_the_cases_hardly_enhance(label_maps):
    little = sum((s == 4).sum() * 0.008 < min(1.0, 0.02 * (s > 0).sum() * 0.008) for s in label_maps)
    assert 0.2 * CASES <= little <= 0.3 * CASES


def test_bytes_are_the_same_in_one_process_and_in_two(folder, phantoms):
    alone, shared = digests(phantoms), digests(folder)
    assert len(alone) == 15
    assert alone == {name: shared[name] for name in alone}
