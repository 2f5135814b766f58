"""A post-processing decision as tables for a terminal."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from kd_jax.metrics import REGIONS
from kd_jax.postprocessing.rule import Decision, Figures, Postprocessing

_DIGITS = 4  # steps change the mean of many cases by little


def decision_tables(rule: Postprocessing) -> Iterator[Table]:
    """Every step and every threshold that was tried, and the effect of the whole rule on the regions."""
    yield _steps(rule)
    if rule.thresholds:
        yield _thresholds(rule)
    if rule.region_dice is not None:
        table = _table("Mean Dice of the cases that decided, 1 where both are empty", *REGIONS)
        for name, dice in rule.region_dice.items():
            table.add_row(f"{name} post-processing", *(_number(dice[region]) for region in REGIONS))
        yield table


def _steps(rule: Postprocessing) -> Table:
    parts = list(rule.decisions[0].before)
    table = _table("Mean Dice, cases left out where both are empty", *parts, "")
    table.add_row("as predicted", *_numbers(rule.decisions[0].before), "")
    for decision in rule.decisions:
        table.add_row(f"largest of {decision.step}", *_numbers(decision.after), _verdict(decision))
    return table


def _thresholds(rule: Postprocessing) -> Table:
    table = _table("Mean Dice of ET, 1 where both are empty", "ET", "")
    for tried in rule.thresholds:
        name = "no threshold" if tried.min_et_ml is None else f"below {tried.min_et_ml:g} ml becomes NCR"
        table.add_row(name, _number(tried.et_dice), "taken" if tried.min_et_ml == rule.min_et_ml else "")
    return table


def _verdict(decision: Decision) -> str:
    if decision.applied:
        return "better: applied"
    return "no change" if decision.before == decision.after else "not better: left out"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.HORIZONTALS, pad_edge=False)
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    return table


def _numbers(figures: Figures) -> list[str]:
    return [_number(value) for value in figures.values()]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.{_DIGITS}f}"
