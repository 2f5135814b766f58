"""Settings of how students learn from the teacher.

The settings of a term are a table whose keys only the term knows; `kd_jax.objective.distillation` completes and checks
it before training. So adding a term, or using one from elsewhere, needs no change here, and a student can be restored
on a machine where the term that taught it is not installed.
"""

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from kd_jax.config.data import STRICT

Terms = Mapping[str, Mapping[str, Any]]
"""Settings of each term by its name, or by its module or file if it is not part of kd_jax."""

BARLOW_TWINS = "barlow_twins"
_OF_BARLOW_TWINS = "off_diagonal", "samples", "normalise", "projector"
"""Keys that older configurations have in [distillation] itself; now they are in the term's table."""


def _frozen(value: Any) -> Any:
    """Lists as tuples: JSON and TOML give lists, Python gives tuples, and equal settings must compare equal."""
    if isinstance(value, Mapping):
        return {str(key): _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, config=STRICT)
class StudentDistillation:
    """Which terms pull a student towards the teacher, and how strongly."""

    weight: Annotated[
        float, Field(ge=0, description="factor of all terms; 0 is the control: the same student without distillation")
    ] = 0.1
    terms: Annotated[
        Terms, Field(description="one table [distillation.TERM] per term, with its weight and settings")
    ] = field(default_factory=lambda: {BARLOW_TWINS: {}}, hash=False)

    @model_validator(mode="before")
    @classmethod
    def _tables_are_terms(cls, given: Any) -> Any:
        """`[distillation.NAME]` is short for `[distillation.terms.NAME]`, and adds to the default, Barlow Twins."""
        values = dict((given.kwargs or {}) if isinstance(given, ArgsKwargs) else given)
        if isinstance(given, ArgsKwargs) and given.args:
            raise ValueError("settings are given by name")
        known = {f.name for f in fields(cls)}
        tables = {key: values.pop(key) for key in list(values) if key not in known and isinstance(values[key], Mapping)}
        moved = {key: values.pop(key) for key in _OF_BARLOW_TWINS if key in values}
        if tables or moved:
            terms = dict(values.get("terms", {BARLOW_TWINS: {}}))
            for name, table in tables.items():
                terms[name] = {**terms.get(name, {}), **table}
            if moved:
                terms[BARLOW_TWINS] = {**moved, **terms.get(BARLOW_TWINS, {})}
            values["terms"] = terms
        if "terms" in values:
            values["terms"] = _frozen(values["terms"])
        return values


@dataclass(frozen=True, config=STRICT)
class DistillationConfig(StudentDistillation):
    """How all students of a run learn from its teacher."""

    stop_gradient: Annotated[bool, Field(description="the terms do not move the teacher")] = True
    update: Annotated[
        Literal["joint", "alternating", "student"],
        Field(
            description="joint: all networks at once; alternating: the teacher first, then the students against it; "
            "student: the students alone, against a teacher from --teacher-from that is held still"
        ),
    ] = "joint"

    @model_validator(mode="after")
    def _held_still_means_stopped(self) -> Self:
        if self.update != "joint" and not self.stop_gradient:
            raise ValueError(f"update = {self.update} holds the teacher still: allowed only with stop_gradient = true")
        return self
