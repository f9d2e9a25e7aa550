import re

import pytest

from experiments.errors import ConfigError
from experiments.runtime.files import read_json, write_json, write_text


@pytest.mark.parametrize("value", [{"a": [1, None, "ü"]}, {}, [], [{"step": 1}]])
def test_json_comes_back(tmp_path, value):
    path = tmp_path / "value.json"
    write_json(path, value)
    assert read_json(path, type(value)) == value
    assert path.read_text().endswith("\n")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_damaged_json_is_named(tmp_path, text):
    path = tmp_path / "value.json"
    write_text(path, text)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))} cannot be read: "):
        read_json(path)


def test_value_that_is_no_json_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
