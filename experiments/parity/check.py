"""One comparison with an original, and the place of its small results for the ordinary tests."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
"""Results of the originals on small inputs; `make parity` writes them, `make test` compares with them."""


@dataclass(frozen=True)
class Check:
    """One figure and the bound it must keep.

    Attributes:
      name: what was compared.
      figure: the difference found, as `measure` says.
      bound: largest difference allowed.
      measure: what kind of difference it is.
    """

    name: str
    figure: float
    bound: float
    measure: str = "max abs difference"

    @property
    def passed(self) -> bool:
        """The figure is a number within the bound."""
        return self.figure <= self.bound  # False for NaN


Part = Callable[[], Iterable[Check]]
"""A subject: compares, writes its golden files, yields its checks."""
