import argparse
import ast
import doctest
import pathlib

import pytest

import tools
from tools import arguments
from tools.site import table

FILES = sorted(pathlib.Path(tools.__file__).parent.rglob("*.py"))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_is_found_also_after_an_equals_sign(home):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=arguments.path_argument)
    assert parser.parse_args(["--out=~/x"]).out == home / "x"
    assert parser.parse_args(["--out=x"]).out == pathlib.Path("x")


@pytest.mark.parametrize("text", ["gs://bucket/x", "~nobody-of-this-name/x"])
def test_what_is_no_path_here_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        table.main([text])
    assert "error: argument RUN: the path " in capsys.readouterr().err


def test_every_tool_reads_its_paths_so():
    """`pathlib.Path` as a type of argparse would make a folder named ~."""
    types = {
        ast.unparse(keyword.value)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and "add_argument" in ast.unparse(node.func)
        for keyword in node.keywords
        if keyword.arg == "type"
    }
    others = {"names", "_seeds"}  # of tools.priors
    others |= {"_not_negative", "_count"}  # of tools.headline
    assert types == {"int", "float", "path_argument", "positive"} | others


def test_example_of_the_docstring():
    assert doctest.testmod(arguments).failed == 0
