"""Sums and means over the devices that a batch is spread over."""

from typing import Any, TypeVar

from jax import lax

Tree = TypeVar("Tree", bound=Any)


def sum_over(tree: Tree, axis_name: str | None) -> Tree:
    """Sum of every leaf over the devices of a mapped axis; the tree itself where there is none."""
    return tree if axis_name is None else lax.psum(tree, axis_name)


def mean_over(tree: Tree, axis_name: str | None) -> Tree:
    """Mean of every leaf over the devices of a mapped axis; the tree itself where there is none.

    Applied to gradients it gives those of the global loss: each device differentiates its own copy of a loss that
    holds psums, whose transpose is a psum again, so that the sum over devices counts every device's share that often.
    """
    return tree if axis_name is None else lax.pmean(tree, axis_name)
