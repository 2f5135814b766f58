"""Results of an evaluation: a summary in JSON, tables on screen and a picture."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from kd_jax import __version__
from kd_jax.config.schema import TEACHER
from kd_jax.evaluation.cases import EvaluationData
from kd_jax.evaluation.picture import Outcome, Row, draw_cases, mean_dice, pick_cases
from kd_jax.evaluation.score import Evaluation, Evaluations
from kd_jax.evaluation.tables import as_json, comparison_table, summary_table
from kd_jax.metrics import (
    EMPTY_RULES,
    HD95_DEFINITION,
    EmptyRule,
    Paired,
    summarise_cases,
    summarise_pairs,
)
from kd_jax.runs.store import Which


@dataclass(frozen=True)
class Conditions:
    """The request that the results answer.

    Attributes:
      runs: folders of the runs.
      checkpoint: best or latest.
      empty: rule for regions without voxels.
      data: the cases.
    """

    runs: Sequence[Path]
    checkpoint: Which
    empty: EmptyRule
    data: EvaluationData

    @property
    def combination(self) -> str:
        """How several runs are combined, in words."""
        if len(self.runs) == 1:
            return "one run"
        if self.data.held_out:
            return f"cross-validation: each of {len(self.runs)} runs scored the cases it held out, pooled"
        return f"ensemble: logits of {len(self.runs)} runs averaged on the original grid"


def summary(evaluations: Evaluations, conditions: Conditions) -> dict[str, Any]:
    """Distributions of all scores, and everything needed to repeat them."""
    data = conditions.data
    result: dict[str, Any] = {
        "runs": [run.resolve() for run in conditions.runs],
        "combination": conditions.combination,
        "checkpoint": conditions.checkpoint,
        "data": {
            "name": data.name,
            "paths": data.paths,
            "cases": data.count,
            "phantom": _is_phantom(evaluations, data),
            "trained_on": data.trained_on,
        },
        "empty_regions": {"rule": conditions.empty, "meaning": EMPTY_RULES[conditions.empty]},
        "hd95": HD95_DEFINITION,
        "sd": "sample standard deviation (n - 1)",
        "grid": "the original grid of each case",
        "mirror": next(iter(evaluations.values())).segmenter.mirror,
        "networks": {name: _network(evaluation) for name, evaluation in evaluations.items()},
        "versions": {"kd_jax": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("jax", "flax", "numpy", "scipy", "nibabel")},
        "backend": jax.default_backend(),
    }
    differences = [_difference(evaluations, one, other) for one, other in pairs_of(list(evaluations))]
    if len(differences) == 1:
        result["paired_difference"] = differences[0]
    elif differences:
        result["paired_differences"] = differences
    return result


def pairs_of(networks: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of networks to compare: every student with the teacher, and with the first student."""
    students = [name for name in networks if name != TEACHER]
    with_teacher = [(name, TEACHER) for name in students] if TEACHER in networks else []
    return with_teacher + [(name, students[0]) for name in students[1:]]


def _difference(evaluations: Evaluations, one: str, other: str) -> dict[str, Any]:
    ids, paired = _paired(evaluations, one, other)
    return {
        "definition": f"{one} - {other}, case by case",
        "cases": ids,
        "regions": as_json(paired.difference),
    }


def _network(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "members": [
            {
                "run": member.run.resolve(),
                "network": member.name,
                "step": member.step,
                "modalities": member.modalities,
                "spacing_mm": member.config.data.spacing,
                "patch": member.config.data.patch,
                "outputs": member.config.outputs,
            }
            for member in evaluation.segmenter.members
        ],
        "postprocessing": evaluation.postprocessing.line,
        "decided_postprocessing": decided_the_rule(evaluation),
        "cases": list(evaluation.scores),
        "skipped": evaluation.skipped,
        "failed": evaluation.failed,
        "regions": as_json(summarise_cases(list(evaluation.scores.values()))),
    }


def decided_the_rule(evaluation: Evaluation) -> list[str]:
    """Scored cases on which the post-processing was decided: their scores are a little too good."""
    decided_on = evaluation.postprocessing.rule.decided_on
    return [case for case in evaluation.scores if decided_on is not None and case in decided_on.cases]


