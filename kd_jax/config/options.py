"""The options that all commands with a trained network share."""

import math
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from kd_jax.config.network import AXES, Axis
from kd_jax.config.schema import Which

NETWORK = Group("Network", sort_key=11)
_POSTPROCESSING = Group("Post-processing", sort_key=12)
VOLUME = Number(gt=0, lt=math.inf)
"""Checks a volume in millilitres."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which network of a run, and how it is applied."""

    network: Annotated[
        str | None,
        Parameter(
            group=NETWORK,
            metavar="NAME",
            help="teacher, student, or the name of one of several students; by default the student, or the teacher of "
            "a run without a student",
        ),
    ] = None
    checkpoint: Annotated[
        Which, Parameter(group=NETWORK, metavar="best|latest", show_choices=False, help="which checkpoint")
    ] = "best"
    mirror: Annotated[
        tuple[Axis, ...] | None,
        Parameter(
            group=NETWORK,
            metavar="AXIS...",
            show_choices=False,
            help="average over mirror images along the axes given, of x (left and right), y (front and back) and z; "
            "without an axis (as the last option) along all three: 8 times the work",
        ),
    ] = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes to mirror, each once: none without --mirror, all of them where it stands alone."""
        if self.mirror is None:
            return ()
        return tuple(axis for axis in AXES if not self.mirror or axis in self.mirror)


@dataclass(frozen=True, kw_only=True)
class PostprocessingOptions:
    """Which post-processing is applied."""

    postprocess: Annotated[
        str,
        Parameter(
            group=_POSTPROCESSING,
            metavar="auto|none|FILE",
            help="auto applies RUN/postprocessing.json if kd-jax postprocess has written it, for an ensemble if it is "
            "the same in every run; FILE applies another one",
        ),
    ] = "auto"
    min_et: Annotated[
        float | None,
        Parameter(
            group=_POSTPROCESSING,
            metavar="ML",
            validator=VOLUME,
            help="enhancing tumour below ML in total becomes necrotic core (1 ml: 1000 voxels of 1 mm³)",
        ),
    ] = None
