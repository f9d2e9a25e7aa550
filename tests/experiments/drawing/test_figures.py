import dataclasses
import doctest
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.drawing import figures
from experiments.drawing.figures import FIGURES, Entry, draw_figure, draw_figures
from experiments.evaluation import probes


class Blank:
    """A figure of nothing, that remembers the keys it is computed with."""

    def __init__(self):
        self.keys = []

    def compute(self, key, run):
        self.keys.append(key)
        return run.step

    def draw(self, results):
        return Figure(figsize=(2, 2))


def due(run):
    return [name for name, entry in FIGURES.items() if entry.condition(run)]


def test_run_with_layers_and_both_chains_has_all_figures(run):
    assert due(run) == list(FIGURES)


def test_figures_of_a_chain_or_of_layers_are_left_out_where_there_are_none(make_run):
    gaussian = due(make_run(prior="gaussian"))
    assert gaussian == ["training", "posterior_transition", "by_layer"]
    single = due(make_run(**{"backbone.latent_dims": (3,)}))
    assert set(FIGURES) - set(single) == {"by_layer", "hierarchical"}
    encoded = {
        "learning.method": "variational",
        "chains.posterior.start": "encoder",
        "chains.posterior.num_steps": 0,
    }
    assert set(FIGURES) - set(due(make_run(**encoded))) == {"posterior_transition"}


def test_curves_are_left_out_before_the_first_metrics(fresh_run):
    (fresh_run.path / "metrics.jsonl").unlink()
    assert due(fresh_run) == [name for name in FIGURES if name != "training"]


@pytest.mark.slow
def test_all_figures_are_drawn_and_all_probes_written(drawn_run):
    run, files = drawn_run
    folder = run.path / "figures"
    assert files == [folder / f"{name}.png" for name in FIGURES] + [
        folder / "probes.json"
    ]
    numbers = {"long_run.json", "hierarchical.json", "latent_planes.json"}
    names = {file.name for file in folder.iterdir()}
    assert names == {file.name for file in files} | numbers
    for file in files[:-1]:
        with Image.open(file) as picture:
            picture.load()
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_figure_is_a_line_of_the_table(fresh_run, monkeypatch):
    blank = Blank()
    numbers = {"step": lambda results: {"step": results}, "none": lambda results: {}}
    for name, function in numbers.items():
        entry = Entry(blank, "A blank.", lambda run: True, function)
        monkeypatch.setitem(FIGURES, name, entry)
        assert draw_figure(name, fresh_run) == fresh_run.path / f"figures/{name}.png"
    written = {file.name for file in (fresh_run.path / "figures").iterdir()}
    assert written == {"step.png", "step.json", "none.png"}
    assert json.loads((fresh_run.path / "figures/step.json").read_text()) == {"step": 8}
    assert blank.keys == [fresh_run.key(figures.Stream.FIGURES)] * 2


def test_figures_of_another_seed_lie_apart_but_those_that_do_not_vary(
    fresh_run, monkeypatch
):
    experiment = dataclasses.replace(fresh_run.experiment, seed=1)
    other = dataclasses.replace(fresh_run, experiment=experiment)
    for name, varies in (("moving", True), ("still", False)):
        entry = Entry(Blank(), "A blank.", lambda run: True, None, varies)
        monkeypatch.setitem(FIGURES, name, entry)
    folder = fresh_run.path / "figures"
    assert draw_figure("moving", other) == folder / "seed=1" / "moving.png"
    assert draw_figure("still", other) == folder / "still.png"


def test_all_figures_but_the_curves_vary():
    assert [name for name in FIGURES if not FIGURES[name].varies] == ["training"]


def test_every_figure_of_made_up_data_is_titled(make_run, monkeypatch):
    run = make_run(**{"data.name": "fake"})
    for name in FIGURES:
        entry = FIGURES[name]._replace(module=Blank(), numbers=None)
        monkeypatch.setitem(FIGURES, name, entry)
    monkeypatch.setattr(figures, "write_probes", lambda run: run.path / "probes.json")
    *files, _ = draw_figures(run)
    assert [file.stem for file in files] == list(FIGURES)
    for file in files:
        with Image.open(file) as picture:
            top = np.asarray(picture.convert("RGB"))[:30].reshape(-1, 3)
        assert (top == (220, 20, 60)).all(axis=-1).any()


def test_mode_figures_says_what_it_wrote_and_writes_the_page(
    fresh_run, monkeypatch, capsys
):
    for name in FIGURES:
        entry = FIGURES[name]._replace(module=Blank(), numbers=None)
        monkeypatch.setitem(FIGURES, name, entry)
    files = [fresh_run.path / "figures" / f"{name}.png" for name in FIGURES]
    files.append(fresh_run.path / "figures" / "probes.json")
    monkeypatch.setattr(figures, "write_probes", lambda run: files[-1])
    monkeypatch.setattr(figures, "open_run", lambda *arguments: fresh_run)
    figures.figures(fresh_run.experiment, fresh_run.path)
    assert capsys.readouterr().out.splitlines() == [f"wrote {file}" for file in files]
    page = (fresh_run.path / "report.html").read_text()
    assert "The tilted prior's chain far beyond" in page.replace("&#x27;", "'")


def test_each_figure_is_there_before_the_next_is_begun(fresh_run, monkeypatch):
    monkeypatch.setattr(figures, "write_probes", lambda run: run.path / "probes.json")
    for name in FIGURES:
        entry = FIGURES[name]._replace(module=Blank(), numbers=None)
        monkeypatch.setitem(FIGURES, name, entry)
    first = next(figures.each_figure(fresh_run))
    assert [first] == list((fresh_run.path / "figures").iterdir())


def test_images_of_one_label_have_no_probes(fresh_run, monkeypatch):
    train = fresh_run.splits["train"]
    train = train._replace(labels=np.zeros_like(train.labels))
    run = dataclasses.replace(fresh_run, splits={**fresh_run.splits, "train": train})
    for name in list(FIGURES):
        monkeypatch.delitem(FIGURES, name)
    assert draw_figures(run) == []


def test_probes_json_has_each_layer_s_accuracy_beside_chance(drawn_run):
    run, _ = drawn_run
    layers = json.loads((run.path / "figures" / "probes.json").read_text())
    assert set(layers) == {"z_1", "z_2"}
    for values in layers.values():
        assert 0.05 < values["chance"] < 0.15  # ten classes, nearly balanced
        assert 0 <= values["accuracy"] <= 1


def test_probe_tells_classes_that_a_layer_separates_and_no_others():
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(4, size=2000), rng.integers(4, size=1000)

    def maps(labels):
        """Class in the sign of two of four units: not by one linear map of labels."""
        signs = np.stack([labels % 2, labels // 2], axis=1) * 2 - 1
        flips = rng.choice([-1, 1], size=(len(labels), 1))
        units = np.concatenate([signs * flips, flips, 0 * flips], axis=1)
        return (units + 0.1 * rng.normal(size=units.shape)).reshape(-1, 2, 2, 1)

    values = probes.accuracies(maps(labels), labels, maps(test_labels), test_labels)
    assert values["accuracy"] > 0.99
    noise, test_noise = rng.normal(size=(2000, 3)), rng.normal(size=(1000, 3))
    values = probes.accuracies(noise, labels, test_noise, test_labels)
    # Four standard errors of a guess that is right one time in four.
    assert abs(values["accuracy"] - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


def test_examples_of_the_docstrings_of_probes():
    assert doctest.testmod(probes).failed == 0
