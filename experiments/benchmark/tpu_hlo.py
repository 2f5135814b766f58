"""Memory traffic of an optimised program for a TPU, read from the text of its HLO."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\](\{[^}]*\})?")
_LAYOUT = re.compile(r"\{([\d,]+):T\((\d+),(\d+)\)")
_ELSEWHERE = re.compile(r"S\([1-9]")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(([^)]*)\)(.*)")
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    calls: str | None


def traffic(text: str) -> dict[str, float]:
    """Bytes of HBM that the program's instructions read and write, by kind, largest first.

    Kinds are convolutions (with whatever is fused into them), collectives, copies, prefetches (to on-chip memory and
    back, each byte once; XLA's own count takes a prefetched slice for the whole array), and everything else. Arrays
    count with the padding of their layout; what stays in on-chip memory does not count.
    """
    computations, entry = _parse(text)
    shapes = {instruction.name: instruction.shape for instruction in computations[entry]}
    moved: dict[str, float] = defaultdict(float)
    for instruction in computations[entry]:
        if instruction.operation in _FREE or instruction.operation.endswith("-done"):
            continue
        kind, operands = _kind(instruction, computations), [shapes.get(name, "") for name in instruction.operands]
        if kind == "prefetches":
            moved[kind] += min(filter(None, map(_padded_bytes, _arrays(instruction.shape))), default=0)
        elif kind == "collectives":
            moved[kind] += 2 * sum(map(array_bytes, operands))
        else:
            moved[kind] += sum(_bytes_in_hbm(shape) for shape in (instruction.shape, *operands))
    return dict(sorted(moved.items(), key=lambda item: -item[1]))


def collective_bytes(text: str, devices: int) -> float:
    """Bytes one chip sends per step: 2 (n − 1) / n of what is all-reduced over n chips, as in a ring."""
    computations, _ = _parse(text)
    reduced = sum(
        array_bytes(instruction.shape) / (2 if instruction.operation.endswith("-start") else 1)
        for instructions in computations.values()
        for instruction in instructions
        if instruction.operation.removesuffix("-start") in _COLLECTIVES
    )
    return 2 * (devices - 1) / devices * reduced


def array_bytes(shape: str) -> int:
    """Bytes of every array in the text of a shape, without padding."""
    return sum(_BYTES.get(kind, 0) * math.prod(_sizes(sizes)) for kind, sizes, _ in _arrays(shape))


def _bytes_in_hbm(shape: str) -> int:
    """The same with the padding of tiles, and without what lies in another memory."""
    return sum(_padded_bytes(array) for array in _arrays(shape) if not _ELSEWHERE.search(array[2]))


def _arrays(shape: str) -> list[tuple[str, str, str]]:
    """Element type, sizes and layout of every array in the text of a shape."""
    return _SHAPE.findall(shape)


def _padded_bytes(array: tuple[str, str, str]) -> int:
    kind, text, layout = array
    sizes, tiled = _sizes(text), _LAYOUT.match(layout)
    if tiled and len(sizes) > 1:
        order = _sizes(tiled[1])
        for dimension, tile in ((order[0], int(tiled[3])), (order[1], int(tiled[2]))):
            sizes[dimension] = -(-sizes[dimension] // tile) * tile
    return _BYTES.get(kind, 0) * math.prod(sizes) if sizes else 0


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",") if size]


def _kind(instruction: _Instruction, computations: Mapping[str, list[_Instruction]]) -> str:
    operation = instruction.operation.removesuffix("-start")
    inside = set(_operations(instruction.calls, computations)) | {operation}
    if "convolution" in inside:
        return "convolutions"
    if inside & set(_COLLECTIVES):
        return "collectives"
    if instruction.operation.endswith("-start"):
        return "prefetches"
    return "copies" if operation in ("copy", "transpose", "reshape", "slice", "pad") else "other"


def _operations(name: str | None, computations: Mapping[str, list[_Instruction]]) -> Iterator[str]:
    for instruction in computations.get(name or "", ()):
        yield instruction.operation
        yield from _operations(instruction.calls, computations)


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Every computation's instructions, and the name of the program's own."""
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[2]
            computations[current] = []
            entry = current if match[1] else entry
        elif current and (match := _INSTRUCTION.match(line)):
            calls = re.search(r"calls=%?([\w.\-]+)", match[5])
            operands = tuple(re.findall(r"%([\w.\-]+)", match[4]))
            computations[current].append(_Instruction(match[1], match[2], match[3], operands, calls and calls[1]))
    return computations, entry
