"""The optional projector between bottleneck and cross-correlation."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from kd_jax.ops.operators import NORM_EPSILON


class Projector(nn.Module):
    """Linear layers with batch norm and ReLU between them, the last one bare.

    Source: Zbontar et al. 2021, section 2.2 and `main.py`. Batch statistics are those of the step, over all devices
    of `axis_name`. No running statistics are kept, because the projector is not used after training.

    Attributes:
      widths: features of each layer, e.g. (8192, 8192, 8192).
      axis_name: mapped axis the samples are spread over, or None.
    """

    widths: tuple[int, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "n f"]) -> Float[Array, "n g"]:
        """[samples, features] to [samples, widths[-1]], float32."""
        for i, width in enumerate(self.widths[:-1]):
            x = nn.Dense(width, use_bias=False, name=f"dense_{i}")(x)
            scale = self.param(f"norm_{i}_scale", nn.initializers.ones, (width,))
            bias = self.param(f"norm_{i}_bias", nn.initializers.zeros, (width,))
            x = nn.relu(self._normalise(x) * scale + bias)
        return nn.Dense(self.widths[-1], use_bias=False, name=f"dense_{len(self.widths) - 1}")(x)

    def _normalise(self, x: Float[Array, "n f"]) -> Float[Array, "n f"]:
        centred = x - self._mean(x)
        return centred * lax.rsqrt(self._mean(jnp.square(centred)) + NORM_EPSILON)

    def _mean(self, x: Float[Array, "n f"]) -> Float[Array, " f"]:
        mean = x.mean(0)
        return mean if self.axis_name is None else lax.pmean(mean, self.axis_name)
