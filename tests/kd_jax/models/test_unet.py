import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity.check import GOLDEN
from experiments.parity.draws import PLAIN, RESIDUAL, draw_image, draw_labels, draw_state, summarise
from kd_jax.config.network import NetworkConfig
from kd_jax.config.schema import LossConfig
from kd_jax.models.unet import ResidualBlock, UNet
from kd_jax.nnunet.weights import convert_weights
from kd_jax.objective.supervised import segmentation_loss
from kd_jax.ops.operators import average_pool3d, leaky_relu
from tests.kd_jax.ops.forms import draw, lowered


def _shapes(config: NetworkConfig, patch: tuple[int, int, int], classes: int = 4):
    module = UNet(config, classes)
    x = jax.ShapeDtypeStruct((2, *patch, len(config.channels)), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return variables["params"], jax.eval_shape(module.apply, variables, x)


@pytest.mark.parametrize(("family", "topology"), [("plain", PLAIN), ("residual", RESIDUAL)])
def test_logits_loss_and_gradients_are_those_of_nnunet(family, topology):
    with np.load(GOLDEN / f"network_{family}.npz") as file:
        golden = dict(file)
    params = convert_weights(draw_state(json.loads(str(golden["shapes"])), 0), topology.network)

    def loss(params, image, labels):
        logits = UNet(topology.network, 4).apply({"params": params}, image).logits
        return segmentation_loss(logits, labels, LossConfig(segmentation="dice_ce"))[0], logits

    image, labels = draw_image(topology, 0), draw_labels(topology, 0)
    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, image, labels)
    assert len(logits) == len(topology.network.features) - 1
    for i, level in enumerate(logits):
        np.testing.assert_allclose(level, golden[f"logits_{i}"], atol=1e-4)
    assert value == pytest.approx(float(golden["loss"]), abs=1e-5)
    # Of each tensor: its norm, and its product with a random direction.
    np.testing.assert_allclose(summarise(gradients), golden["gradients"], atol=1e-4 * golden["gradients"].max())


def test_reversed_axes_are_those_the_network_sees_reversed():
    strides = ((1, 1, 1), (2, 1, 2))
    given, seen = (
        UNet(NetworkConfig(features=(2, 3), modalities=("flair",), strides=strides, reversed_axes=axes), 4)
        for axes in (("x", "z"), ())
    )
    x = draw((1, 4, 4, 6, 1))[0]
    variables = jax.jit(seen.init)(jax.random.key(0, impl="rbg"), x)
    apply = jax.jit(seen.apply)
    flipped = jax.tree.map(lambda y: y[:, ::-1, :, ::-1], apply(variables, x[:, ::-1, :, ::-1]))
    ours, plain = jax.jit(given.apply)(variables, x), apply(variables, x)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, flipped, plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        assert np.abs(a - c).max() > 1e-2


def test_a_residual_block_starts_as_its_skip():
    x = draw((2, 4, 4, 6, 3))[0]
    for stride in ((1, 1, 1), (2, 1, 2)):
        block = ResidualBlock(3, (3, 3, 3), stride, jnp.float32)
        y, variables = jax.jit(block.init_with_output)(jax.random.key(0, impl="rbg"), x)
        assert set(variables["params"]) == {"conv1", "conv2"}
        np.testing.assert_allclose(y, leaky_relu(average_pool3d(x, stride)), atol=1e-6)
    changed = jax.eval_shape(
        ResidualBlock(5, (3, 3, 3), (1, 1, 1), jnp.float32).init, jax.random.key(0, impl="rbg"), x
    )["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, changed["skip"]) == {
        "kernel": (1, 1, 1, 3, 5),
        "norm_scale": (5,),
        "norm_bias": (5,),
    }