def show(console: Console, evaluations: Evaluations, conditions: Conditions) -> None:
    """Prints the tables and the conditions they hold under."""
    data = conditions.data
    for name, evaluation in evaluations.items():
        for kind, reasons in (("skipped", evaluation.skipped), ("failed", evaluation.failed)):
            for case, reason in reasons.items():
                console.print(f"{name}: {kind} {case}: {reason}", highlight=False, markup=False, soft_wrap=True)
        if evaluation.scores:
            console.print(summary_table(_title(evaluation, data), summarise_cases(list(evaluation.scores.values()))))
    for one, other in pairs_of(list(evaluations)):
        ids, paired = _paired(evaluations, one, other)
        if ids:
            title = f"{one} and {other} on the same {_counted(len(ids))}"
            console.print(comparison_table(title, paired, one, other))
    phantom = " (embedded phantom: says nothing about patients)" if _is_phantom(evaluations, data) else ""
    lines = [f"Data: {data.place}{phantom}"]
    if len(conditions.runs) > 1:
        lines.append(f"Runs: {conditions.combination}.")
    if data.trained_on:
        whose = "the run was" if len(conditions.runs) == 1 else "runs were"
        lines.append(f"Warning: {whose} trained on {len(data.trained_on)} of these cases; their scores are no test.")
    for name, evaluation in evaluations.items():
        lines.append(f"{name}: {evaluation.postprocessing.line}.")
        if decided := decided_the_rule(evaluation):
            lines.append(f"Warning: it was decided on {len(decided)} of these cases; their scores flatter it.")
    lines += [f"Empty regions, {conditions.empty}: {EMPTY_RULES[conditions.empty]}.", f"HD95: {HD95_DEFINITION}"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def draw(path: Path, evaluations: Evaluations, conditions: Conditions) -> str:
    """Draw a few cases, chosen by the first network's scores if it has any; returns the choice in words.

    Raises:
      InputError: the file cannot be written.
    """
    name, leading = next((n, e) for n, e in evaluations.items() if e.scores)
    chosen = pick_cases({case: mean_dice(scores) for case, scores in leading.scores.items()})
    rows = [Row(case, leading.views[case], {n: _outcome(e, case) for n, e in evaluations.items()}) for case in chosen]
    drawn = _counted(len(leading.scores))
    if len(chosen) > 1:
        drawn = f"{len(chosen)} of {drawn}, from the {name}'s worst mean Dice to its best"
    phantom = " (embedded phantom)" if _is_phantom(evaluations, conditions.data) else ""
    runs = conditions.runs
    of = runs[0].resolve().name if len(runs) == 1 else f"{len(runs)} runs"
    draw_cases(path, rows, f"{of} on {conditions.data.name}{phantom}: {drawn}")
    return drawn


def _title(evaluation: Evaluation, data: EvaluationData) -> str:
    segmenter = evaluation.segmenter
    steps = sorted({member.step for member in segmenter.members})
    networks = f"{len(segmenter.members)} times " if len(segmenter.members) > 1 else ""
    return (
        f"{networks}{segmenter.name} ({', '.join(segmenter.modalities)}), step {', '.join(map(str, steps))}, "
        f"{_counted(len(evaluation.scores))} of {data.name}"
    )


def _counted(cases: int) -> str:
    return "1 case" if cases == 1 else f"{cases} cases"


def _outcome(evaluation: Evaluation, case: str) -> Outcome | str:
    if case in evaluation.scores:
        return Outcome(evaluation.classes[case], evaluation.scores[case])
    return evaluation.skipped.get(case) or evaluation.failed[case]


def _paired(evaluations: Evaluations, one: str, other: str) -> tuple[list[str], Paired]:
    """The cases that both networks could use, and the paired scores of both on them."""
    ours, theirs = evaluations[one].scores, evaluations[other].scores
    ids = [case for case in ours if case in theirs]
    return ids, summarise_pairs([ours[case] for case in ids], [theirs[case] for case in ids])


def _is_phantom(evaluations: Evaluations, data: EvaluationData) -> bool:
    """Whether these are the held-out cases of runs on the embedded phantom."""
    members = next(iter(evaluations.values())).segmenter.members
    return data.held_out and all(member.config.data.root is None for member in members)
