import pytest

from kd_jax.config.network import NetworkConfig
from kd_jax.planning.topology import feature_map_size, pool


def test_an_isotropic_patch_is_halved_while_eight_voxels_are_left():
    topology = pool((1, 1, 1), (128, 128, 128))
    assert topology.strides == ((1, 1, 1), *((2, 2, 2),) * 5)
    assert topology.kernels == ((3, 3, 3),) * 6
    assert topology.patch == (128, 128, 128) and topology.total_stride == (32, 32, 32)


def test_a_coarse_axis_is_neither_pooled_nor_convolved_before_the_others_reach_it():
    topology = pool((3.6, 0.6, 0.6), (20, 320, 256))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    assert topology.kernels == ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)


def test_an_axis_twice_as_coarse_has_to_wait_one_less_than_that_has_not():
    assert pool((2, 1, 1), (64, 64, 64)).strides[:3] == ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    assert pool((2, 1, 1), (64, 64, 64)).kernels[:2] == ((1, 3, 3), (3, 3, 3))
    assert pool((1.99, 1, 1), (64, 64, 64)).strides[1] == (2, 2, 2)
    assert pool((1.99, 1, 1), (64, 64, 64)).kernels[0] == (3, 3, 3)


def test_one_axis_alone_is_halved_from_twelve_voxels_on():
    assert pool((1, 1, 1), (4, 4, 11)).strides == ((1, 1, 1),)
    assert pool((1, 1, 1), (4, 4, 12)).strides == ((1, 1, 1), (1, 1, 2))


def test_a_patch_is_rounded_up_to_what_is_pooled():
    assert pool((1, 1, 1), (137.5, 171, 128)).patch == (160, 192, 128)
    assert pool((1, 1, 1), (7.5, 16, 16)).patch == (8, 16, 16)  # not long enough to be pooled before rounding


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        # Two stages of 3 and 5 channels on 4·4·4 and 2·4·4 voxels, 2 and 1 convolutions; a transposed and a usual one
        # in the decoder; 4 logits.
        ("plain", 2 * 3 * 64 + 5 * 32 + 2 * 3 * 64 + 4 * 64),
        # A stem; two blocks of two; one block of two whose skip path changes shape.
        ("residual", 3 * 64 + 4 * 3 * 64 + 3 * 5 * 32 + 2 * 3 * 64 + 4 * 64),
    ],
)
def test_feature_maps_by_hand(encoder, expected):
    network = NetworkConfig(
        features=(3, 5), strides=((1, 1, 1), (2, 1, 1)), encoder=encoder, convs_encoder=(2, 1), convs_decoder=1
    )
    assert feature_map_size(network, (4, 4, 4), 4) == expected


def test_feature_maps_that_nnunet_states():
    """Of ResEncM at 128³ with one channel and three outputs, a comment in nnU-Net's planner."""
    network = NetworkConfig(
        features=(32, 64, 128, 256, 320, 320), encoder="residual", convs_encoder=(1, 3, 4, 6, 6, 6), convs_decoder=1
    )
    deep = 3 * sum((128 >> level) ** 3 for level in range(1, 5))  # that figure is with deep supervision
    assert feature_map_size(network, (128, 128, 128), 3) + deep == 558319104
