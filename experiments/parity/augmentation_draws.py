"""How often nnU-Net's transforms and ours are drawn, with which effect, and how many patches each makes a second."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from jaxtyping import Float64
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy import ndimage, stats

from data_pipeline.conventions import OUTSIDE_BRAIN, Index3, Shape3
from data_pipeline.patches import augment
from data_pipeline.patches.augment import Augmentation, augment_patch, reach
from data_pipeline.patches.sampling import EACH_CLASS, EACH_REGION, Groups, choose_start, enlarged_offset
from data_pipeline.patches.spatial import Image
from experiments.parity.check import Check

PATCH: Shape3 = (16, 14, 15)
SHAPE: Shape3 = (30, 28, 27)
DRAWS, PIPELINE_DRAWS, PLACES = 2000, 1500, 8000
SIGMAS = 4.0
"""Bound of a share, in its standard deviations."""
TRANSFORMS: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("noise", augment.add_noise),
    ("blur", augment.random_blur),
    ("brightness", augment.random_brightness),
    ("contrast", augment.random_contrast),
    ("low_resolution", augment.random_low_resolution),
    ("inverted_gamma", augment.random_gamma),
    ("gamma", augment.random_gamma),
)
"""In nnU-Net's order, after rotation and zoom."""
_PROBABILITIES: dict[str, Any] = {f.name: 0.0 for f in fields(Augmentation) if isinstance(f.default, float)}
OFF = Augmentation(**_PROBABILITIES)

Effects = Float64[np.ndarray, "runs statistics"]


def ks_bound(runs: int) -> float:
    """Largest distance of two empirical distributions of equal ones, at a significance of 1e-5."""
    return float(np.sqrt(-np.log(0.5e-5) / 2) * np.sqrt(2 / runs))


def checks() -> Iterator[Check]:
    """Every transform, all of them in order, and where patches are cut."""
    np.random.seed(0)  # noqa: NPY002 the originals draw from the global generators
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    yield from _each_transform(rng)
    yield from _whole(rng)
    yield from _places(rng)


class Geometry(NamedTuple):
    """nnU-Net's decisions from a patch size: angles in radians, whether it is flat, size of its box, mirrored axes."""

    rotation: tuple[float, float]
    flat: bool
    box: Shape3
    axes: tuple[int, ...]


def original_geometry(patch: Shape3) -> Geometry:
    """nnU-Net's decisions for a patch; the thin axis comes first."""
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=list(patch)), print_to_log_file=lambda *_, **__: None
    )
    rotation, flat, box, axes = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    x, y, z = map(int, box)
    return Geometry(rotation, flat, (x, y, z), axes)


def original_pipeline(patch: Shape3, channels: int) -> tuple[list[Any], Shape3]:
    """nnU-Net's training transforms without deep supervision, and the size of the box they take."""
    rotation, flat, box, axes = original_geometry(patch)
    masked = [True] * channels
    composed = nnUNetTrainer.get_training_transforms(patch, rotation, None, axes, flat, use_mask_for_norm=masked)
    return composed.transforms, box


def ellipsoid(shape: Shape3) -> tuple[Image, Any]:
    """A smooth image in three channels, the first two alike, and a layered tumour in a brain with air around it."""
    rng = np.random.default_rng(0)
    centred = np.moveaxis(np.indices(shape), 0, -1) / (np.array(shape) - 1) * 2 - 1
    radius = np.linalg.norm(centred, axis=-1)
    label = np.where(radius < 1, 0, OUTSIDE_BRAIN).astype(np.uint8)
    distance = np.linalg.norm(centred - (0.1, -0.2, 0.15), axis=-1)
    for size, name in ((0.6, 2), (0.4, 3), (0.2, 1)):
        label[distance < size] = name
    field = ndimage.gaussian_filter(rng.standard_normal((*shape, 2)), (1, 1, 1, 0)) * 3 + centred[..., :2]
    image = field[..., [0, 0, 1]] * (label != OUTSIDE_BRAIN)[..., None]
    return image.astype(np.float32), label


def _each_transform(rng: np.random.Generator) -> Iterator[Check]:
    """Effects where a transform is applied, and how often it is."""
    image, _ = ellipsoid(PATCH)
    transforms = original_pipeline(PATCH, 3)[0][1:8]
    planar = torch.from_numpy(np.moveaxis(image, -1, 0).copy())
    for (name, ours), theirs in zip(TRANSFORMS, transforms, strict=True):
        probability = getattr(Augmentation(), name)
        always, sometimes = (replace(Augmentation(), **_only(name, share)) for share in (1.0, probability))

        def run_ours(settings: Augmentation, ours: Callable[..., Any] = ours) -> Image:
            return ours(_planar_copy(image), settings, rng)

        def run_theirs(transform: Any) -> Image:
            return np.moveaxis(transform(image=planar.clone())["image"].numpy(), 0, -1)

        effects = [
            np.array([_effect(make(), image) for _ in range(DRAWS)])
            for make in (lambda: run_ours(always), lambda: run_theirs(theirs.transform))  # noqa: B023
        ]
        yield _distance(f"{name}: its effect", *effects)
        shares = [
            np.mean([not np.array_equal(make(), image) for _ in range(DRAWS)])
            for make in (lambda: run_ours(sometimes), lambda: run_theirs(theirs))  # noqa: B023
        ]
        yield _shares(f"{name}: how often", shares[0], shares[1], DRAWS)


