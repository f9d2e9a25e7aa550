"""Reads the tensors of a PyTorch file of before 1.6, and runs nothing in it.

Such a file is a row of pickles - a magic number, a version, facts of the machine, the
dict of tensors, and the keys of their storages - and then each storage, its number of
values and the values. Here the pickles are read as data: `pickletools` tells their
opcodes apart, and the machine below knows those that a dict of tensors is made of. What
a pickle names stays a name: nothing is looked up, imported or called.
"""

import math
import os
import pathlib
import pickletools
import sys
from typing import Any, BinaryIO, NamedTuple

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch IntStorage": np.dtype("<i4"),
    "torch LongStorage": np.dtype("<i8"),
}
# PyTorch's names of what a layer of Linen holds.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "BINUNICODE", "LONG1"}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Name(NamedTuple):
    """What a pickle would import."""

    text: str


class _Storage(NamedTuple):
    """Where values lie: those of the storage `key`."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    """A tensor by its place in a storage; offset and strides count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a dict of tensors.

    Args:
      path: what `torch.save` wrote before version 1.6, or since with
        `_use_new_zipfile_serialization=False`.

    Returns:
      Arrays by name, in the dtype and the byte order of the file, copied.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, of another kind, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise ValueError(
            f"{path} is damaged or no dict of tensors as PyTorch wrote it before 1.6: "
            f"{e}"
        ) from None


def turned(path: str, array: np.ndarray) -> np.ndarray:
    """Puts the axes of a tensor in the order of the variable at `path`.

    Example:
      >>> turned("params/conv/kernel", np.zeros((8, 3, 5, 5))).shape
      (5, 5, 3, 8)
    """
    if path.endswith("kernel") and array.ndim > 1:  # [out, in, (height, width)]
        array = np.transpose(array, (*range(2, array.ndim), 1, 0))
    return array


def _read(file):
    if _value(file) != _MAGIC or _value(file) != _VERSION:
        raise ValueError("it does not begin as such a file does")
    if _value(file)["little_endian"] is not True:
        raise ValueError("its values are in big-endian order")
    tensors, keys = _value(file), _value(file)
    named = {t.storage.key: t.storage for t in tensors.values()}
    if sorted(named) != sorted(keys):
        raise ValueError("its tensors and its storages do not belong together")
    storages = {key: _values(file, named[key]) for key in keys}
    return {name: _array(t, storages[t.storage.key]) for name, t in tensors.items()}


def _values(file: BinaryIO, storage: _Storage) -> np.ndarray:
    size, left = int.from_bytes(file.read(8), "little", signed=True), _left(file)
    if size != storage.size or not 0 <= size * storage.dtype.itemsize <= left:
        raise ValueError(
            f"a storage of {storage.size} values is said to have {size}, and {left} "
            "bytes are left"
        )
    return np.frombuffer(file.read(size * storage.dtype.itemsize), storage.dtype, size)


def _left(file):
    """Counts the bytes from here to the end."""
    return os.fstat(file.fileno()).st_size - file.tell()


def _array(tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    """Copies the values of a tensor; all of them must lie in its storage."""
    shape, strides = tensor.shape, tensor.strides
    if len(shape) != len(strides) or min((tensor.offset, *shape, *strides)) < 0:
        raise ValueError(f"a tensor of shape {shape} has strides {strides}")
    # In Python's integers, which do not overflow.
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    if tensor.offset + last >= len(values) or math.prod(shape) > len(values):
        raise ValueError(f"a tensor of shape {shape} has more values than its storage")
    steps = tuple(s * values.itemsize for s in strides)
    view = np.lib.stride_tricks.as_strided(values[tensor.offset :], shape, steps)
    return view.copy()


def _value(file: BinaryIO) -> Any:
    """Reads what the next pickle of the file holds; the file is then at its end."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark():
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "STOP":
            break
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            start = len(stack) - _TUPLES[name]
            stack[start:] = [tuple(stack[start:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "BINPERSID":
            stack.append(_storage(*stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_made(called, arguments))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _dict(stack[-1])[key] = value
        elif name == "SETITEMS":
            items = since_mark()
            _dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))
        elif name == "APPENDS":
            items = since_mark()
            stack[-1] += items
        elif name == "BUILD":
            stack.pop()  # attributes of a dict, like the versions of modules
            _dict(stack[-1])
        elif name != "PROTO":
            raise ValueError(f"it holds more than tensors: the opcode {name}")
    (value,) = stack
    return value


def _dict(value):
    if type(value) is not dict:
        raise ValueError("it sets entries of what is no dict")
    return value


def _storage(kind, name, key, device, size, view):
    if kind != "storage" or view is not None or name.text not in _STORAGES:
        raise ValueError(f"it holds a storage of another kind, {name}")
    del device  # where the values were
    return _Storage(_STORAGES[name.text], sys.intern(key), size)


def _made(called, arguments):
    """Makes the dict or tensor of a call that makes one; the call itself is not run."""
    if called == _Name("collections OrderedDict") and arguments == ():
        return {}
    if called == _Name("torch._utils _rebuild_tensor_v2"):
        storage, offset, shape, strides, *_ = arguments
        return _Tensor(storage, offset, shape, strides)
    raise ValueError(f"it holds more than tensors: a call of {called}")
