"""Writes files as PyTorch did before 1.6, without PyTorch."""

import pathlib
import struct

import numpy as np

_KINDS = {"float32": b"FloatStorage", "float64": b"DoubleStorage"}
_KINDS["int64"] = b"LongStorage"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    """The opcode of a text."""
    encoded = value.encode()
    return b"X" + struct.pack("<i", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """The opcode of an integer of 32 bits."""
    return b"J" + struct.pack("<i", value)


def integers(values) -> bytes:
    """The opcodes of a tuple of integers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(key: str, array: np.ndarray) -> bytes:
    """The opcodes of a tensor, which lies in its storage in the order of `array`."""
    kind = b"ctorch\n" + _KINDS[array.dtype.name] + b"\n"
    storage = b"(" + text("storage") + kind + text(key) + text("cpu")
    storage += integer(array.size) + b"NtQ"
    strides = [s // array.itemsize for s in array.strides]
    arguments = b"(" + storage + integer(0) + integers(array.shape) + integers(strides)
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return rebuild + arguments + b"\x89" + ORDERED_DICT + b"tR"


def state_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors."""
    items = (text(k) + tensor(str(i), a) for i, (k, a) in enumerate(arrays.items()))
    return b"\x80\x02" + ORDERED_DICT + b"(" + b"".join(items) + b"u."


def head(little_endian: bool = True) -> bytes:
    """The pickles before it: magic number, version and facts of the machine."""
    magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    facts = text("little_endian") + (b"\x88" if little_endian else b"\x89")
    return (
        b"\x80\x02\x8a\x0a" + magic + b"."
        b"\x80\x02" + integer(1001) + b"."
        b"\x80\x02}(" + facts + b"u."
    )


def tail(arrays: dict[str, np.ndarray]) -> bytes:
    """The keys of the storages and their values, behind it."""
    keys = b"\x80\x02](" + b"".join(text(str(i)) for i in range(len(arrays))) + b"e."
    values = (
        struct.pack("<q", a.size) + a.ravel(order="K").tobytes()
        for a in arrays.values()
    )
    return keys + b"".join(values)


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    """Writes a file of tensors of float32, float64 or int64."""
    path.write_bytes(head() + state_pickle(arrays) + tail(arrays))
    return path
