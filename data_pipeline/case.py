"""One case on disk: the file of each modality, the label file, and the meaning of its values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from data_pipeline.conventions import LabelConvention, Modality, convention


@dataclass(frozen=True)
class Case:
    """One time point of one patient on disk.

    Attributes:
      id: unique within a data set; the stem that the case's files share.
      patient: groups the time points of one patient; splits are made over patients.
      images: the modalities whose file exists.
      label: the label file, where there is one.
      convention: meaning of the label values; predictions are written in the same values.
      layout: the layout that the names follow; for display.
      channels: index of each modality's volume in a 4-D file; empty where every modality has its own file.
    """

    id: str
    patient: str
    images: Mapping[Modality, Path]
    label: Path | None
    convention: LabelConvention
    layout: str
    channels: Mapping[Modality, int] = field(default_factory=lambda: MappingProxyType({}))

    def __reduce__(self) -> tuple[Any, ...]:
        """Cases travel to worker processes; read-only mappings do not pickle, so they are rebuilt on arrival."""
        c = self.convention
        parts = (c.name, dict(c.to_class), dict(c.from_class))
        return _rebuild, (self.id, self.patient, dict(self.images), self.label, parts, self.layout, dict(self.channels))


def _rebuild(
    case: str,
    patient: str,
    images: dict[Modality, Path],
    label: Path | None,
    meaning: tuple[str, dict[int, int], dict[int, int]],
    layout: str,
    channels: dict[Modality, int],
) -> Case:
    labels = convention(*meaning)
    return Case(case, patient, MappingProxyType(images), label, labels, layout, MappingProxyType(channels))