def test_nnunet_brats_topology():
    # nnU-Net v2's plan for BraTS: 128³, six stages, five heads. The weights are counted layer by layer.
    features = (32, 64, 128, 256, 320, 320)
    params, output = _shapes(NetworkConfig(features=features, convs_encoder=2, convs_decoder=2), (128, 128, 128))
    sizes = 128, 64, 32, 16, 8, 4
    assert [level.shape for level in output.logits] == [(2, s, s, s, 4) for s in sizes[:-1]]
    stages = [(2, s, s, s, f) for s, f in zip(sizes, features, strict=True)]
    assert [stage.shape for stage in output.encoder] == stages
    assert [stage.shape for stage in output.decoder] == stages[:-1]
    assert output.encoder[-1].shape == (2, 4, 4, 4, 320)
    block = lambda c, o: 27 * c * o + 3 * o  # noqa: E731  kernel, bias, norm scale, norm bias
    expected, channels = 0, 4
    for f in features:
        expected += block(channels, f) + block(f, f)
        channels = f
    for low, f in zip(features[:0:-1], features[-2::-1], strict=True):
        expected += 8 * low * f + f + block(2 * f, f) + block(f, f) + 4 * f + 4
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("patch", "strides", "kernels", "expected"),
    [
        ((16, 16, 16), None, None, (4, 4, 4)),
        ((8, 16, 16), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 4, 4)),
        ((12, 8, 8), ((1, 1, 1), (3, 1, 2), (2, 2, 1)), None, (2, 4, 4)),
    ],
)
def test_anisotropic_shapes(patch, strides, kernels, expected):
    config = NetworkConfig(features=(2, 3, 5), strides=strides, kernels=kernels)
    _, output = _shapes(config, patch)
    logits = output.logits
    assert output.encoder[-1].shape == (2, *expected, 5)
    assert logits[0].shape == (2, *patch, 4)
    second = tuple(p // s for p, s in zip(patch, config.stage_strides[1], strict=True))
    assert logits[1].shape == (2, *second, 4)
    module = UNet(config, 4)
    assert module.level_strides == ((1, 1, 1), config.stage_strides[1])
    assert tuple(p // s for p, s in zip(patch, module.total_stride, strict=True)) == expected


@pytest.mark.parametrize(("encoder", "blocks"), [("plain", 3), ("residual", 4)])
def test_every_block_is_recomputed(encoder, blocks):
    # Two encoder stages, one decoder stage, and the residual encoder's stem.
    module = UNet(NetworkConfig(features=(4, 6), encoder=encoder), 4, remat="blocks")
    x = jnp.zeros((1, 8, 8, 8, 4))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    kept = jax.eval_shape(module.clone(remat="none").init, jax.random.key(0), x)
    assert jax.tree.structure(variables) == jax.tree.structure(kept)
    equations = jax.make_jaxpr(module.apply)(variables, x).eqns
    assert sum(equation.primitive.name == "remat2" for equation in equations) == blocks


LAYOUTS = {
    "plain": {},
    "anisotropic": {"strides": ((1, 1, 1), (2, 2, 1)), "kernels": ((3, 3, 1), (1, 3, 5)), "convs_encoder": 2},
    "residual": {"encoder": "residual"},
    "reversed": {"reversed_axes": ("x", "z"), "features": (3, 60)},
}


@pytest.mark.parametrize("family", LAYOUTS)
def test_layout_and_rematerialisation_do_not_change_parameters_and_numbers(family):
    config = NetworkConfig(**{"features": (4, 6), "modalities": ("flair", "t1ce"), **LAYOUTS[family]})
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 4, 4, 8, 2)), jnp.float32)
    variables = jax.jit(UNet(config, 4).init)(jax.random.key(1, impl="rbg"), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), variables)

    def evaluate(**options):
        module = UNet(config, 4, **options)
        shapes = jax.eval_shape(module.init, jax.random.key(1), x)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)

        def loss(variables):
            output = module.apply(variables, x)
            logits, bottleneck = output.logits, output.bottleneck
            waves = [jnp.sin((i + 1) * level).sum() for i, level in enumerate(logits)]
            return sum(waves) + jnp.cos(bottleneck).sum(), (logits, bottleneck)

        return jax.tree.leaves(jax.jit(jax.grad(loss, has_aux=True))(variables))

    options = {"remat": "blocks", "fold": 2} if family == "plain" else {"remat": "norms", "fold": 4}
    for ours, plain in zip(evaluate(**options), evaluate(), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5 * max(1, np.abs(plain).max()))


def test_norms_are_recomputed_and_convolutions_kept():
    config = NetworkConfig(features=(4, 6), modalities=("flair",))
    x = jnp.zeros((1, 8, 8, 8, 1))
    module = UNet(config, 4, remat="norms", fold=2)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def convolutions(remat):
        loss = lambda v: module.clone(remat=remat).apply(v, x).logits[0].sum()  # noqa: E731
        return sum(op.name == "stablehlo.convolution" for op in lowered(jax.grad(loss), variables, platform="tpu"))

    assert convolutions("norms") == convolutions("none") < convolutions("blocks")


def test_low_precision_is_that_of_activations_alone():
    config = NetworkConfig(features=(4, 6), modalities=("flair",))
    x = draw((1, 8, 8, 8, 1))[0]
    plain = UNet(config, 4)
    variables = jax.jit(plain.init)(jax.random.key(1), x)
    exact = jax.jit(plain.apply)(variables, x)[0][0]
    for options in ({}, {"remat": "norms", "fold": 4}):
        low = UNet(config, 4, jnp.bfloat16, **options)
        output = jax.jit(low.apply)(variables, x)
        logits, bottleneck = output.logits, output.bottleneck
        assert logits[0].dtype == jnp.float32 and bottleneck.dtype == jnp.bfloat16
        assert np.abs(logits[0] - exact).max() < 0.05 * np.abs(exact).max()


def test_initialisation_is_he_normal_with_zero_bias():
    config = NetworkConfig(features=(32, 64), convs_encoder=2)
    params = jax.jit(UNet(config, 4).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 8, 4)))["params"]
    kernel = params["encoder_1_1"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (1 + 0.01**2) / (27 * 64)), rel=0.02)
    up = params["up_0"]["kernel"]  # PyTorch: fan-in of a transposed convolution is outputs × kernel voxels
    assert np.std(up) == pytest.approx(np.sqrt(2 / (1 + 0.01**2) / (8 * 32)), rel=0.03)
    assert not np.any(params["encoder_0_0"]["bias"]) and not np.any(params["head_0"]["bias"])


def test_a_bias_before_the_norm_does_not_reach_the_output():
    config = NetworkConfig(features=(4, 6), modalities=("flair",))
    x = draw((1, 8, 8, 8, 1))[0]
    module = UNet(config, 4)
    params = jax.jit(module.init)(jax.random.key(1), x)["params"]
    apply = jax.jit(lambda p: module.apply({"params": p}, x).logits[0])
    moved = {**params, "encoder_0_0": {**params["encoder_0_0"], "bias": jnp.full(4, 0.7)}}
    np.testing.assert_allclose(apply(params), apply(moved), atol=2e-5)
