"""Distillation terms: each a module with a settings class and a pure function, found by name.

A term's module has

- `Settings`, a pydantic dataclass derived from `base.TermSettings`;
- `loss(settings, teacher, student, context)`, which returns the scalar to minimise, before weighting, and its
  measurements by name;
- `select(settings, output)`, optional: the part of a `NetworkOutput` that the term compares. The teacher's is kept
  until the student's gradient has been computed, so select no more than is needed. Without it the term gets all;
- `init(settings, key, teacher, student)`, optional: parameters of the term's own, for selected parts of these shapes.
  They are trained together with the student;
- `check(settings, teacher, student, train)`, optional: raises ValueError where the term does not fit two networks.

To add a term to kd_jax: its module in this folder, and a line in `TERMS`. A term of one's own needs neither: name its
module, or its file, in the configuration: `[distillation."my_package.my_term"]`, `[distillation."my_term.py"]`.
"""

from collections.abc import Mapping
from types import MappingProxyType

TERMS: Mapping[str, str] = MappingProxyType({"barlow_twins": "kd_jax.objective.terms.barlow_twins"})
"""Module of each term, by its name in `[distillation]`."""
