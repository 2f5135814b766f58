"""Reads nnU-Net's dataset.json: the modality of each channel, and the meaning of each output of the network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from data_pipeline.conventions import CLASSES, MODALITIES, REGION_CLASSES, Modality
from data_pipeline.errors import InputError
from data_pipeline.layouts.dataset_json import class_named, modality_named, region_named
from data_pipeline.layouts.label_map import parse_label_map
from kd_jax.nnunet.json_table import JsonTable

_HOW = 'say what the label values are with --labels, e.g. "1=NCR,2=ED,3=ET"'


@dataclass(frozen=True)
class OutputMeaning:
    """The meaning of the channels of the logits.

    Attributes:
      segmentation: loss of `kd_jax.config.schema.LossConfig` that such outputs are trained with.
      order: nnU-Net's channel for each of `conventions.CLASSES`, or of `conventions.REGION_CLASSES`.
      names: our name to nnU-Net's, without the background.
    """

    segmentation: Literal["dice_ce", "dice_bce"]
    order: tuple[int, ...]
    names: Mapping[str, str]


def read_modalities(dataset: JsonTable, given: Sequence[Modality] | None, channels: int) -> tuple[Modality, ...]:
    """The modalities in the order in which the network takes them.

    Args:
      dataset: dataset.json.
      given: modalities instead of the names in the file.
      channels: number of channels of the network.

    Raises:
      InputError: a channel has no known modality, two have the same, or their number is not the network's.
    """
    modalities = tuple(given) if given else _named_modalities(dataset)
    if len(set(modalities)) != len(modalities) or len(modalities) != channels:
        raise InputError(
            f"{dataset.file}: the network has {channels} channels and these are {', '.join(modalities)}; expected "
            f"{channels} different ones of {', '.join(MODALITIES)}: say which with --channels"
        )
    return modalities


def _named_modalities(dataset: JsonTable) -> tuple[Modality, ...]:
    key = "modality" if "channel_names" not in dataset.values and "modality" in dataset.values else "channel_names"
    names = dataset.get(key, dict[int, str])
    found = []
    for channel in sorted(names):
        modality = modality_named(names[channel])
        if modality is None:
            raise InputError(
                f'{dataset.file}: {key} calls channel {channel} "{names[channel]}", which is no known name of '
                f"{', '.join(MODALITIES)}; say what the channels are with --channels, e.g. --channels t1 t1ce t2 flair"
            )
        found.append(modality)
    return tuple(found)


def read_outputs(dataset: JsonTable, label_map: str | None) -> OutputMeaning:
    """The meaning of the network's outputs, by the names of the labels or by `label_map`, "1=NCR,2=ED,3=ET".

    With softmax an output is a label value; with regions (labels that are lists of values) it is a region, in the
    order of the file (nnunetv2/utilities/label_handling/label_handling.py).

    Raises:
      InputError: they are not background, NCR, ED and ET, or not WT, TC and ET, or their names are unknown.
    """
    labels = dataset.get("labels", dict[str, int | list[int]])
    sets = {name: {value} if isinstance(value, int) else set(value) for name, value in labels.items()}
    if sets.get("background") != {0}:
        raise InputError(f'{dataset.file}: labels has no "background": 0, which nnU-Net 2 requires; found {labels}')
    foreground = {name: values for name, values in sets.items() if name != "ignore" and values != {0}}
    # What nnU-Net takes for region-based training.
    if any(len(values) > 1 for values in sets.values()):
        return _regions(dataset, foreground, label_map)
    return _classes(dataset, {name: min(values) for name, values in foreground.items()}, label_map)


def _classes(dataset: JsonTable, values: Mapping[str, int], label_map: str | None) -> OutputMeaning:
    if sorted(values.values()) != list(range(1, len(CLASSES))):
        raise InputError(
            f"{dataset.file}: labels are {dict(values)}; kd_jax segments three classes, {', '.join(CLASSES[1:])}, with "
            "the values 1 to 3 in nnU-Net (or the regions WT, TC, ET)"
        )
    meaning = None if label_map is None else parse_label_map(label_map).to_class
    found: dict[str, str] = {}
    for name, value in values.items():
        ours = _known(dataset, name, class_named, CLASSES[1:]) if meaning is None else CLASSES[meaning.get(value, 0)]
        found.setdefault(ours, name)
    if set(found) != set(CLASSES[1:]):
        raise InputError(
            f"{dataset.file}: labels {dict(values)} are taken for {', '.join(found)}; expected each of "
            f"{', '.join(CLASSES[1:])} once: {_HOW}"
        )
    names = {ours: found[ours] for ours in CLASSES[1:]}
    return OutputMeaning("dice_ce", (0, *(values[name] for name in names.values())), names)


def _regions(dataset: JsonTable, sets: Mapping[str, set[int]], label_map: str | None) -> OutputMeaning:
    dataset.get("regions_class_order", list[int])
    meaning = None if label_map is None else parse_label_map(label_map).to_class
    found: dict[str, str] = {}
    for name, values in sets.items():
        region: str | None = (
            _known(dataset, name, region_named, REGION_CLASSES) if meaning is None else _region(values, meaning)
        )
        if region is not None:
            found.setdefault(region, name)
    nested = set(found) == set(REGION_CLASSES) and sets[found["ET"]] < sets[found["TC"]] < sets[found["WT"]]
    if len(sets) != len(REGION_CLASSES) or not nested:
        shown = {name: sorted(values) for name, values in sets.items()}
        raise InputError(
            f"{dataset.file}: labels has the regions {shown}; kd_jax segments WT, TC and ET, each a part of the one "
            f"before: {_HOW}, or train nnU-Net with these regions"
        )
    names: dict[str, str] = {region: found[region] for region in REGION_CLASSES}
    return OutputMeaning("dice_bce", tuple(list(sets).index(name) for name in names.values()), names)


def _region(values: set[int], meaning: Mapping[int, int]) -> str | None:
    """The region that these label values make up, all values of the map considered."""
    for region, classes in REGION_CLASSES.items():
        if values == {value for value, index in meaning.items() if index in classes}:
            return region
    return None


def _known(dataset: JsonTable, name: str, find: Callable[[str], str | None], allowed: Iterable[str]) -> str:
    ours = find(name)
    if ours is None:
        raise InputError(
            f'{dataset.file}: labels calls one "{name}", which is no known name of {", ".join(allowed)}; {_HOW}'
        )
    return ours
