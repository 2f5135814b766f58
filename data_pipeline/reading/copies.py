"""The same image in several cases."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

from data_pipeline.conventions import Modality
from data_pipeline.reading.findings import Finding


def find_copies(cases: Iterable[tuple[str, Mapping[Modality, Hashable]]]) -> list[Finding]:
    """Warnings for groups of cases that share images: a patient could be in both training and validation.

    Args:
      cases: ids, each with a mark per modality that tells one image from another.
    """
    holders: dict[tuple[Modality, Hashable], list[str]] = defaultdict(list)
    for case, marks in cases:
        for m, mark in marks.items():
            holders[m, mark].append(case)
    shared: dict[tuple[str, ...], list[Modality]] = defaultdict(list)
    for (m, _), names in holders.items():
        if len(names) > 1:
            shared[tuple(names)].append(m)
    return [
        Finding(
            "warning",
            None,
            f"cases {', '.join(names)} have the same {', '.join(modalities)}",
            "remove the copies, or the same patient may be trained and validated on",
        )
        for names, modalities in shared.items()
    ]
