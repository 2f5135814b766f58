"""Settings of a run's data, and the types that all settings share."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from data_pipeline.layouts.table import LayoutName
from data_pipeline.patches.augment import Augmentation

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Unknown keys and impossible numbers are errors."""

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveShape = tuple[PositiveInt, PositiveInt, PositiveInt]
"""A size in voxels along x, y and z."""


def _one_or_more_roots(value: object) -> object:
    if isinstance(value, list | tuple) and not value:
        raise ValueError("is empty; allowed: a folder, several, or none for the embedded phantom")
    return (value,) if isinstance(value, str | Path) else value


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which cases, at which spacing, in which patches."""

    root: Annotated[
        tuple[Path, ...] | None,
        BeforeValidator(_one_or_more_roots),
        Field(description="folders of cases, or CSV files, joined; none trains on the embedded phantom"),
    ] = None
    layout: Annotated[LayoutName | None, Field(description="layout of the data set; none recognises it")] = None
    label_map: Annotated[
        str | None, Field(description="meaning of label values if file names do not tell, e.g. 1=NCR,2=ED,4=ET")
    ] = None
    ignore_affine: Annotated[bool, Field(description="accept modalities whose affines differ")] = False
    skip_bad: Annotated[bool, Field(description="leave out cases with problems instead of stopping")] = False
    phantom_cases: Annotated[PositiveInt, Field(description="size of the embedded data set")] = 40
    phantom_seed: Annotated[int, Field(ge=0, description="seed of the embedded data set")] = 0
    spacing: Annotated[
        tuple[PositiveFloat, PositiveFloat, PositiveFloat],
        Field(description="voxel size in mm at which the networks work"),
    ] = (2.0, 2.0, 2.0)
    patch: Annotated[PositiveShape, Field(description="patch size in voxels")] = (48, 48, 48)
    folds: Annotated[int, Field(ge=2, description="folds of the cross-validation (nnU-Net: 5)")] = 5
    splits: Annotated[
        Path | None,
        Field(description="JSON of folds in nnU-Net's form (splits_final.json) instead of the seeded cross-validation"),
    ] = None
    fold: Annotated[
        Annotated[int, Field(ge=0)] | Literal["all"],
        Field(description="fold held out for validation; all trains and validates on every case"),
    ] = 0
    foreground: Annotated[Probability, Field(description="share of a batch centred on tumour (nnU-Net: 0.33)")] = 0.33
    workers: Annotated[int, Field(ge=0, description="worker processes; 0 loads in threads")] = 0
    cache: Annotated[
        Path | None, Field(description="folder for phantoms and prepared cases; none is the user's cache folder")
    ] = None
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.splits is None and self.fold != "all" and self.fold >= self.folds:
            raise ValueError(f"data.fold is {self.fold}; allowed: 0 to {self.folds - 1} (data.folds - 1), or all")
        return self
