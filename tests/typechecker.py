"""The type checker that jaxtyping runs on every annotated call of the code under test."""

from io import TextIOBase
from typing import Self, TextIO

from beartype import BeartypeConf, FrozenDict, beartype

# The hook decorates methods, not classes, so beartype does not know which class Self stands for. The streams that
# pytest captures are text streams that lack some members of TextIO.
_OVERRIDES = FrozenDict({Self: object, TextIO: TextIOBase})

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_OVERRIDES))
"""An int passes for a float, as PEP 484 and mypy have it."""
