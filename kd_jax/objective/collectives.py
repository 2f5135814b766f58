"""Sums and means over the devices that a batch is spread over."""

from typing import Any, TypeVar

from jax import lax

Tree = TypeVar("Tree", bound=Any)


def sum_over(tree: Tree, axis_name: str | None) -> Tree:
    """Sum of every leaf over the devices of a mapped axis; the tree itself without an axis."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def mean_over(tree: Tree, axis_name: str | None) -> Tree:
    """Mean of every leaf over the devices of a mapped axis; the tree itself without an axis.

    The mean of the devices' gradients is the gradient of the global loss. Each device differentiates its own copy of a
    loss that holds psums, and the transpose of a psum is a psum, so a sum would count each share once per device.
    """
    return tree if axis_name is None else lax.pmean(tree, axis_name)
