"""The type checker that jaxtyping runs on every annotated call of the code under test."""

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype

# An int passes for a float, as PEP 484 and mypy have it. The hook decorates methods, not classes, so beartype does not
# know which class Self stands for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: object})))
