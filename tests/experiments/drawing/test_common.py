import doctest

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from experiments import pictures
from experiments.drawing import common, hierarchical, long_run
from experiments.drawing.common import layer_cuts, spaced
from tests.experiments.drawing.made_up import grey, shown


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 7, 20, 40, 200])
@pytest.mark.parametrize("count", [6, 12])
def test_times_rise_from_0_to_the_last_step(num_steps, count):
    times = spaced(num_steps, count)
    assert times[0] == 0
    assert times[-1] == num_steps
    assert (np.diff(times) > 0).all()
    assert len(times) <= count


@pytest.mark.parametrize(
    ("layers", "kept"),
    [(2, [1]), (3, [1, 2]), (5, [1, 2, 3, 4]), (30, [1, 10, 20, 29])],
)
def test_layers_are_cut_at_four_places_at_most(layers, kept):
    assert layer_cuts(layers) == kept


def test_figures_are_none_of_pyplot_s(tmp_path):
    before = pyplot.get_fignums()
    figure, axes = common.subplots(2, 3, (4, 5))
    assert axes.shape == (2, 3)
    file = tmp_path / "new" / "figure.png"
    pictures.save_figure(figure, file, "A caption.")
    assert pyplot.get_fignums() == before
    with Image.open(file) as picture:
        assert picture.size == (4 * 150, 5 * 150)
    assert pictures.caption_of(file) == "A caption."
    pictures.stamp(file, "FAKE")
    assert pictures.caption_of(file) == "A caption."


def test_show_grid_shows_the_grid_and_tells_its_width():
    _, axes = common.subplots(1, 1, (1, 1))
    images = grey(6)
    width = common.show_grid(axes[0, 0], images, columns=3)
    expected = np.asarray(pictures.grid(images, columns=3))
    np.testing.assert_array_equal(shown(axes[0, 0]), expected)
    assert width == expected.shape[1]


@pytest.mark.parametrize("module", [common, hierarchical, long_run])
def test_examples_of_the_docstrings(module):
    results = doctest.testmod(module, extraglobs={"np": np})
    assert results.attempted and not results.failed
