"""The plain 3-D U-Net of nnU-Net, as pure functions of parameters.

Source: Isensee et al. 2021, and `PlainConvUNet` of dynamic-network-architectures: convolution (bias),
InstanceNorm (affine), LeakyReLU; strided convolution down; transposed convolution up; concatenation
(up, skip); a 1×1×1 head at every decoder level. All modules are stateless: `init` and `apply`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float

from kd_jax.config import NetworkConfig
from kd_jax.models.operators import NEGATIVE_SLOPE, Triple, conv3d, instance_norm_leaky_relu, up_conv3d

_HE = 2 / (1 + NEGATIVE_SLOPE**2)
_kernel_init = variance_scaling(_HE, "fan_in", "normal")
# PyTorch counts the fan-in of a transposed convolution over its outputs.
_up_kernel_init = variance_scaling(_HE, "fan_in", "normal", in_axis=-1, out_axis=-2)


class ConvBlock(nn.Module):
    """Convolution with bias, InstanceNorm, LeakyReLU: [N, D, H, W, C] to [N, D/s, H/s, W/s, features]."""

    features: int
    kernel: Triple
    stride: Triple
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n p q r o"]:
        """Applies the block in `dtype`; statistics of the norm are float32."""
        kernel = self.param("kernel", _kernel_init, (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        scale = self.param("norm_scale", nn.initializers.ones, (self.features,))
        shift = self.param("norm_bias", nn.initializers.zeros, (self.features,))
        y = conv3d(x.astype(self.dtype), kernel.astype(self.dtype), self.stride) + bias.astype(self.dtype)
        return instance_norm_leaky_relu(y, scale, shift)


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
    """nnU-Net's plain U-Net. Teacher and student are two configurations of this class.

    Attributes:
      config: stages, features, kernels, strides, convolutions per stage.
      classes: number of output classes, background included.
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
          bottleneck, [N, D/S, H/S, W/S, F] in `dtype`.
        """
        block = nn.remat(ConvBlock) if self.remat else ConvBlock
        config, stages = self.config, len(self.config.features)
        skips = []
        for i in range(stages):
            for j in range(config.stage_convs_encoder[i]):
                stride = config.stage_strides[i] if j == 0 else (1, 1, 1)
                name = f"encoder_{i}_{j}"
                x = block(config.features[i], config.stage_kernels[i], stride, self.dtype, name=name)(x)
            skips.append(x)
        bottleneck = skips.pop()
        logits = []
        for i in reversed(range(stages - 1)):
            x = UpConv(config.features[i], config.stage_strides[i + 1], self.dtype, name=f"up_{i}")(x)
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            for j in range(config.stage_convs_decoder[i]):
                name = f"decoder_{i}_{j}"
                x = block(config.features[i], config.stage_kernels[i], (1, 1, 1), self.dtype, name=name)(x)
            logits.append(Head(self.classes, name=f"head_{i}")(x))
        return logits[::-1], bottleneck
