import functools
import tracemalloc
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.preprocessing import scratch
from kd_jax.inference import sliding_window as inference
from kd_jax.inference.sliding_window import make_predictor, windows_per_batch
from kd_jax.inference.windows import padded_shape, roomy, window_count, window_starts

ALL_AXES = (0, 1, 2)

PATCH = (8, 6, 4)
GOLDEN = Path(__file__).parents[2] / "golden" / "inference.npz"


def predictor(forward, patch=PATCH, params=None, *, classes, inputs=None, **options):
    """A network with its parameters in place; it sees the first channels unless told otherwise."""

    def predict(images, on_windows=None):
        channels = tuple(range(images.shape[-1])) if inputs is None else inputs
        return compiled(forward, patch, inputs=channels, outputs=classes, **options)(params, images, on_windows)

    return predict


compiled = functools.cache(make_predictor)  # most tests ask for one of a few networks, each compiled once


def volume(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def identity(params, x):
    return x


def box_filter(params, x):
    """Sum over 3 x 3 x 3 neighbours, zero beyond the patch."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0)))
    d, h, w = x.shape[1:4]
    return sum(padded[:, i : i + d, j : j + h, k : k + w] for i, j, k in product(range(3), repeat=3))


def position(params, x):
    """A network that answers with the place inside the window: blending shows in full."""
    grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, x.shape[1:4]), indexing="ij"), -1).astype(jnp.float32)
    return jnp.concatenate([x[..., :1] * grid[None, ..., :1], grid[None] + 0 * x[..., :1]], -1)


def convolutions(params, x):
    """A convolution, its normalisation over the window, LeakyReLU and a head, as the golden files' network."""
    layout = ("NDHWC", "DHWIO", "NDHWC")
    y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1, 1), "SAME", dimension_numbers=layout)
    y = (y - y.mean((1, 2, 3), keepdims=True)) / jnp.sqrt(y.var((1, 2, 3), keepdims=True) + 1e-5)
    return jnp.where(y > 0, y, 0.01 * y) @ params["head"][0, 0, 0]


