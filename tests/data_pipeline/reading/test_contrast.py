"""Swapped modalities are noticed on brains, and ordinary brains are not suspected."""

import numpy as np
import pytest

from data_pipeline.conventions import MODALITIES
from data_pipeline.layouts.find import find_cases
from data_pipeline.reading.checks import SMALLEST_BRAIN
from data_pipeline.reading.contrast import check_contrast
from data_pipeline.reading.scan import inspect_case, read_scan

SWAPS = [("t1", "t1ce"), ("t1", "t2"), ("t1", "flair"), ("t2", "flair"), ("t1ce", "flair"), ("t1ce", "t2")]
VOXEL_ML = 0.008


@pytest.fixture(scope="module")
def scans(phantoms):
    return [(case, read_scan(case, label=True)) for case in find_cases(phantoms)]


def suspected(scan, case, *, swap=(), modalities=MODALITIES, labelled=True):
    images = {m: scan.images[m] for m in modalities}
    if swap:
        a, b = swap
        images[a], images[b] = images[b], images[a]
    classes = scan.classes[scan.crop] if labelled else None
    return check_contrast(images, scan.mask, classes, case.images, VOXEL_ML)


def test_phantoms_as_they_are(scans):
    for case, scan in scans:
        assert [f for f in inspect_case(case).findings if "spacing 2 x 2 x 2 mm" not in f.found] == []
        assert suspected(scan, case, labelled=False) == []
        for a in MODALITIES:
            for b in MODALITIES:
                assert suspected(scan, case, modalities=dict.fromkeys((a, b))) == []


@pytest.mark.parametrize("swap", SWAPS, ids="-".join)
@pytest.mark.parametrize("labelled", [True, False])
def test_swaps(scans, swap, labelled):
    noticed = [suspected(scan, case, swap=swap, labelled=labelled) for case, scan in scans]
    if labelled or swap != ("t1", "flair"):  # without oedema the two look alike
        assert all(noticed)
    for findings in noticed:
        assert all(f.severity == "warning" and "swapped?" in f.remedy for f in findings)


def test_scale_and_offset_do_not_matter(scans):
    case, scan = scans[0]
    scaled = {m: image * np.float32(0.01) - np.float32(5) for m, image in scan.images.items()}
    classes = scan.classes[scan.crop]
    assert check_contrast(scaled, scan.mask, classes, case.images, VOXEL_ML) == []
    scaled["t2"], scaled["flair"] = scaled["flair"], scaled["t2"]
    assert len(check_contrast(scaled, scan.mask, classes, case.images, VOXEL_ML)) == 2


def test_t1_and_t1ce_are_told_apart_by_enhancing_tumour(scans):
    found = [
        suspected(scan, case, swap=("t1", "t1ce")) for case, scan in scans if np.count_nonzero(scan.classes == 3) > 1000
    ]
    assert found and all(f[0].found == "the labelled enhancing tumour is brighter on T1 than on T1CE" for f in found)


def test_t1_and_t1ce_are_told_apart_by_vessels(scans):
    for case, scan in scans:
        [finding] = suspected(scan, case, swap=("t1", "t1ce"), labelled=False, modalities=("t1", "t1ce"))
        assert finding.file == case.images["t1ce"] and "a contrast agent only brightens" in finding.found


def test_images_without_contrast_agent_are_not_suspected(scans, rng):
    """Two measurements of one contrast differ by noise, which is darker as often as brighter."""
    for case, scan in scans:
        images = {m: scan.images["t1"] + rng.normal(0, 20, scan.mask.shape).astype(np.float32) for m in ("t1", "t1ce")}
        assert check_contrast(images, scan.mask, None, case.images, VOXEL_ML) == []


@pytest.mark.parametrize("modalities", [("flair",), ("t2", "flair")])
def test_the_label_of_another_patient(scans, modalities):
    """Noticed unless its oedema happens to lie in this patient's."""
    noticed = 0
    for case, scan in scans:
        images = {m: scan.images[m] for m in modalities}
        classes = np.roll(scan.classes[scan.crop], scan.mask.shape[1] // 2, axis=1)
        for finding in check_contrast(images, scan.mask, classes, case.images, VOXEL_ML):
            assert finding.file == case.images["flair"] and "is the label another patient's?" in finding.found
            noticed += 1
    assert noticed >= len(scans) - 1


def test_a_fragment_is_not_judged(scans):
    case, scan = scans[0]
    small = scan.mask.copy()
    small[small.shape[0] // 4 :] = False
    assert np.count_nonzero(small) * VOXEL_ML < 1000 * SMALLEST_BRAIN
    images = dict(scan.images, t2=scan.images["flair"], flair=scan.images["t2"])
    assert check_contrast(images, small, None, case.images, VOXEL_ML) == []
