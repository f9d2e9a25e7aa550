"""The notebooks run from top to bottom, with small settings, as a person runs them."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.experiments.runs import ROOT

FOLDER = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {
    "quickstart": {"CONFIG": "test", "CHAINS": 50},
    "tpu_cifar10": {"CONFIG": "test", "PROTOCOL": "classifier"},
    "own_data": {"NUM_STEPS": 20, "EVERY": 10},
}


def read(path):
    return nbformat.read(path, as_version=4)


def parameters_of(notebook):
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


def pictures_of(notebook):
    return [
        output.data["image/png"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = read(path)
    cell, known = parameters_of(notebook), {}
    exec(cell.source, known)
    small = SMALL[path.stem] | {"WORKDIR": str(tmp_path / "run")}
    assert small.keys() <= known.keys()
    cell.source += "".join(f"\n{k} = {v!r}" for k, v in small.items())
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert (tmp_path / "run" / "report.html").is_file()
    assert pictures_of(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_it_ran_and_small(path):
    notebook = read(path)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1))
    outputs = [o for c in code for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert pictures_of(notebook)
    assert path.stat().st_size < 600_000
    assert str(ROOT.parent) not in path.read_text()  # nothing of the machine it ran on


def test_every_notebook_has_small_settings():
    assert SMALL.keys() == {path.stem for path in NOTEBOOKS}