def naive(forward, images, patch, mirror_axes, classes):
    """Sliding window from its definition, one window at a time, in float64."""
    edges = np.array(patch)
    short = np.maximum(edges - images.shape[:3], 0)
    padded = np.pad(images, [*((s // 2, s - s // 2) for s in short), (0, 0)])
    starts = []
    for size, edge in zip(padded.shape, patch, strict=False):
        count = int(np.ceil((size - edge) / (edge / 2))) + 1
        starts.append(np.round(np.linspace(0, size - edge, count)).astype(int) if count > 1 else [0])
    total, weights = np.zeros((*padded.shape[:3], classes)), np.zeros((*padded.shape[:3], 1))
    axes = [(np.arange(n) - n // 2) / (n / 8) for n in patch]
    gauss = np.exp(-sum(g**2 for g in np.meshgrid(*axes, indexing="ij")) / 2)[..., None]
    flips = [f for f in product([False, True], repeat=3) if all(a in mirror_axes for a in np.flatnonzero(f))]
    for start in product(*starts):
        window = tuple(slice(s, s + e) for s, e in zip(start, patch, strict=True))
        for flip in flips:
            turned = np.flip(padded[window], np.flatnonzero(flip))
            logits = np.asarray(forward(None, jnp.asarray(turned)[None]))[0]
            total[window] += gauss * np.flip(logits, np.flatnonzero(flip)) / len(flips)
        weights[window] += gauss
    inside = tuple(slice(s // 2, s // 2 + n) for s, n in zip(short, images.shape, strict=False))
    return (total / weights)[inside]


def test_a_constant_network_gives_its_constant_everywhere():
    constants = np.array([-3.5, 0.0, 7.25], np.float32)

    def constant(params, x):
        return jnp.broadcast_to(params, (*x.shape[:4], 3))

    predict = predictor(constant, params=constants, batch=3, classes=3)
    logits = predict(volume(19, 11, 9, 2))
    assert logits.shape == (19, 11, 9, 3) and logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.broadcast_to(constants, logits.shape), rtol=1e-6)


@pytest.mark.parametrize("mirror_axes", [(), ALL_AXES])
def test_an_identity_network_gives_back_the_volume(mirror_axes):
    compiled = make_predictor(identity, PATCH, inputs=(0, 1), outputs=2, batch=4, mirror_axes=mirror_axes)

    @settings(max_examples=15)
    @given(st.tuples(*[st.integers(1, 20)] * 3))
    def check(shape):
        images = volume(*shape, 2)
        np.testing.assert_allclose(compiled((), images), images, rtol=1e-5, atol=1e-6)

    check()


@pytest.mark.parametrize("mirror_axes", [(), (1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("shape", [(17, 13, 9), (5, 13, 3), (8, 6, 4)])
def test_equality_with_the_definition(shape, mirror_axes):
    images = volume(*shape, 2)
    predict = predictor(position, batch=5, mirror_axes=mirror_axes, classes=4)
    expected = naive(position, images, PATCH, mirror_axes, classes=4)
    np.testing.assert_allclose(predict(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "divided"), [((40, 11, 7), 1), ((5, 37, 40), 2), ((5, 37, 40), 3)])
def test_a_volume_in_several_chunks_is_that_in_one(monkeypatch, shape, divided):
    images, patch = volume(*shape, 3), (8, 12, 16)
    predict = compiled(position, patch, inputs=(0, 2), outputs=4, batch=3, mirror_axes=(0, 2))
    whole = predict(None, images)
    padded = padded_shape(shape, patch)
    room = roomy((*patch[:divided], *padded[divided:]))
    assert room != roomy(padded)
    monkeypatch.setattr(inference, "CHUNK_BYTES", int(np.prod(room)) * 4 * (2 + 4))
    np.testing.assert_allclose(predict(None, images), whole, rtol=1e-5, atol=1e-5)


def test_windowing_does_not_touch_a_convolution_away_from_window_borders():
    images = volume(30, 18, 12, 1)
    whole = np.asarray(box_filter(None, images[None]))[0]
    logits = predictor(box_filter, classes=1)(images)
    interior = np.ones(images.shape[:3], bool)
    for start in window_starts(images.shape[:3], PATCH):
        border = np.ones(PATCH, bool)
        border[1:-1, 1:-1, 1:-1] = False
        interior[tuple(slice(s, s + e) for s, e in zip(start, PATCH, strict=True))] &= ~border
    assert 100 < interior.sum() < interior.size
    np.testing.assert_allclose(logits[interior], whole[interior], atol=1e-5)
    assert np.abs(logits - whole)[~interior].max() > 0.1


def test_mirroring_changes_nothing_for_a_mirror_symmetric_network():
    images = volume(13, 9, 7, 1)
    plain = predictor(box_filter, classes=1)(images)
    mirrored = predictor(box_filter, classes=1, mirror_axes=ALL_AXES)(images)
    np.testing.assert_allclose(mirrored, plain, rtol=1e-5, atol=1e-5)


def test_mirroring_makes_any_network_symmetric():
    patch = (6, 6, 6)  # one window; `position` is far from symmetric
    images = volume(*patch, 1)
    predict = predictor(position, patch, mirror_axes=ALL_AXES, classes=4)
    for axis in ALL_AXES:
        np.testing.assert_allclose(predict(np.flip(images, axis)), np.flip(predict(images), axis), atol=1e-5)


def test_one_program_serves_all_volumes_mirrorings_and_networks_of_an_architecture():
    traced = []

    def forward(params, x):
        traced.append(x.shape)
        return params * x

    predict = make_predictor(forward, PATCH, inputs=(0, 1), outputs=2, batch=3, mirror_axes=ALL_AXES)
    for factor, shape in enumerate([(8, 6, 4), (17, 13, 9), (3, 20, 5)], 1):
        images = volume(*shape, 2)
        np.testing.assert_allclose(predict(jnp.float32(factor), images), factor * images, rtol=1e-5, atol=1e-5)
    assert traced == [(3, *PATCH, 2)]


def test_a_network_sees_its_channels_in_its_order():
    images = volume(9, 11, 3, 4)
    seen = predictor(identity, classes=2, inputs=(3, 1))(images)
    np.testing.assert_allclose(seen, images[..., [3, 1]], rtol=1e-5, atol=1e-6)


def test_a_large_volume_lies_on_disk_with_the_same_logits(monkeypatch):
    images = volume(150, 64, 64, 2)  # 4 classes: 9.8 MB of logits
    predict = make_predictor(position, (32, 32, 32), inputs=(0, 1), outputs=4, batch=4)
    monkeypatch.setattr(inference, "CHUNK_BYTES", 32 * 64 * 64 * 4 * (2 + 4))
    in_memory = predict(None, images)
    monkeypatch.setattr(scratch, "IN_MEMORY", 100_000)
    tracemalloc.start()
    on_disk = predict(None, images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(on_disk, np.memmap) and not isinstance(in_memory, np.memmap)
    np.testing.assert_array_equal(on_disk, in_memory)
    assert peak < in_memory.nbytes / 2


def test_the_batch_size_does_not_change_the_result():
    images = volume(17, 13, 9, 2)
    one, seven = (predictor(position, batch=n, classes=4)(images) for n in (1, 7))
    np.testing.assert_allclose(one, seven, rtol=1e-6, atol=1e-6)


def test_every_window_is_reported_once():
    done = []
    predictor(identity, batch=4, classes=1)(volume(17, 13, 9, 1), done.append)
    assert sum(done) == window_count((17, 13, 9), PATCH) and max(done) == 4


def test_half_precision_networks_return_float32():
    predict = predictor(lambda params, x: x.astype(jnp.bfloat16), classes=1)
    logits = predict(volume(8, 9, 4, 1))
    assert logits.dtype == np.float32 and not isinstance(logits, jax.Array)


def test_windows_per_batch_fill_an_accelerator_and_spare_a_cpu():
    assert windows_per_batch((128, 128, 128), "gpu") == 1
    assert windows_per_batch((64, 64, 64), "tpu") == 8
    assert windows_per_batch((160, 192, 160), "gpu") == 1
    assert windows_per_batch((32, 32, 32), "cpu") == 1


@pytest.mark.parametrize(
    ("name", "shape", "patch", "axes"),
    [
        ("smaller than the patch", (15, 6, 9), (8, 8, 8), (0, 2)),
        ("anisotropic patch", (10, 17, 7), (8, 12, 4), (1,)),
        ("odd sizes", (13, 11, 9), (8, 8, 8), (0, 1, 2)),
    ],
)
def test_blended_logits_are_nnunet_s(name, shape, patch, axes):
    golden = np.load(GOLDEN)
    params = {"kernel": golden["kernel"], "head": golden["head"]}
    images = np.random.default_rng(sum(shape)).normal(size=(*shape, 2)).astype(np.float32)
    for mirrored in ((), axes):
        logits = predictor(convolutions, patch, params, classes=4, batch=3, mirror_axes=mirrored)(images)
        np.testing.assert_allclose(logits, golden[f"{name}/{''.join(map(str, mirrored))}"], atol=1e-4)
