import os
import pathlib
import re

import pytest

from experiments.errors import ConfigError
from experiments.runtime.files import (
    digest_name,
    local_path,
    read_json,
    short_name,
    write_json,
    write_text,
)


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


def test_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("workdir", "~/runs/a") == tmp_path / "runs" / "a"
    assert local_path("workdir", "runs/~a") == pathlib.Path("runs/~a")


@pytest.mark.parametrize("text", ["gs://bucket/a", "s3://bucket", "hdfs://host/a"])
def test_address_of_elsewhere_is_refused(text):
    with pytest.raises(ConfigError, match=f"^workdir must be a path .*got '{text}'"):
        local_path("workdir", text)


def test_home_of_nobody_is_refused():
    with pytest.raises(ConfigError, match="images '~nobody_of_here/a'"):
        local_path("images", "~nobody_of_here/a")


@pytest.mark.parametrize("letter", ["a", "ü", "\udcff"])
def test_long_names_are_cut_and_differ(tmp_path, letter):
    names = {short_name(500 * letter + end) for end in "bc"}
    assert len(names) == 2
    for name in names:
        write_text(tmp_path / f"{name}.json", "")
        assert len(os.fsencode(name)) <= 160


def test_names_stay_in_their_folder():
    assert short_name("start=../../evil") == "start=.._.._evil"
    assert digest_name("images", "/a/images") != digest_name("images", "/b/images")


def test_text_with_a_name_that_is_no_text_is_written(tmp_path):
    write_text(tmp_path / "page.html", "caf\udce9, ü")
    assert (tmp_path / "page.html").read_text("utf-8") == "caf\\udce9, ü"
