"""InstanceNorm and LeakyReLU that keep only the convolution's output for the backward pass.

For the remat policy `norms`: each block keeps the output of its convolution, in the precision of activations, and the
norm's float32 statistics. The activation is computed again where the backward pass reads it; a TPU does so inside the
convolution that reads it, and takes the statistics inside the convolution that writes.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kd_jax.ops.operators import (
    NEGATIVE_SLOPE,
    NORM_EPSILON,
    instance_norm,
    instance_norm_leaky_relu,
)

KEPT = "convolution", "statistics"
"""Names of the values that the policy keeps."""
Statistics = tuple[Float[Array, "n c"], Float[Array, "n c"]]


def lean_norm(
    y: Float[Array, "n d h _w _c"], scale: Float[Array, " c"], bias: Float[Array, " c"], fold: int, activate: bool
) -> Float[Array, "n d h _w _c"]:
    """InstanceNorm over the voxels of an array folded by `fold`, then LeakyReLU if `activate`; inside, float32.

    A CPU gains nothing from taking the operator apart, so there it is computed again as a whole.
    """
    here = functools.partial(_lean_norm, fold=fold, activate=activate)
    if fold > 1:
        return here(y, scale, bias)
    return lax.platform_dependent(
        y, scale, bias, cpu=instance_norm_leaky_relu if activate else instance_norm, default=here
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _lean_norm(
    y: Float[Array, "n d h _w _c"], scale: Float[Array, " c"], bias: Float[Array, " c"], fold: int, activate: bool
) -> Float[Array, "n d h _w _c"]:
    return _forward(y, scale, bias, fold, activate)[0]


def _forward(
    y: Float[Array, "n d h _w _c"], scale: Float[Array, " c"], bias: Float[Array, " c"], fold: int, activate: bool
) -> tuple[Float[Array, "n d h _w _c"], tuple[Array, ...]]:
    mean, inverse = (checkpoint_name(s, KEPT[1]) for s in _statistics(y, fold))
    z = _standardise(y, mean, inverse, fold) * _tile(scale, fold) + _tile(bias, fold)
    z = jnp.where(z > 0, z, NEGATIVE_SLOPE * z) if activate else z
    return z.astype(y.dtype), (y, mean, inverse, scale, bias)


def _backward(
    fold: int, activate: bool, kept: tuple[Array, ...], gradient: Float[Array, "n d h _w _c"]
) -> tuple[Float[Array, "n d h _w _c"], Float[Array, " c"], Float[Array, " c"]]:
    """With x̂ the standardised y and g the gradient before the activation: scale / σ · (g − mean g − x̂ · mean g x̂)."""
    y, mean, inverse, scale, bias = kept
    voxels = y[0, ..., 0].size * fold
    standard = _standardise(y, mean, inverse, fold)
    g = gradient.astype(jnp.float32)
    if activate:
        g = jnp.where(standard * _tile(scale, fold) + _tile(bias, fold) > 0, g, NEGATIVE_SLOPE * g)
    total, along = _sum(g, fold), _sum(g * standard, fold)
    inner = g - _spread(total / voxels, fold) - standard * _spread(along / voxels, fold)
    return (_spread(inverse * scale, fold) * inner).astype(y.dtype), along.sum(0), total.sum(0)


_lean_norm.defvjp(_forward, _backward)


def _statistics(y: Float[Array, "n d h _w _c"], fold: int) -> Statistics:
    """Mean and 1/σ of each case and channel.

    For bfloat16, sums and squares take one pass: float32 sums lose the variance of a nearly constant channel only where
    rounding to bfloat16 has lost it already (its error in y² is 2⁷ times float32's). For float32, the variance is taken
    around the mean.
    """
    voxels = y[0, ..., 0].size * fold
    y32 = y.astype(jnp.float32)
    mean = _sum(y32, fold) / voxels
    if y.dtype == jnp.float32:
        variance = _sum(jnp.square(y32 - _spread(mean, fold)), fold) / voxels
    else:
        variance = jnp.maximum(_sum(jnp.square(y32), fold) / voxels - jnp.square(mean), 0)
    return mean, lax.rsqrt(variance + NORM_EPSILON)


def _standardise(
    y: Float[Array, "n d h _w _c"], mean: Float[Array, "n c"], inverse: Float[Array, "n c"], fold: int
) -> Float[Array, "n d h _w _c"]:
    return (y.astype(jnp.float32) - _spread(mean, fold)) * _spread(inverse, fold)


def _sum(x: Float[Array, "n d h _w _c"], fold: int) -> Float[Array, "n c"]:
    return x.sum((1, 2, 3)).reshape(x.shape[0], fold, -1).sum(1)


def _spread(x: Float[Array, "n c"], fold: int) -> Float[Array, "n 1 1 1 _c"]:
    return _tile(x, fold)[:, None, None, None, :]


def _tile(x: Float[Array, "*n c"], fold: int) -> Float[Array, "*n _c"]:
    return jnp.concatenate([x] * fold, axis=-1)