def _only(name: str, share: float) -> dict[str, Any]:
    """Both gammas are one function of ours: the other one is switched off."""
    return {"gamma": 0.0, "inverted_gamma": 0.0, name: share}


def _planar_copy(image: Image) -> Image:
    """As `cut_patch` returns it: each channel contiguous."""
    return np.moveaxis(np.moveaxis(image, -1, 0).copy(), 0, -1)


def _effect(changed: Image, image: Image) -> list[float]:
    """Statistics of the change; the first two channels were alike, so they tell what is drawn once for all."""
    change = changed - image
    figures = [float(np.abs(changed[..., 0] - changed[..., 1]).mean())]
    for c in range(3):
        channel, before = changed[..., c], image[..., c]
        figures += [change[..., c].mean(), channel.std() - before.std(), channel.min() - before.min()]
        figures += [channel.max() - before.max(), np.abs(change[..., c]).mean()]
        figures += [np.abs(np.diff(channel, axis=axis)).mean() for axis in range(3)]
    return np.round(figures, 4).tolist()  # rounding errors of single precision are no difference


def _whole(rng: np.random.Generator) -> Iterator[Check]:
    """From the volume to the finished patch."""
    turning = replace(OFF, rotation=0.2, zoom=0.2)
    flat: Shape3 = (4, 14, 15)
    yield _pipeline("mirroring", PATCH, replace(OFF, mirror=0.5), rng)
    yield _pipeline("rotation and zoom", PATCH, turning, rng)
    yield _pipeline("rotation and zoom of flat patches", flat, turning, rng)
    yield _pipeline("everything in order", PATCH, Augmentation(), rng)
    yield _pipeline("everything in order, flat patches", flat, Augmentation(), rng)


def _pipeline(name: str, patch: Shape3, settings: Augmentation, rng: np.random.Generator) -> Check:
    """Compares finished patches; transforms that the settings switch off are left out on nnU-Net's side."""
    image, label = ellipsoid(SHAPE)
    start: Index3 = (7, 5, 8)
    transforms, box = original_pipeline(patch, 3)
    chosen = [t for t in transforms if _is_on(t, settings)]
    planar, classes = original_box(image, label, np.array(start) - enlarged_offset(patch, box), box)

    def theirs() -> tuple[Image, Any]:
        data = {"image": planar.clone(), "segmentation": classes.clone()}
        for transform in chosen:
            data = transform(**data)
        return np.moveaxis(data["image"].numpy(), 0, -1), data["segmentation"][0].numpy()

    def ours() -> tuple[Image, Any]:
        return augment_patch(image, label, start, patch, settings, rng)

    effects = [np.array([_summary(*make()) for _ in range(PIPELINE_DRAWS)]) for make in (ours, theirs)]
    return _distance(name, *effects)


def _is_on(transform: Any, settings: Augmentation) -> bool:
    """Cutting out the patch and masking are always on; the seven intensity transforms are all on or all off."""
    match type(transform).__name__:
        case "SpatialTransform":
            transform.p_rotation, transform.p_scaling = settings.rotation, settings.zoom
            return True
        case "RandomTransform":
            return settings.noise > 0
        case "MirrorTransform":
            return settings.mirror > 0
    return True


