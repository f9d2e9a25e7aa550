"""Files of tensors are read as they were written, and nothing in them runs."""

import sys

import numpy as np
import pytest

from jebm.metrics import torch_file
from tests import torch_files


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "plain": rng.standard_normal((3, 4)).astype(np.float32),
        "turned": rng.standard_normal((2, 3, 5)).transpose(2, 0, 1),
        "count": np.array(7),
        "wide": np.arange(5) - 2**40,
        "empty": np.zeros((0, 3)),
    }


def test_tensors_are_those_that_were_written(arrays, tmp_path):
    found = torch_file.read(torch_files.write(tmp_path / "x.pth", arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable  # a copy, that keeps no file open


def test_a_file_that_is_cut_or_has_a_bit_turned_is_refused_or_read_and_never_runs(
    arrays, tmp_path
):
    whole = torch_files.write(tmp_path / "x.pth", arrays).read_bytes()
    rng, refused = np.random.default_rng(0), 0
    loaded = set(sys.modules)
    for i in range(200):
        damaged = bytearray(whole)
        if i % 2:
            del damaged[rng.integers(len(whole)) :]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        (tmp_path / "damaged.pth").write_bytes(damaged)
        try:
            torch_file.read(tmp_path / "damaged.pth")
        except ValueError as error:
            assert "damaged.pth is damaged or no dict of tensors" in str(error)
            refused += 1
    assert refused > 120  # the others have other values, or other names
    assert set(sys.modules) == loaded


CALL = b"cos\nsystem\n(" + torch_files.text("touch ran") + b"tR"
STATE = torch_files.state_pickle({})


@pytest.mark.parametrize(
    ("pickle", "words"),
    [
        (b"\x80\x02" + CALL + b".", "a call of .*os system"),
        (b"\x80\x02" + torch_files.text("x") + b"cos\nsystem\nQ.", "damaged"),
        (b"\x80\x02cos\nsystem\n}b.", "entries of what is no dict"),
        (b"\x80\x02(" + torch_files.text("touch ran") + b"ios\nsystem\n.", "INST"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "opcode SHORT_BINUNICODE"),
        (b"\x80\x02}.extra", "damaged"),
        (b"\x80\x02" + torch_files.integer(3) + b".", "damaged"),
        (b"\x80\x02}(" + torch_files.text("x") + torch_files.integer(3) + b"u.", "dam"),
        (b".", "damaged"),
    ],
)
def test_anything_else_than_tensors_is_refused(tmp_path, monkeypatch, pickle, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    path.write_bytes(torch_files.head() + pickle + torch_files.tail({}))
    with pytest.raises(ValueError, match=words):
        torch_file.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((3,), (1,), 4),
        ((3, 2), (1, 4), 0),
        ((3,), (-1,), 2),
        ((2,), (1,), -1),
        ((2**30,), (0,), 0),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, shape, strides, offset):
    array = np.arange(6.0)
    whole = torch_files.write(tmp_path / "x.pth", {"a": array}).read_bytes()
    old = torch_files.integer(0) + torch_files.integers((6,))
    old += torch_files.integers((1,))
    new = torch_files.integer(offset) + torch_files.integers(shape)
    new += torch_files.integers(strides)
    assert whole.count(old) == 1
    (tmp_path / "x.pth").write_bytes(whole.replace(old, new))
    with pytest.raises(ValueError, match="a tensor of shape"):
        torch_file.read(tmp_path / "x.pth")


def test_values_of_another_byte_order_and_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(torch_files.head(False) + STATE + torch_files.tail({}))
    with pytest.raises(ValueError, match="big-endian"):
        torch_file.read(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="no dict of tensors as PyTorch wrote it"):
        torch_file.read(path)
    with pytest.raises(FileNotFoundError):
        torch_file.read(tmp_path / "nothing.pth")
