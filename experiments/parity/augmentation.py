"""nnU-Net's augmentation and sampling: with given parameters, with drawn parameters, and their speed."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch as replaced

import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from jaxtyping import Float32, Int64
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from data_pipeline.conventions import OUTSIDE_BRAIN, Index3, Shape3
from data_pipeline.patches import intensity
from data_pipeline.patches.augment import Augmentation, finish_patch, reach
from data_pipeline.patches.sampling import choose_start, enlarged_offset, is_foreground_position, start_bounds
from data_pipeline.patches.spatial import Image, Label, cut_patch, cut_turned, rotation_zoom
from experiments.parity import augmentation_draws
from experiments.parity.check import GOLDEN, Check

FILE = GOLDEN / "augmentation.npz"
SHAPE: Shape3 = (12, 11, 14)
PATCHES: tuple[Shape3, ...] = (
    (128, 128, 128),
    (160, 192, 64),
    (96, 160, 160),
    (20, 21, 22),
    (48, 48, 48),
    (16, 256, 256),
    (28, 256, 192),
)
"""Flat ones with the thin axis first, as nnU-Net orders axes."""
TURNS: tuple[tuple[Index3, Shape3, tuple[int, int, int], float], ...] = (
    ((2, 1, 3), (8, 7, 9), (25, -17, 8), 1.0),
    ((3, 3, 2), (8, 7, 9), (-30, 30, 12), 1.4),
    ((-1, 3, 5), (8, 6, 10), (0, 0, 0), 0.77),
    ((4, 1, 2), (2, 9, 11), (140, 0, 0), 1.3),
    ((1, 1, 5), (10, 9, 3), (0, 0, -75), 0.8),
)
"""First voxel, patch, degrees, zoom; the last two patches are flat, along the first and along the last axis.

The one that is only zoomed has even sizes: the middle of an odd one lies exactly between two voxels of an even box,
where rounding decides the label.
"""
TOLERANCE = 1e-5


def checks() -> Iterator[Check]:
    """Everything about augmentation and sampling."""
    torch.set_num_threads(1)
    image, label = volume()
    golden: dict[str, Any] = {"image": image, "label": label}
    yield from _turned(image, label, golden)
    yield from _intensities(image[..., 0], golden)
    yield _finished(image, label)
    yield from _places(golden)
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **golden)
    yield from augmentation_draws.checks()
    augmentation_draws.print_throughput()


def volume() -> tuple[Image, Label]:
    """Noise in two channels, 0 outside the brain, and a label of blocks, from a fixed seed."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 5, (6, 5, 6)).astype(np.uint8)
    coarse[coarse == 4] = OUTSIDE_BRAIN
    label = np.kron(coarse, np.ones((3, 3, 3), np.uint8))[tuple(map(slice, SHAPE))]
    image = rng.standard_normal((*SHAPE, 2), dtype=np.float32) * (label != OUTSIDE_BRAIN)[..., None]
    return image, np.ascontiguousarray(label)


def to_original(image: Image, label: Label, start: Sequence[int], size: Sequence[int]) -> dict[str, torch.Tensor]:
    """The box of `size` at `start` as nnU-Net's loader hands it to the transforms."""
    planar, classes = augmentation_draws.original_box(image, label, start, size)
    return {"image": planar, "segmentation": classes}


def from_original(data: dict[str, torch.Tensor]) -> tuple[Image, Label]:
    """Channels last, -1 as OUTSIDE_BRAIN."""
    classes = data["segmentation"][0].numpy()
    return np.moveaxis(data["image"].numpy(), 0, -1), np.where(classes < 0, OUTSIDE_BRAIN, classes).astype(np.uint8)