def original_box(
    image: Image, label: Any, corner: Iterable[int], size: Iterable[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and label of the box at `corner` as nnU-Net's loader hands them to the transforms."""
    box = [[int(s), int(s + n)] for s, n in zip(corner, size, strict=True)]
    classes = np.where(label == OUTSIDE_BRAIN, -1, label.astype(np.int16))[None]
    return (
        torch.from_numpy(crop_and_pad_nd(np.moveaxis(image, -1, 0), box, 0).copy()).float(),
        torch.from_numpy(crop_and_pad_nd(classes, box, -1).copy()),
    )


def _summary(image: Image, label: Any) -> list[float]:
    """Statistics of a finished patch: values, sharpness, what lies in two corners, how much of each class."""
    figures: list[float] = [float(np.count_nonzero(label == c)) for c in (1, 2, 3)]
    for c in range(image.shape[3]):
        channel = image[..., c]
        figures += [channel.mean(), channel.std(), channel.min(), channel.max()]
        figures += [channel[2, 2, 2], channel[-2, -3, -2]]
        figures += [np.abs(np.diff(channel, axis=axis)).mean() for axis in range(3)]
    return np.round(figures, 3).tolist()


def _places(rng: np.random.Generator) -> Iterator[Check]:
    """Where patches are cut, at random and about foreground, for labels and for regions."""
    _, label = ellipsoid(SHAPE)
    patch: Shape3 = (9, 12, 10)
    enlarged = reach(patch, Augmentation())
    labels = SimpleNamespace(all_labels=[0, 1, 2, 3], has_ignore_label=False)
    loader = nnUNetDataLoader(SimpleNamespace(identifiers=[]), 2, enlarged, patch, labels, 0.33)
    case: Any = SimpleNamespace(
        shape=SHAPE,
        label=lambda: label,
        # Few of each class, as of a tumour of more than 10,000 voxels: their number must not tell the class's size.
        foreground=lambda: {c: rng.permutation(np.argwhere(label == c))[:40] for c in (1, 2, 3)},
    )
    half = np.array(patch) // 2
    for name, groups, forced in (
        ("random patches", EACH_CLASS, False),
        ("patches about a class", EACH_CLASS, True),
        ("patches about a region", EACH_REGION, True),
    ):
        known = _class_locations(label, groups)
        ours = np.array(
            [choose_start(case, patch, forced, rng, enlarged=enlarged, groups=groups) for _ in range(PLACES)]
        )
        boxes = [loader.get_bbox(np.array(SHAPE), forced, known)[0] for _ in range(PLACES)]
        theirs = np.array(boxes) + enlarged_offset(patch, enlarged)
        yield _distance(f"{name}: first voxel", ours.astype(float), theirs.astype(float))
        for c in (1, 2, 3):
            shares = [np.mean(label[*(start + half).T] == c) for start in (ours, theirs)]
            yield _shares(f"{name}: class {c} at the centre", shares[0], shares[1], PLACES)


def _class_locations(label: Any, groups: Groups) -> dict[Any, Any]:
    """As nnU-Net's preprocessing keeps them, a group of one class by its number."""
    wanted = [group[0] if len(group) == 1 else group for group in groups]
    classes = np.where(label == OUTSIDE_BRAIN, 0, label)[None].astype(np.int8)
    return DefaultPreprocessor._sample_foreground_locations(classes, wanted)


def _distance(name: str, ours: Effects, theirs: Effects) -> Check:
    """The largest Kolmogorov-Smirnov distance of all statistics."""
    distances = [stats.ks_2samp(a, b).statistic for a, b in zip(ours.T, theirs.T, strict=True)]
    measure = f"largest KS distance of {len(distances)} statistics"
    return Check(name, float(max(distances)), ks_bound(len(ours)), measure)


def _shares(name: str, ours: np.floating, theirs: np.floating, runs: int) -> Check:
    pooled = (ours + theirs) / 2
    deviation = np.sqrt(pooled * (1 - pooled) * 2 / runs)
    return Check(name, float(abs(ours - theirs) / deviation), SIGMAS, "standard deviations between the shares")


def print_throughput(rounds: int = 30) -> None:
    """Patches per second of processor time, 128³ voxels of four modalities, ours and nnU-Net's in turn.

    nnU-Net's time is that of the transforms alone. Cutting the enlarged box out of the volume, which our time includes,
    is timed separately.
    """
    image, label = ellipsoid((140, 172, 140))
    image = np.ascontiguousarray(image[..., [0, 1, 2, 2]])
    patch, start = (128, 128, 128), (6, 22, 6)
    transforms, box = original_pipeline(patch, 4)
    corner = np.array(start) - enlarged_offset(patch, box)
    times: dict[str, list[float]] = {"this code": [], "batchgeneratorsv2": [], "cutting its box": []}
    for _ in range(5):  # in which nnU-Net tries out how to blur
        transforms[2].transform(image=original_box(image, label, corner, patch)[0])
    for number in range(rounds):
        begin = time.process_time()
        augment_patch(image, label, start, patch, Augmentation(), np.random.default_rng(number))
        ours = time.process_time()
        planar, classes = original_box(image, label, corner, box)
        cut = time.process_time()
        data = {"image": planar, "segmentation": classes}
        for transform in transforms:
            data = transform(**data)
        done = time.process_time()
        for name, seconds in zip(times, (ours - begin, done - cut, cut - ours), strict=True):
            times[name].append(seconds)
    for name, found in times.items():
        print(f"{name}: {1 / np.mean(found):.1f} patches/s in the mean, {1 / np.median(found):.1f} in the median")
