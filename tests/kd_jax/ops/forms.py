"""Comparing the forms of one operator: their values, their gradients, and what they are lowered to."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def draw(*shapes, seed=0):
    """Normal deviates, one array for each shape."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def assert_agree(forms, reference, *arrays, rtol=1e-5, atol=2e-6):
    """Every form gives the values and gradients of the reference; `atol` is relative to the largest of each array."""
    expected = _values_and_gradients(reference, *arrays)
    for form in forms:
        for ours, theirs in zip(_values_and_gradients(form, *arrays), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol * np.abs(theirs).max())


@functools.partial(jax.jit, static_argnums=0)
def _values_and_gradients(form, *arrays):
    y, pull_back = jax.vjp(form, *arrays)
    # Any direction will do that is not special; compiled into one program, the gradients cost no second forward pass.
    return y, *pull_back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def shapes(*sizes, dtype=jnp.float32):
    """What is known of arrays of these sizes before they exist."""
    return [jax.ShapeDtypeStruct(size, dtype) for size in sizes]


class Operation(NamedTuple):
    """An operation of a lowered program: StableHLO's name, axes of its first result, and for a call what it calls."""

    name: str
    axes: int
    target: str


def lowered(form, *arguments, platform):
    """The operations that `form` becomes on a platform, even if this machine has none; arguments may be `shapes`."""
    module = jax.jit(lambda *a: form(*a)).trace(*arguments).lower(lowering_platforms=(platform,)).compiler_ir()
    # The operations live no longer than the module, so what is needed of them is copied here.
    return [_describe(operation) for operation in _walk(module.operation)]


def _describe(operation):
    attributes = operation.attributes
    target = attributes["call_target_name"].value if "call_target_name" in attributes else ""
    types = [result.type for result in operation.results]
    return Operation(operation.name, getattr(types[0], "rank", 0) if types else 0, target)


def _walk(operation):
    for block in (block for region in operation.regions for block in region.blocks):
        for inner in block.operations:
            yield inner.operation
            yield from _walk(inner.operation)
