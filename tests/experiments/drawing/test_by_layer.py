from unittest import mock

import jax
import numpy as np

import jebm
from experiments import pictures
from experiments.drawing import by_layer
from experiments.drawing.by_layer import ByLayer
from tests.experiments.drawing.made_up import grey, shown, titles


def test_first_column_is_the_image_and_others_keep_its_upper_layers(run):
    key = jax.random.key(0)
    with mock.patch.object(jebm, "sample", wraps=jebm.sample) as sample:
        columns = by_layer.compute(key, run).columns
    assert list(columns) == ["image", "all layers", "z_2"]
    np.testing.assert_allclose(columns["image"], run.heldout[:8] / 255, atol=1e-6)
    assert all(images.shape == (8, 8, 8, 1) for images in columns.values())
    x = np.float32(run.heldout[:8]) / 255
    key_posterior, _ = jax.random.split(key)
    latents = jebm.posterior_sample(key_posterior, run.model, run.params, x)
    (call,) = sample.call_args_list
    (above,) = call.kwargs["above"]
    np.testing.assert_array_equal(above, latents[1])


def test_columns_are_named_by_the_lowest_layer_that_is_kept(make_run):
    deep = make_run(**{"backbone.latent_dims": (2, 2, 1)})
    columns = by_layer.compute(jax.random.key(0), deep).columns
    assert list(columns) == ["image", "all layers", "z_2 up", "z_3"]


def test_each_column_is_drawn_from_top_to_bottom():
    columns = {"image": grey(8), "z_2": 1 - grey(8)}
    figure = by_layer.draw(ByLayer(columns))
    assert titles(figure) == ["image", "z_2"]
    for axis, images in zip(figure.axes, columns.values(), strict=True):
        expected = np.asarray(pictures.grid(images, columns=1))
        np.testing.assert_array_equal(shown(axis), expected)
