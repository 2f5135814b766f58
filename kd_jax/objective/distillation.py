"""Finds the distillation terms of a run by name, checks their settings, and gives them one interface."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import InputError
from kd_jax.config.schema import Config, TrainConfig
from kd_jax.models.protocol import NetworkOutput, Params
from kd_jax.objective.supervised import Measurements
from kd_jax.objective.terms import TERMS
from kd_jax.objective.terms.base import TermContext, TermSettings


@dataclass(frozen=True, eq=False)
class Term:
    """One term that is on, with its settings.

    Attributes:
      name: prefix of its measurements.
      settings: an instance of the module's `Settings`.
      module: defines its functions.
    """

    name: str
    settings: TermSettings
    module: ModuleType

    def select(self, output: NetworkOutput) -> Any:
        """The part of a network's output that the term compares."""
        return self._optional("select", lambda settings, output: output)(self.settings, output)

    def init(self, key: PRNGKeyArray, teacher: Any, student: Any) -> Params:
        """Initial parameters of the term for selected parts of these shapes; empty where it has none."""
        return self._optional("init", lambda *_: {})(self.settings, key, teacher, student)

    def loss(self, teacher: Any, student: Any, context: TermContext) -> tuple[Float[Array, ""], Measurements]:
        """The term of two selected parts, before weighting, and its measurements."""
        return self.module.loss(self.settings, teacher, student, context)

    @property
    def has_check(self) -> bool:
        """Whether the term refuses some networks."""
        return hasattr(self.module, "check")

    def check(self, teacher: Any, student: Any, train: TrainConfig) -> None:
        """Raises ValueError if the term cannot compare selected parts of these shapes, one patch each."""
        self._optional("check", lambda *_: None)(self.settings, teacher, student, train)

    def _optional(self, name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        return getattr(self.module, name, otherwise)


def terms_of(config: Config, student: str) -> tuple[Term, ...]:
    """The terms that teach a student: their own weight and the weight of all terms are above 0.

    Raises:
      InputError: a term is not known or cannot be imported, or its settings are impossible.
    """
    distillation = config.distillation_of(student)
    if distillation.weight == 0:
        return ()
    found = [_load_term(name, table) for name, table in distillation.terms.items()]
    names = [term.name for term in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"distillation.{twice}: two terms have this name; rename one's file")
    return tuple(term for term in found if term.settings.weight > 0)


def complete_terms(config: Config) -> Config:
    """The configuration with every setting of its terms written out, once they have been checked.

    The run folder then holds the settings that the run used, even if a later version has other defaults.

    Raises:
      InputError: as `terms_of`.
    """
    for name in config.every_student:
        terms_of(config, name)
    if not config.students:
        return replace(
            config,
            distillation=_completed(config.distillation),
            student=replace(config.student, distillation=_completed(config.student.distillation)),
        )
    students = {
        name: replace(student, distillation=_completed(student.distillation))
        for name, student in config.students.items()
    }
    return replace(config, distillation=_completed(config.distillation), students=students)


def _completed(distillation: Any) -> Any:
    if distillation is None:
        return None
    tables = {}
    for name, table in distillation.terms.items():
        settings = _load_term(name, table).settings
        # An absolute path, for a run may be resumed from another folder.
        place = str(Path(name).resolve()) if name.endswith(".py") else name
        tables[place] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return replace(distillation, terms=tables)


def _load_term(name: str, table: Mapping[str, Any]) -> Term:
    module = _import_term(name)
    short = Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]
    try:
        settings = TypeAdapter(module.Settings).validate_python(dict(table))
    except ValidationError as error:
        problems = [_explain(short, problem, module) for problem in error.errors()]
        raise InputError("; ".join(dict.fromkeys(problems))) from error
    return Term(short, settings, module)


def _import_term(name: str) -> ModuleType:
    """The module of a term: one of `TERMS`, one of an installed package, or a file."""
    if name in TERMS:
        return importlib.import_module(TERMS[name])
    try:
        if name.endswith(".py"):
            module = _import_file(Path(name))
        elif "." in name:
            module = importlib.import_module(name)
        else:
            raise InputError(
                f"distillation.{name}: no such term; allowed: {', '.join(TERMS)}, or the module "
                "(my_package.my_term) or file (my_term.py) of one of your own"
            )
    except (ImportError, OSError, SyntaxError) as error:
        raise InputError(
            f"distillation.{name}: cannot be imported ({error}); correct the name or the module"
        ) from error
    lacking = [part for part in ("Settings", "loss") if not hasattr(module, part)]
    if lacking:
        raise InputError(f"distillation.{name}: has no {' and no '.join(lacking)}, which every term has; add it")
    return module


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _explain(term: str, problem: Any, module: ModuleType) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        allowed = ", ".join(module.Settings.__dataclass_fields__)
        return f"unknown key distillation.{term}.{key}; allowed in [distillation.{term}]: {allowed}"
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"distillation.{term}{f'.{key}' if key else ''}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"
    )
