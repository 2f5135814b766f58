"""Reads PyTorch's checkpoint files as data: without PyTorch, and without running anything they name.

Since PyTorch 1.6 such a file is a zip archive of a pickle, which describes the objects, and one uncompressed member per
tensor storage. A pickle is a program that may call anything it names, so a reader that admits whole modules can be made
to run code. Here the pickle finds stand-ins for an exact list of names (the pattern of "Restricting Globals" in
Python's documentation of pickle) and never a class or function of a library. It can make tensor descriptions,
dictionaries and placeholders, nothing else.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped

from data_pipeline.errors import InputError

_AGAIN = "copy it again from where it was trained"
_LEGACY = b"\x80\x02"
"""First bytes of a file of PyTorch before 1.6: a bare pickle of protocol 2."""
_MAX_AXES = 8
"""More than any layer's tensor has."""
_DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "FloatStorage": "f4",
        "DoubleStorage": "f8",
        "HalfStorage": "f2",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "i8",
        "IntStorage": "i4",
        "ShortStorage": "i2",
        "CharStorage": "i1",
        "ByteStorage": "u1",
        "BoolStorage": "?",
    }
)


class Storage(NamedTuple):
    """The values behind one or more tensors: member of the archive, type, number of values."""

    key: str
    dtype: str
    length: int


class Tensor(NamedTuple):
    """A tensor that has not been read: a view, in values, of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Archive:
    """An open checkpoint: `content` is the saved object, with a `Tensor` for each tensor."""

    def __init__(self, path: Path, members: zipfile.ZipFile) -> None:
        self._path, self._members = path, members
        pickles = [name for name in members.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise InputError(f"{path}: a zip archive, but not of PyTorch (no data.pkl in it); expected a .pth file")
        self._prefix = pickles[0].removesuffix("data.pkl")
        big = f"{self._prefix}byteorder" in members.namelist() and self._read("byteorder") == b"big"
        self._order: Literal["<", ">"] = ">" if big else "<"
        self._arrays: dict[Tensor, np.ndarray] = {}
        self.content = _unpickle(path, self._read("data.pkl"))

    def array(self, tensor: Tensor) -> Shaped[np.ndarray, "..."]:
        """The values of a tensor; bfloat16 becomes float32. A tensor that appears several times is read once.

        Raises:
          InputError: the archive lacks them, or they do not fill the tensor.
        """
        if tensor not in self._arrays:
            self._arrays[tensor] = self._view(tensor)
        return self._arrays[tensor]

    def _view(self, tensor: Tensor) -> Shaped[np.ndarray, "..."]:
        storage = tensor.storage
        dtype = np.dtype("u2" if storage.dtype == "bfloat16" else storage.dtype).newbyteorder(self._order)
        raw = self._read(f"data/{storage.key}")
        if len(raw) != storage.length * dtype.itemsize:
            raise InputError(
                f"{self._path}: storage {storage.key} has {len(raw)} bytes, not {storage.length} values of "
                f"{storage.dtype}; the file is damaged: {_AGAIN}"
            )
        size = int(np.prod(tensor.shape, dtype=object))
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        # More values than are stored would let a small file ask for any amount of memory.
        if len(tensor.shape) > _MAX_AXES or size > storage.length or (size and last >= storage.length):
            raise InputError(
                f"{self._path}: a tensor of shape {tensor.shape} reaches beyond the {storage.length} values of storage "
                f"{storage.key}; the file is damaged: {_AGAIN}"
            )
        values = np.frombuffer(raw, dtype)
        if storage.dtype == "bfloat16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        native = values.dtype.newbyteorder("=")
        if size == 0:
            return np.zeros(tensor.shape, native)
        # The step along an axis of one is never taken, and may be any number.
        strides = [step * values.itemsize if n > 1 else 0 for n, step in zip(tensor.shape, tensor.strides, strict=True)]
        view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
        return np.ascontiguousarray(view, native).reshape(tensor.shape)

    def _read(self, name: str) -> bytes:
        try:
            member = self._members.getinfo(self._prefix + name)
            # PyTorch does not compress, so that a file cannot grow when it is read.
            if member.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile("compressed, which PyTorch does not do")
            return self._members.read(member)
        except KeyError as error:
            raise InputError(f"{self._path}: has no {name} in it; the file is damaged: {_AGAIN}") from error
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{self._path}: {name} cannot be read ({error}); the file is damaged: {_AGAIN}") from error


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Opens a file that PyTorch saved.

    Raises:
      InputError: it is not there, not such a file, damaged, or holds something other than data.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a checkpoint of nnU-Net, a .pth") from error
    if start == _LEGACY:
        raise InputError(
            f"{path}: in the format of PyTorch before 1.6, which is not read here; "
            "open it with torch.load in PyTorch and save it again with torch.save"
        )
    if start != b"PK":
        raise InputError(f"{path}: not a checkpoint of PyTorch (no zip archive); expected a .pth of nnU-Net")
    try:
        members = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InputError(f"{path}: the archive is incomplete or damaged ({error}): {_AGAIN}") from error
    with members:
        yield Archive(path, members)


class _Callable:
    """Stand-in for a name that a pickle calls. It is no class or function, and it cannot be altered."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("sets the state of a function")


class _Unused:
    """Stands for a value that nobody needs here: a device, a NumPy number in the log."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def _rebuild_tensor(
    storage: object, offset: Any, shape: object, strides: object, requires_grad: object, hooks: object, *_: object
) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`."""
    if isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple):
        numbers = offset, *shape, *strides
        if len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in numbers):
            return Tensor(storage, offset, shape, strides)
    raise pickle.UnpicklingError("describes a tensor in an unknown way")


def _rebuild_parameter(data: object, requires_grad: object, hooks: object) -> object:
    """`torch._utils._rebuild_parameter`."""
    return data


def _unused(*_: object) -> _Unused:
    return _Unused()


_NAMES: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("collections", "OrderedDict"): _Callable(OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
        ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
        ("torch", "device"): _Callable(_unused),
        ("torch", "Size"): _Callable(_unused),
        # NumPy 1 and 2 pickle numbers, arrays and bytes with these.
        ("numpy.core.multiarray", "scalar"): _Callable(_unused),
        ("numpy._core.multiarray", "scalar"): _Callable(_unused),
        ("numpy.core.multiarray", "_reconstruct"): _Callable(_unused),
        ("numpy._core.multiarray", "_reconstruct"): _Callable(_unused),
        ("numpy", "dtype"): _Callable(_unused),
        ("numpy", "ndarray"): "ndarray",
        ("_codecs", "encode"): _Callable(_unused),
    }
    | {("torch", name): dtype for name, dtype in _DTYPES.items()}
)
"""Everything a pickle may name."""


class _Refused(pickle.UnpicklingError):
    """A name that is not on the list."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for a name of the list."""
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that PyTorch describes as ("storage", type, key, device, number of values)."""
        match pid:
            case ("storage", str(dtype), str(key), str(), int(length)) if dtype in _DTYPES.values():
                return Storage(key, dtype, length)
        raise pickle.UnpicklingError("describes a storage in an unknown way")


def _unpickle(path: Path, data: bytes) -> Any:
    try:
        return _Unpickler(BytesIO(data)).load()
    except _Refused as error:
        raise InputError(
            f"{path}: contains {error}, which is not data; nothing of it was run. If you trust the file, save its "
            "network_weights, trainer_name, init_args and current_epoch again with torch.save"
        ) from error
    except Exception as error:  # a damaged pickle fails in any way: TypeError, EOFError, MemoryError, ...
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: its pickle cannot be read ({reason}); the file is damaged: {_AGAIN}") from error
