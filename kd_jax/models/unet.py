"""The 3-D U-Nets of nnU-Net, plain and with a residual encoder, as pure functions of parameters.

Source: Isensee et al. 2021 and 2024; `PlainConvUNet` and `ResidualEncoderUNet` of dynamic-network-architectures:
convolution (bias), InstanceNorm (affine), LeakyReLU; strided convolution down; transposed convolution up;
concatenation (up, skip); a 1×1×1 head at every decoder level. All modules are stateless: `init` and `apply`.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float

from data_pipeline.conventions import Shape3
from kd_jax.config.network import AXES, NetworkConfig
from kd_jax.config.schema import Remat
from kd_jax.models.protocol import NetworkOutput
from kd_jax.ops.folding import choose_folds, conv3d_folded, conv3d_of_two, head_folded, refold, up_conv3d_folded
from kd_jax.ops.lean import KEPT, lean_norm
from kd_jax.ops.operators import (
    NEGATIVE_SLOPE,
    average_pool3d,
    instance_norm,
    instance_norm_leaky_relu,
    leaky_relu,
)

_HE = 2 / (1 + NEGATIVE_SLOPE**2)
_kernel_init = variance_scaling(_HE, "fan_in", "normal")
# PyTorch counts the fan-in of a transposed convolution over its outputs.
_up_kernel_init = variance_scaling(_HE, "fan_in", "normal", in_axis=-1, out_axis=-2)


class ConvBlock(nn.Module):
    """Convolution, InstanceNorm, LeakyReLU: [N, D, H, W, C] to [N, D/s, H/s, W/s, features].

    The convolution's bias is a parameter, as in nnU-Net's checkpoints. The norm would remove it, so it is never added,
    and its gradient is exactly zero.

    Attributes:
      features: output channels.
      kernel: kernel size.
      stride: stride.
      dtype: precision of activations; statistics of the norm are float32.
      bias: whether the convolution has one.
      activate: whether LeakyReLU follows the norm.
      scale_init: initial scale of the norm.
      lean: keep only the convolution's output for the backward pass (see `lean`).
      folds: how the input and the output are folded (see `folding`).
    """

    features: int
    kernel: Shape3
    stride: Shape3
    dtype: Any
    bias: bool = True
    activate: bool = True
    scale_init: Any = nn.initializers.ones
    lean: bool = False
    folds: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(
        self, x: Float[Array, "n d h _w _c"], second: Float[Array, "n d h _w _b"] | None = None
    ) -> Float[Array, "n p q _r _o"]:
        """Applies the block in `dtype`; a second array is joined to the first along channels."""
        fold, out_fold = self.folds
        channels = (x.shape[-1] + (0 if second is None else second.shape[-1])) // fold
        kernel = self.param("kernel", _kernel_init, (*self.kernel, channels, self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        y = (
            conv3d_folded(x, kernel, self.stride, fold, out_fold)
            if second is None
            else conv3d_of_two(x, second.astype(self.dtype), kernel, fold)
        )
        y = checkpoint_name(y, KEPT[0])
        if self.bias:
            self.param("bias", nn.initializers.zeros, (self.features,))
        scale = self.param("norm_scale", self.scale_init, (self.features,))
        shift = self.param("norm_bias", nn.initializers.zeros, (self.features,))
        if self.lean or out_fold > 1:
            return lean_norm(y, scale, shift, out_fold, self.activate)
        return (instance_norm_leaky_relu if self.activate else instance_norm)(y, scale, shift)


class ResidualBlock(nn.Module):
    """Two convolutions and a skip, LeakyReLU after their sum (`BasicBlockD` of dynamic-network-architectures).

    The first convolution has the stride; the skip has an average pool, and a 1×1×1 convolution with its norm only if
    the number of channels changes. The last norm starts at zero, so that the block starts as its skip.
    """

    features: int
    kernel: Shape3
    stride: Shape3
    dtype: Any
    lean: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n p q r o"]:
        """[N, D, H, W, C] to [N, D/s, H/s, W/s, features]."""
        zeros, one = nn.initializers.zeros, (1, 1, 1)
        block = partial(ConvBlock, self.features, dtype=self.dtype, lean=self.lean)
        y = block(self.kernel, self.stride, name="conv1")(x)
        y = block(self.kernel, one, activate=False, scale_init=zeros, name="conv2")(y)
        skip = x if self.stride == one else average_pool3d(x, self.stride)
        if x.shape[-1] != self.features:
            skip = block(one, one, bias=False, activate=False, name="skip")(skip)
        return leaky_relu(y + skip)


class UpConv(nn.Module):
    """Transposed convolution with kernel = stride and bias; `folds` as in `ConvBlock`."""

    features: int
    stride: Shape3
    dtype: Any
    folds: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: Float[Array, "n d h _w _c"]) -> Float[Array, "n p q _r _o"]:
        """[N, D, H, W, C] to [N, sD, sH, sW, features]."""
        fold, out_fold = self.folds
        kernel = self.param("kernel", _up_kernel_init, (*self.stride, x.shape[-1] // fold, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        y = up_conv3d_folded(x.astype(self.dtype), kernel.astype(self.dtype), fold, out_fold)
        return checkpoint_name(y + jnp.concatenate([bias] * out_fold), KEPT[0])


class Head(nn.Module):
    """1×1×1 convolution with bias to class logits, float32, of an array folded by `fold` to a plain one."""

    classes: int
    fold: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n d h _w _c"]) -> Float[Array, "n d h w k"]:
        """[N, D, H, W, C] to [N, D, H, W, classes]."""
        kernel = self.param("kernel", _kernel_init, (x.shape[-1] // self.fold, self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return head_folded(x, kernel.astype(x.dtype), self.fold) + bias


class UNet(nn.Module):
    """nnU-Net's U-Net. Teacher and student are two configurations of this class.

    Attributes:
      config: stages, features, kernels, strides, kind of encoder, convolutions per stage, reversed axes.
      classes: number of output channels: classes with the background, or regions.
      dtype: precision of activations; parameters, norms' statistics and logits are float32.
      remat: the backward pass computes again, instead of keeping, nothing ("none"), norms and activations ("norms"),
        or whole blocks with their convolutions ("blocks"). Numbers stay the same.
      fold: most neighbours that a fine stage folds into channels (see `folding`); 1 folds nowhere. A residual
        encoder and its decoder are never folded. Numbers and parameters stay the same.

    Examples:
      >>> import jax, jax.numpy as jnp, kd_jax
      >>> network = kd_jax.UNet(kd_jax.Config().student, classes=4)
      >>> image = jnp.zeros((1, 32, 32, 32, 2))
      >>> output, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), image)  # shapes alone
      >>> [level.shape for level in output.logits]
      [(1, 32, 32, 32, 4), (1, 16, 16, 16, 4), (1, 8, 8, 8, 4)]
      >>> output.bottleneck.shape
      (1, 4, 4, 4, 64)
    """

    config: NetworkConfig
    classes: int
    dtype: Any = jnp.float32
    remat: Remat = "none"
    fold: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n d h w c"]) -> NetworkOutput:
        """Segments a batch of patches.

        Args:
          x: [N, D, H, W, C], C modalities in the order of `conventions.MODALITIES`; each size a
            multiple of the network's total stride.

        Returns:
          Logits of every decoder level, [N, D/s, H/s, W/s, classes] float32; features of every stage of encoder
          and decoder, [N, D/s, H/s, W/s, F] in `dtype`. All have the directions of `x`, even if the network itself
          sees some axes reversed.
        """
        run = UNet._run
        if self.remat == "norms":
            run = nn.remat(run, policy=jax.checkpoint_policies.save_only_these_names(*KEPT))
        return NetworkOutput(*([self._reverse(level) for level in part] for part in run(self, self._reverse(x))))

    @property
    def level_strides(self) -> tuple[Shape3, ...]:
        """Voxels of the input per voxel of each level of logits, finest first."""
        strides = np.cumprod(self.config.stage_strides, axis=0)[:-1]
        return tuple((int(x), int(y), int(z)) for x, y, z in strides)

    @property
    def total_stride(self) -> Shape3:
        """Voxels of the input per voxel of the bottleneck."""
        return self.config.total_stride

    def _reverse(self, x: Float[Array, "n d h w c"]) -> Float[Array, "n d h w c"]:
        axes = [1 + AXES.index(axis) for axis in self.config.reversed_axes]
        return jnp.flip(x, axes) if axes else x

    def _run(self, x: Float[Array, "n d h w c"]) -> NetworkOutput:
        config = self.config
        most = self.fold if config.encoder == "plain" else 1
        folds = choose_folds(config.features, config.stage_strides, x.shape[3], most)
        encoder = self._encode(refold(x, 1, folds[0]), folds)
        logits, decoder = self._decode(encoder, folds)
        # Features are returned unfolded; the compiler drops those that nobody uses.
        plain = ([refold(x, fold, 1) for x, fold in zip(part, folds, strict=False)] for part in (encoder, decoder))
        return NetworkOutput(logits, *plain)

    def _encode(self, x: Float[Array, "n d h _w _c"], folds: tuple[int, ...]) -> list[Float[Array, "n _d _h _w _c"]]:
        """Output of every encoder stage, finest first, folded by `folds`."""
        if self.config.encoder == "residual":
            return self._encode_residual(x)
        config, block, skips = self.config, self._block(ConvBlock), []
        for i, features in enumerate(config.features):
            for j in range(config.stage_convs_encoder[i]):
                stride, fold = (config.stage_strides[i], folds[max(i - 1, 0)]) if j == 0 else ((1, 1, 1), folds[i])
                name = f"encoder_{i}_{j}"
                x = block(features, config.stage_kernels[i], stride, folds=(fold, folds[i]), name=name)(x)
            skips.append(x)
        return skips

    def _encode_residual(self, x: Float[Array, "n d h w c"]) -> list[Float[Array, "n _d _h _w _c"]]:
        config, block = self.config, self._block(ResidualBlock)
        x = self._block(ConvBlock)(config.features[0], config.stage_kernels[0], (1, 1, 1), name="stem")(x)
        skips = []
        for i, features in enumerate(config.features):
            for j in range(config.stage_convs_encoder[i]):
                stride = config.stage_strides[i] if j == 0 else (1, 1, 1)
                x = block(features, config.stage_kernels[i], stride, name=f"encoder_{i}_{j}")(x)
            skips.append(x)
        return skips

    def _decode(
        self, skips: list[Float[Array, "n _d _h _w _c"]], folds: tuple[int, ...]
    ) -> tuple[list[Float[Array, "n _d _h _w k"]], list[Float[Array, "n _d _h _w _c"]]]:
        """Logits and features of every decoder level, finest first; features folded by `folds`."""
        config, block = self.config, self._block(ConvBlock)
        *skips, x = skips
        logits, features_of = [], []
        for i in reversed(range(len(skips))):
            features, stride, fold = config.features[i], config.stage_strides[i + 1], folds[i]
            x = UpConv(features, stride, self.dtype, (folds[i + 1], fold), name=f"up_{i}")(x)
            for j in range(config.stage_convs_decoder[i]):
                convolve = block(
                    features, config.stage_kernels[i], (1, 1, 1), folds=(fold, fold), name=f"decoder_{i}_{j}"
                )
                x = convolve(x, skips[i]) if j == 0 else convolve(x)
            logits.append(Head(self.classes, fold, name=f"head_{i}")(x))
            features_of.append(x)
        return logits[::-1], features_of[::-1]

    def _block(self, block: Any) -> Any:
        """A kind of block in the precision and with the rematerialisation of this network."""
        block = nn.remat(block) if self.remat == "blocks" else block
        return partial(block, dtype=self.dtype, lean=self.remat == "norms")
