"""Chooses the post-processing of a command: the rule of the runs, of a file, a given threshold, or none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from data_pipeline.errors import InputError
from kd_jax.postprocessing.rule import (
    Postprocessing,
    describe_rule,
    describe_threshold,
    load_postprocessing,
    read_rules,
)


class Chosen(NamedTuple):
    """The rule to apply, and a line that names it and the reason."""

    rule: Postprocessing
    line: str


def choose_postprocessing(option: str, members: Sequence[tuple[Path, str]], min_et_ml: float | None = None) -> Chosen:
    """The rule for one network, or for an ensemble of several.

    Args:
      option: `auto` takes the rule of the networks if all of them have the same, otherwise none; `none` takes none;
        anything else is a file that `kd_jax.postprocess` wrote.
      members: run folder and network of each.
      min_et_ml: replaces the rule's threshold.

    Raises:
      InputError: a file is damaged, or the one given is not there or has no rule for a network.
    """
    rule, why = _choose(option, members)
    if min_et_ml is not None:
        why += f"; as asked, {describe_threshold(min_et_ml)}"
        why += "" if rule.min_et_ml is None else f", not below {rule.min_et_ml:g} ml"
        rule = replace(rule, min_et_ml=min_et_ml)
    return Chosen(rule, f"Post-processing: {why}")


def _choose(option: str, members: Sequence[tuple[Path, str]]) -> tuple[Postprocessing, str]:
    nothing = Postprocessing()
    if option == "none":
        return nothing, "none, as asked"
    if option == "auto":
        found = [load_postprocessing(run, network) for run, network in members]
    else:
        found = [_rule_of(Path(option), network) for _, network in members]
    rules = [rule for rule in found if rule is not None]
    if not rules:
        return nothing, "none (none decided; kd-jax postprocess does)"
    if len(rules) < len(found):
        return nothing, f"none ({len(found) - len(rules)} of the {len(found)} runs have no rule)"
    if not all(rule.does_as(rules[0]) for rule in rules):
        return nothing, "none (the networks have different rules; kd-jax postprocess RUN RUN ... decides one for all)"
    return rules[0], describe_rule(rules[0])


def _rule_of(path: Path, network: str) -> Postprocessing:
    rules = read_rules(path)
    if network not in rules:
        raise InputError(
            f"{path}: holds a rule for the {' and the '.join(rules)}, not for the {network}; decide one with "
            f"kd-jax postprocess --network {network}, or pass --postprocess none"
        )
    return rules[network]
