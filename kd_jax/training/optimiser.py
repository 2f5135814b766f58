"""nnU-Net's optimiser and learning rate."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from kd_jax.config.schema import Config, OptimiserConfig


def make_schedule(config: Config) -> optax.Schedule:
    """Learning rate of a step: nnU-Net's polynomial decay, constant within an epoch."""
    settings, epochs, iterations = config.optimiser, config.train.epochs, config.train.iterations

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        epoch = jnp.minimum(step // iterations, epochs)
        return settings.learning_rate * ((epochs - epoch) / epochs) ** settings.power

    return schedule


def make_optimiser(settings: OptimiserConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """nnU-Net's SGD: gradient clipped by norm, weight decay added, Nesterov momentum (PyTorch's order)."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.add_decayed_weights(settings.weight_decay),
        optax.sgd(schedule, momentum=settings.momentum, nesterov=True),
    )