def _turned(image: Image, label: Label, golden: dict[str, Any]) -> Iterator[Check]:
    far = labels = 0.0
    for number, (start, patch, degrees, zoom) in enumerate(TURNS):
        thin = _thin_axis(patch)
        theirs = _original_turn(image, label, start, patch, degrees, zoom)
        zooms = [1.0 if axis == thin else zoom for axis in range(3)]
        matrix = rotation_zoom(degrees, zooms)
        ours = cut_turned(image, label, start, patch, reach(patch, Augmentation()), matrix)
        far = max(far, float(np.abs(ours[0] - theirs[0]).max()))
        labels = max(labels, float((ours[1] != theirs[1]).mean()))
        golden |= {
            f"turn/{number}/start": start,
            f"turn/{number}/patch": patch,
            f"turn/{number}/degrees": degrees,
            f"turn/{number}/zooms": zooms,
            f"turn/{number}/image": theirs[0],
            f"turn/{number}/label": theirs[1],
        }
    yield Check("rotation and zoom: image", far, TOLERANCE * 10)
    yield Check("rotation and zoom: label", labels, 0.001, "share of voxels that differ")
    data = to_original(image, label, (0, 0, 0), SHAPE)
    cut = from_original(_spatial((9, 8, 7)).apply(data, grid=None, center_location_in_pixels=[s / 2 for s in SHAPE]))
    first = enlarged_offset((9, 8, 7), SHAPE).tolist()
    plain = cut_patch(image, label, (first[0], first[1], first[2]), (9, 8, 7))
    yield Check("plain cut", max(float(np.abs(plain[0] - cut[0]).max()), float((plain[1] != cut[1]).max())), 0)


def _thin_axis(patch: Shape3) -> int | None:
    """nnU-Net's decision, for a patch of any axis order."""
    thin = patch.index(min(patch))
    first, second = (size for axis, size in enumerate(patch) if axis != thin)
    return thin if augmentation_draws.original_geometry((patch[thin], first, second)).flat else None


