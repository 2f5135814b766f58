"""Distillation terms: each is a module with a settings class and a pure function, found by name.

A term's module has

- `Settings`, a pydantic dataclass derived from `base.TermSettings`;
- `loss(settings, teacher, student, context)`, which returns the scalar to minimise, before weighting, and its
  measurements by name;
- `select(settings, output)`, optional: returns the part of a `NetworkOutput` that the term compares; without it the
  term gets the whole output. The teacher's part stays in memory until the student's gradient is computed, so it should
  be small;
- `init(settings, key, teacher, student)`, optional: returns parameters of the term itself, for selected parts of these
  shapes. They are trained together with the student;
- `check(settings, teacher, student, train)`, optional: raises ValueError if the term cannot compare selected parts of
  these shapes (one patch each).

To ship a term with kd_jax, put its module into this folder and add a line to `TERMS`. Your own term needs neither: name
its module, or its file, in the configuration: `[distillation."my_package.my_term"]`, `[distillation."my_term.py"]`.
"""

from collections.abc import Mapping
from types import MappingProxyType

TERMS: Mapping[str, str] = MappingProxyType({"barlow_twins": "kd_jax.objective.terms.barlow_twins"})
"""Module of each term, by its name in `[distillation]`."""
