"""The 3-D U-Nets of nnU-Net, plain and with a residual encoder, as pure functions of parameters.

Source: Isensee et al. 2021 and 2024; `PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures:
convolution (bias), InstanceNorm (affine), LeakyReLU; strided convolution down; transposed convolution up;
concatenation (up, skip); a 1×1×1 head at every decoder level. All modules are stateless: `init` and `apply`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float

from kd_jax.config import AXES, NetworkConfig
from kd_jax.models.operators import (
    NEGATIVE_SLOPE,
    Triple,
    average_pool3d,
    conv3d,
    instance_norm,
    instance_norm_leaky_relu,
    leaky_relu,
    up_conv3d,
)

_HE = 2 / (1 + NEGATIVE_SLOPE**2)
_kernel_init = variance_scaling(_HE, "fan_in", "normal")
# PyTorch counts the fan-in of a transposed convolution over its outputs.
_up_kernel_init = variance_scaling(_HE, "fan_in", "normal", in_axis=-1, out_axis=-2)


class ConvBlock(nn.Module):
    """Convolution, InstanceNorm, LeakyReLU: [N, D, H, W, C] to [N, D/s, H/s, W/s, features].

    Attributes:
      features: output channels.
      kernel: kernel size.
      stride: stride.
      dtype: precision of activations; statistics of the norm are float32.
      bias: whether the convolution has one.
      activate: whether LeakyReLU follows the norm.
      scale_init: initial scale of the norm.
    """

    features: int
    kernel: Triple
    stride: Triple
    dtype: Any
    bias: bool = True
    activate: bool = True
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n p q r o"]:
        """Applies the block in `dtype`."""
        kernel = self.param("kernel", _kernel_init, (*self.kernel, x.shape[-1], self.features))
        y = conv3d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        scale = self.param("norm_scale", self.scale_init, (self.features,))
        shift = self.param("norm_bias", nn.initializers.zeros, (self.features,))
        return (instance_norm_leaky_relu if self.activate else instance_norm)(y, scale, shift)


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, LeakyReLU after their sum (`BasicBlockD` of dynamic-network-architectures).

    The stride is in the first convolution, and an average pool in the skip; a 1×1×1 convolution with its norm
    follows there only if the number of channels changes. The last norm starts at zero, the block as its skip.
    """

    features: int
    kernel: Triple
    stride: Triple
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n p q r o"]:
        """[N, D, H, W, C] to [N, D/s, H/s, W/s, features]."""
        y = ConvBlock(self.features, self.kernel, self.stride, self.dtype, name="conv1")(x)
        zeros, one = nn.initializers.zeros, (1, 1, 1)
        y = ConvBlock(self.features, self.kernel, one, self.dtype, activate=False, scale_init=zeros, name="conv2")(y)
        skip = x if self.stride == one else average_pool3d(x, self.stride)
        if x.shape[-1] != self.features:
            skip = ConvBlock(self.features, one, one, self.dtype, bias=False, activate=False, name="skip")(skip)
        return leaky_relu(y + skip)


class UpConv(nn.Module):
    """Transposed convolution with kernel = stride and bias."""

    features: int
    stride: Triple
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n p q r o"]:
        """[N, D, H, W, C] to [N, sD, sH, sW, features]."""
        kernel = self.param("kernel", _up_kernel_init, (*self.stride, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return up_conv3d(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Head(nn.Module):
    """1×1×1 convolution with bias to class logits, float32."""

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w k"]:
        """[N, D, H, W, C] to [N, D, H, W, classes]."""
        kernel = self.param("kernel", _kernel_init, (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32) + bias


class UNet(nn.Module):
    """nnU-Net's U-Net. Teacher and student are two configurations of this class.

    Attributes:
      config: stages, features, kernels, strides, kind of encoder, convolutions per stage, reversed axes.
      classes: number of output channels, background included where there is one.
      dtype: precision of activations; parameters, norms' statistics and logits are float32.
      remat: recompute every block in the backward pass instead of keeping its activations.
    """

    config: NetworkConfig
    classes: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "n d h w c"]
    ) -> tuple[list[Float[Array, "n _d _h _w k"]], Float[Array, "n p q r f"]]:
        """Segments a batch of patches.

        Args:
          x: [N, D, H, W, C], C modalities in the order of `conventions.MODALITIES`; each size a
            multiple of the network's total stride.

        Returns:
          Logits of every decoder level, finest first, [N, D/s, H/s, W/s, classes] float32; and the
          bottleneck, [N, D/S, H/S, W/S, F] in `dtype`. All have the directions of `x`, whichever axes
          the network itself sees reversed.
        """
        skips = self._encode(self._reverse(x))
        bottleneck = skips[-1]
        logits = self._decode(skips)
        return [self._reverse(level) for level in logits], self._reverse(bottleneck)

    def _reverse(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w c"]:
        axes = [1 + AXES.index(axis) for axis in self.config.reversed_axes]
        return jnp.flip(x, axes) if axes else x

    def _encode(self, x: Float[Array, "n d h w c"]) -> list[Float[Array, "n _d _h _w _c"]]:
        """Output of every encoder stage, finest first."""
        config, block = self.config, self._block(ConvBlock)
        stage_block = block if config.encoder == "plain" else self._block(ResidualBlock)
        if config.encoder == "residual":
            x = block(config.features[0], config.stage_kernels[0], (1, 1, 1), self.dtype, name="stem")(x)
        skips = []
        for i, features in enumerate(config.features):
            for j in range(config.stage_convs_encoder[i]):
                stride = config.stage_strides[i] if j == 0 else (1, 1, 1)
                x = stage_block(features, config.stage_kernels[i], stride, self.dtype, name=f"encoder_{i}_{j}")(x)
            skips.append(x)
        return skips

    def _decode(self, skips: list[Float[Array, "n _d _h _w _c"]]) -> list[Float[Array, "n _d _h _w k"]]:
        """Logits of every decoder level, finest first."""
        config, block = self.config, self._block(ConvBlock)
        *skips, x = skips
        logits = []
        for i in reversed(range(len(skips))):
            x = UpConv(config.features[i], config.stage_strides[i + 1], self.dtype, name=f"up_{i}")(x)
            x = jnp.concatenate([x, skips[i]], axis=-1)
            for j in range(config.stage_convs_decoder[i]):
                name = f"decoder_{i}_{j}"
                x = block(config.features[i], config.stage_kernels[i], (1, 1, 1), self.dtype, name=name)(x)
            logits.append(Head(self.classes, name=f"head_{i}")(x))
        return logits[::-1]

    def _block(self, block: Any) -> Any:
        return nn.remat(block) if self.remat else block
