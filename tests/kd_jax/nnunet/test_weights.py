import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity.check import GOLDEN
from experiments.parity.draws import PLAIN, RESIDUAL, draw_state
from kd_jax.models.unet import UNet
from kd_jax.nnunet.weights import convert_weights

FAMILIES = {"plain": PLAIN, "residual": RESIDUAL}


def _state(family):
    """Weights by the names and shapes that nnU-Net's network of this topology has."""
    with np.load(GOLDEN / f"network_{family}.npz") as golden:
        return draw_state(json.loads(str(golden["shapes"])), 0)


def _assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tree_is_that_of_our_network(family):
    network = FAMILIES[family].network
    image = jnp.zeros((1, 4, 8, 8, len(network.channels)))
    ours = jax.eval_shape(UNet(network, 4).init, jax.random.key(0), image)["params"]
    params = convert_weights(_state(family), network)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, ours)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_kernels_by_hand():
    state = _state("plain")
    params = convert_weights(state, PLAIN.network)
    weight = state["encoder.stages.1.0.convs.0.conv.weight"]  # [O, C, k, k, k], 4 channels to 6
    assert params["encoder_1_0"]["kernel"][0, 1, 2, 3, 5] == weight[5, 3, 0, 1, 2]
    weight = state["decoder.transpconvs.0.weight"]  # [C, O, s, s, s], the coarsest, 8 channels to 6
    assert params["up_1"]["kernel"][1, 0, 1, 7, 5] == weight[7, 5, 1, 0, 1]
    assert params["head_0"]["kernel"][3, 2] == state["decoder.seg_layers.1.weight"][2, 3, 0, 0, 0]
    np.testing.assert_array_equal(params["head_1"]["bias"], state["decoder.seg_layers.0.bias"])
    np.testing.assert_array_equal(params["encoder_2_1"]["norm_bias"], state["encoder.stages.2.0.convs.1.norm.bias"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_copies_and_wrappers_change_nothing(family, prefix):
    state = _state(family)
    saved = {}
    for name, value in state.items():
        copies = [name, name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")]
        copies += [f"decoder.{copy}" for copy in copies if copy.startswith("encoder.")]
        saved |= {prefix + copy: value for copy in copies}
    _assert_equal(convert_weights(saved, FAMILIES[family].network), convert_weights(state, FAMILIES[family].network))


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0)])
def test_axes_are_placed(axes):
    state = _state("residual")
    inverse = np.argsort(axes)
    theirs = {n: v.transpose(0, 1, *(2 + inverse)) if v.ndim == 5 else v for n, v in state.items()}
    assert any(theirs[name].shape != state[name].shape for name in state)
    _assert_equal(convert_weights(theirs, RESIDUAL.network, axes=axes), convert_weights(state, RESIDUAL.network))


def test_modalities_and_outputs_are_reordered():
    plain = convert_weights(_state("plain"), PLAIN.network)
    params = convert_weights(_state("plain"), PLAIN.network, channels=[2, 0, 3, 1], outputs=[3, 0, 2, 1])
    np.testing.assert_array_equal(params["encoder_0_0"]["kernel"][..., 1, :], plain["encoder_0_0"]["kernel"][..., 0, :])
    np.testing.assert_array_equal(params["encoder_0_0"]["kernel"][..., 2, :], plain["encoder_0_0"]["kernel"][..., 3, :])
    for head in ("head_0", "head_1"):
        np.testing.assert_array_equal(params[head]["kernel"][:, 0], plain[head]["kernel"][:, 3])
        assert params[head]["bias"][1] == plain[head]["bias"][0]
    _assert_equal(
        {**params, "encoder_0_0": 0, "head_0": 0, "head_1": 0}, {**plain, "encoder_0_0": 0, "head_0": 0, "head_1": 0}
    )


def _without(name):
    return lambda state: {n: v for n, v in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("decoder.transpconvs.0.bias"), "decoder.transpconvs.0.bias is missing"),
        (_without("decoder.seg_layers.1.bias"), "decoder.seg_layers.1.bias is missing"),
        (
            lambda s: {**s, "encoder.stages.3.0.convs.0.conv.weight": np.zeros((9, 8, 3, 3, 3))},
            r"encoder.stages.3.0.convs.0.conv.weight \(9, 8, 3, 3, 3\) is left over",
        ),
        (
            lambda s: {**s, "encoder.stages.0.0.convs.0.all_modules.2.bias": np.zeros(4)},
            "all_modules.2.bias .* is left over",  # a norm in the third place follows the nonlinearity or a dropout
        ),
        (
            lambda s: {**s, "encoder.stages.0.0.convs.0.conv.weight": np.zeros((4, 2, 1, 3, 3))},
            r"encoder.stages.0.0.convs.0.conv.weight has shape \(4, 2, 1, 3, 3\); .* \(4, 4, 1, 3, 3\)",
        ),
        (
            lambda s: {**s, "decoder.transpconvs.1.weight": np.zeros((4, 6, 1, 2, 2))},
            r"decoder.transpconvs.1.weight has shape \(4, 6, 1, 2, 2\); .* \(6, 4, 1, 2, 2\)",
        ),
        (
            lambda s: {**s, "decoder.seg_layers.0.weight": np.zeros((3, 6, 1, 1, 1))},
            r"decoder.seg_layers.0.weight has shape \(3, 6, 1, 1, 1\); .* \(4, 6, 1, 1, 1\)",
        ),
        (
            lambda s: {**s, "encoder.stages.0.0.convs.0.norm.bias": np.zeros((4, 1))},
            r"norm.bias has shape \(4, 1\); .* \(4,\)",
        ),
        (
            lambda s: {**s, "decoder.encoder.stages.0.0.convs.0.conv.bias": np.zeros(4)},
            "decoder.encoder.stages.0.0.convs.0.conv.bias differs from encoder.stages.0.0.convs.0.conv.bias",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    state = change(_state("plain"))
    with pytest.raises(ValueError, match=message):
        convert_weights(state, PLAIN.network)


@pytest.mark.parametrize("order", [{"channels": [0, 1, 2]}, {"channels": [0, 1, 2, 2]}, {"outputs": [1, 2, 3, 4]}])
def test_an_order_is_a_permutation(order):
    state = _state("plain")
    with pytest.raises(ValueError, match=r"expected each of 0 to 3 once"):
        convert_weights(state, PLAIN.network, **order)
