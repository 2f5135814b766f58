"""Saves the state of a training as items of a checkpoint, and restores it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kd_jax.config.distillation import BARLOW_TWINS
from kd_jax.config.schema import STUDENT, TEACHER, Config
from kd_jax.runs.store import Checkpoints, Items, Position, best_kind, find_checkpoint, load_items
from kd_jax.training.devices import globally_replicated, replicated
from kd_jax.training.state import NetworkState, TrainState


def save_latest(checkpoints: Checkpoints, state: TrainState, position: Position, config: Config) -> None:
    """Saves everything that continuing needs.

    Raises:
      InputError: the disk is full or read-only.
    """
    checkpoints.save("latest", _kept(_items(state)), position, config)


def save_best(
    checkpoints: Checkpoints, state: TrainState, position: Position, config: Config, improved: frozenset[str]
) -> None:
    """Saves the networks whose pseudo-Dice has never been better.

    With one student the best checkpoint is the whole state at the student's best epoch; with several, each network
    has a best epoch of its own, and students end as if each had been trained alone.

    Raises:
      InputError: the disk is full or read-only.
    """
    if not config.students:
        if STUDENT in improved:
            checkpoints.save(best_kind(None), _kept(_items(state)), position, config)
        return
    for name in improved:
        items = {name: state.networks[name].params["network"]}
        checkpoints.save(best_kind(name), _kept(items), position, config)


def restore_state(run: Path, like: TrainState) -> tuple[TrainState, Position]:
    """Restores the latest whole state of a run onto this host's devices, however many wrote it.

    Args:
      run: the run folder.
      like: a state of the run's configuration, e.g. its initial one; only shapes are used.

    Raises:
      InputError: there is no such checkpoint, or it does not fit the configuration.
    """
    checkpoint = find_checkpoint(run, "latest")
    shapes = jax.eval_shape(lambda: _items(like))
    has_projectors = (checkpoint / "projectors").is_dir()
    if has_projectors:
        shapes = _with_projectors(shapes)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated()), shapes)
    items = load_items(checkpoint, {**target, "position": None})
    return _state(_without_projectors(items) if has_projectors else items), items["position"]


def _items(state: TrainState) -> dict[str, Any]:
    items = {name: network.params["network"] for name, network in state.networks.items()}
    optimisers = {name: network.optimiser for name, network in state.networks.items()}
    terms = {name: student.params["terms"] for name, student in state.students.items() if "terms" in student.params}
    return {**items, "optimiser": {"step": state.step, **optimisers}} | ({"terms": terms} if terms else {})


def _state(items: Mapping[str, Any]) -> TrainState:
    def network(name: str) -> NetworkState:
        terms = items.get("terms", {}).get(name)
        params = {"network": items[name]} | ({} if terms is None else {"terms": terms})
        return NetworkState(params, items["optimiser"][name])

    optimiser = items["optimiser"]
    students = {name: network(name) for name in optimiser if name not in ("step", TEACHER)}
    return TrainState(optimiser["step"], network(TEACHER), students)


def _kept(items: Items) -> Items:
    """A copy, because the next step reuses the state's buffers while a save is still reading them."""
    return globally_replicated(jax.tree.map(jnp.copy, items))


# Older runs hold the parameters of Barlow Twins as an item "projectors", and their momentum under that name in the
# student's optimiser.


def _with_projectors(items: Mapping[str, Any]) -> dict[str, Any]:
    items = dict(items)
    items["projectors"] = items.pop("terms")[STUDENT][BARLOW_TWINS]
    optimiser = _renamed(items["optimiser"][STUDENT], "terms", lambda terms: ("projectors", terms[BARLOW_TWINS]))
    items["optimiser"] = {**items["optimiser"], STUDENT: optimiser}
    return items


def _without_projectors(items: Mapping[str, Any]) -> dict[str, Any]:
    items = dict(items)
    items["terms"] = {STUDENT: {BARLOW_TWINS: items.pop("projectors")}}
    optimiser = _renamed(items["optimiser"][STUDENT], "projectors", lambda params: ("terms", {BARLOW_TWINS: params}))
    items["optimiser"] = {**items["optimiser"], STUDENT: optimiser}
    return items


def _renamed(tree: Any, old: str, change: Any) -> Any:
    """A tree in which every dict of a student's parameters has one entry under another name."""

    def rename(node: Any) -> Any:
        if not _is_side(node) or old not in node:
            return node
        name, value = change(node[old])
        return {**{key: item for key, item in node.items() if key != old}, name: value}

    return jax.tree.map(rename, tree, is_leaf=_is_side)


def _is_side(node: Any) -> bool:
    return isinstance(node, Mapping) and "network" in node
