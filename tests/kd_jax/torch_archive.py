"""Checkpoints in PyTorch's format, written by hand: zip archive, pickle, storages. No PyTorch needed."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage", "u1": "ByteStorage"}


class Named:
    """A name in a pickle, which need not exist: pickled as protocol 2's GLOBAL."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Tensor:
    """What becomes `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`."""

    def __init__(self, storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], kind=None):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.kind = kind or STORAGES[storage.dtype.str[1:]]


class Call:
    """What becomes a call of a name, and a BUILD with `state` if there is one."""

    def __init__(self, function: Any, arguments: tuple, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state


class _Pickler(pickle._Pickler):
    """The pickler in Python, which can be taught opcodes."""

    def __init__(self, file, storages: dict[str, bytes], protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages = storages

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            if self.proto >= 4:
                super().save(obj.module)
                super().save(obj.name)
                self.write(pickle.STACK_GLOBAL)
            else:
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, Tensor):
            key = str(len(self.storages))
            self.storages[key] = obj.storage.tobytes()
            self.save(Named("torch._utils", "_rebuild_tensor_v2"))
            self.write(pickle.MARK)
            self.save(("storage", Named("torch", obj.kind), key, "cuda:0", obj.storage.size))
            self.write(pickle.BINPERSID)
            for item in (obj.offset, obj.shape, obj.strides, False, Call(Named("collections", "OrderedDict"), ())):
                self.save(item)
            self.write(pickle.TUPLE + pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def tensor(array: np.ndarray) -> Tensor:
    """A contiguous tensor."""
    strides = tuple(step // array.itemsize for step in array.strides)
    return Tensor(np.ascontiguousarray(array).ravel(), 0, array.shape, strides)


def save(
    path: Path, content: Any, *, protocol: int = 2, extra: Mapping[str, bytes] | None = None, compress: bool = False
) -> Path:
    """Write what `torch.save` would; `extra` members replace or join the archive's own."""
    buffer, storages = io.BytesIO(), {}
    _Pickler(buffer, storages, protocol).dump(content)
    members = {"data.pkl": buffer.getvalue(), "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": value for key, value in storages.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, value in (members | dict(extra or {})).items():
            archive.writestr(f"{path.stem}/{name}", value)
    return path