def _original_turn(
    image: Image, label: Label, start: Index3, patch: Shape3, degrees: tuple[int, int, int], zoom: float
) -> tuple[Image, Label]:
    """nnU-Net's transform of a patch, the axes ordered for it and back."""
    thin = _thin_axis(patch)
    order = [0, 1, 2] if thin is None else [thin, *(axis for axis in range(3) if axis != thin)]
    size, first = [patch[axis] for axis in order], [start[axis] for axis in order]
    box = augmentation_draws.original_geometry((size[0], size[1], size[2])).box
    corner = [f - (b // 2 - s // 2) for f, b, s in zip(first, box, size, strict=True)]
    data = to_original(image.transpose(*order, 3), label.transpose(order), corner, box)
    if thin is None:
        data = _spatial(size, np.deg2rad(degrees).tolist(), zoom)(**data)
    else:
        angle = float(np.deg2rad(degrees[thin]))
        flat = _spatial(size[1:], [angle, angle], zoom)(**Convert3DTo2DTransform()(**data))
        data = Convert2DTo3DTransform()(**flat)
    turned, classes = from_original(data)
    back = np.argsort(order)
    return turned.transpose(*back, 3), classes.transpose(back)


def _spatial(patch: Sequence[int], angles: Sequence[float] = (0, 0, 0), zoom: float = 1.0) -> SpatialTransform:
    return SpatialTransform(
        patch_size=tuple(patch),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=1,
        rotation=lambda image, dim: angles[dim],
        p_scaling=1,
        scaling=zoom,
        p_synchronize_scaling_across_axes=1,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )


def _intensities(channel: Float32[np.ndarray, "d h w"], golden: dict[str, Any]) -> Iterator[Check]:
    """Each transform of one channel, at both ends of its range and in between."""
    first = {"apply_to_channel": torch.tensor([0])}
    masked = {"apply_to_channel": torch.tensor([True])}
    blur = GaussianBlurTransform(benchmark=False)
    contrast = ContrastTransform((0.75, 1.25), preserve_range=True, synchronize_channels=False)
    gamma = GammaTransform((0.7, 1.5), 0, False, 1, 1)
    low = SimulateLowResolutionTransform((0.5, 1), False, True, None)

    def both(name: str, theirs: torch.Tensor, ours: Float32[np.ndarray, "d h w"]) -> Check:
        golden[name] = theirs[0].numpy().copy()
        return Check(name, float(np.abs(golden[name] - ours).max()), TOLERANCE)

    def fresh() -> torch.Tensor:
        return torch.from_numpy(channel[None].copy())

    for sigmas in ((0.5, 1.0, 0.8), (0.75, 0.6, 0.95)):
        yield both(
            f"blur {sigmas}", blur._apply_to_image(fresh(), sigmas=[sigmas], **masked), intensity.blur(channel, sigmas)
        )
    for factor in (0.75, 1.25):
        changed = contrast._apply_to_image(fresh(), multipliers=torch.tensor([factor]), **first)
        yield both(f"contrast {factor}", changed, intensity.contrast(channel, factor))
    for exponent in (0.7, 1.5):
        for inverted in (False, True):
            choice = {"retain_stats": torch.tensor([True]), "invert_image": torch.tensor([inverted])}
            changed = gamma._apply_to_image(fresh(), gamma=torch.tensor([exponent]), **choice, **first)
            name = f"{'inverted gamma' if inverted else 'gamma'} {exponent}"
            yield both(name, changed, intensity.gamma(channel, exponent, inverted=inverted))
    for scales in ((0.5, 0.5, 0.5), (0.77, 0.77, 0.77), (0.95, 1.0, 0.95)):
        changed = low._apply_to_image(fresh(), scales=torch.tensor([scales]), **first)
        yield both(f"low resolution {scales}", changed, intensity.low_resolution(channel, scales))


def _finished(image: Image, label: Label) -> Check:
    data = to_original(image, label, (0, 0, 0), SHAPE)
    masked = RemoveLabelTansform(-1, 0)(**MaskImageTransform([0, 1])(**data))
    theirs, ours = from_original(masked), finish_patch(image, label)
    difference = max(float((a.astype(float) != b).max()) for a, b in zip(ours, theirs, strict=True))
    return Check("outside the brain", difference, 0, "voxels that differ (1: any)")


def loader(patch: Shape3, enlarged: Shape3, batch: int = 2, share: float = 0.33) -> nnUNetDataLoader:
    """nnU-Net's loader without data."""
    labels = SimpleNamespace(all_labels=[0, 1, 2, 3], has_ignore_label=False)
    return nnUNetDataLoader(SimpleNamespace(identifiers=[]), batch, enlarged, patch, labels, share)


def _places(golden: dict[str, Any]) -> Iterator[Check]:
    """Sizes, bounds and the place of a patch about a voxel, for volumes larger and smaller than the patch."""
    sizes = np.array([augmentation_draws.original_geometry(patch).box for patch in PATCHES])
    golden |= {"enlarged/patches": PATCHES, "enlarged/sizes": sizes}
    ours = np.array([reach(patch, Augmentation()) for patch in PATCHES])
    yield Check("size of the enlarged patch", float(np.abs(ours - sizes).max()), 0, "voxels")
    rng, bounds, places = np.random.default_rng(0), [], []
    for patch in ((9, 12, 10), (24, 20, 20), (10, 9, 12)):
        enlarged = reach(patch, Augmentation()) if patch[0] < 20 else patch
        offset = enlarged_offset(patch, enlarged)
        for shape in rng.integers(8, 40, (20, 3)).tolist():
            theirs, volume_shape = loader(patch, enlarged), (shape[0], shape[1], shape[2])
            low, high = start_bounds(volume_shape, patch, enlarged)
            for pick, bound in ((min, low), (_last, high)):
                with replaced("numpy.random.randint", pick):
                    box = theirs.get_bbox(np.array(shape), False, None)[0]
                bounds.append(np.abs(np.array(box) + offset - bound).max())
            voxel = rng.integers(0, shape)
            start = choose_start(_case_of_one_voxel(volume_shape, voxel), patch, True, rng, enlarged=enlarged)
            box = theirs.get_bbox(np.array(shape), True, {1: np.array([[0, *voxel]])})[0]
            places.append(np.abs(np.array(box) + offset - start).max())
    yield Check("bounds of random patches", float(max(bounds)), 0, "voxels")
    yield Check("place of a patch about a voxel", float(max(places)), 0, "voxels")
    yield Check("positions of a batch that must hold foreground", _different_positions(), 0, "positions")


def _last(low: int, high: int) -> int:
    """The highest number `numpy.random.randint` may draw; `min` is the lowest."""
    del low
    return high - 1


def _case_of_one_voxel(shape: Shape3, voxel: Int64[np.ndarray, "3"]) -> Any:
    return SimpleNamespace(shape=shape, foreground=lambda: {1: voxel[None], 2: [], 3: []})


def _different_positions() -> int:
    different = 0
    for batch in range(1, 13):
        for share in (0.0, 0.33, 1 / 3, 0.5, 1.0):
            theirs = loader(SHAPE, SHAPE, batch, share)
            for position in range(batch):
                different += is_foreground_position(position, batch, share) != theirs.get_do_oversample(position)
    return different
