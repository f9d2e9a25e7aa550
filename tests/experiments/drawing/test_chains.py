import dataclasses

import jax
import numpy as np
import pytest

import jebm
from experiments import pictures
from experiments.drawing import posterior_transition, transition
from experiments.drawing.chains import NUM_CHAINS, Chains, draw_chains
from jebm.chains import decode, example_keys, run_chains
from jebm.objectives import posterior_terms
from tests.experiments.drawing.made_up import grey, shown, titles

KEY = jax.random.key(3)
VALUES = np.random.default_rng(0).normal(size=(6, 20))


def made_up_chains():
    return Chains(grey(4, 3), ("0", "10", "50"), VALUES, every=10)


def ends(run, chain, x=None):
    """Where all chains end, by the library alone."""
    keys = example_keys(KEY, np.arange(NUM_CHAINS))
    return run_chains(keys, run.model, run.params, chain, x=x).latents


def test_transition_ends_where_the_chain_ends(run):
    chains = transition.compute(KEY, run)
    latents = ends(run, run.model.chains.prior)
    energies = jebm.energy(run.model, run.params, latents)
    assert chains.values.shape == (5, NUM_CHAINS)
    assert chains.labels == ("0", "1", "2", "3", "4")
    assert chains.images.shape == (8, 5, 8, 8, 1)
    np.testing.assert_allclose(chains.values[-1], energies, rtol=1e-4, atol=1e-4)
    decoded = decode(run.model, run.params, latents)[:8]
    np.testing.assert_allclose(chains.images[:, -1], decoded, atol=1e-4)


def test_posterior_transition_ends_where_the_chain_ends_beside_the_image(run):
    test_split = run.splits["test"]
    subset = test_split._replace(images=test_split.images[:100])  # repeated
    run = dataclasses.replace(run, splits={**run.splits, "test": subset})
    chains = posterior_transition.compute(KEY, run)
    x = np.float32(subset.images[np.arange(NUM_CHAINS) % 100]) / 255
    latents = ends(run, run.model.chains.posterior, x)
    terms = posterior_terms(run.model, run.params, x, latents)
    assert chains.labels == ("0", "1", "2", "3", "4", "x")
    np.testing.assert_allclose(chains.values[-1], terms.log_likelihood, rtol=1e-4)
    np.testing.assert_allclose(chains.images[:, -1], x[:8], atol=1e-6)
    decoded = decode(run.model, run.params, latents)[:8]
    np.testing.assert_allclose(chains.images[:, -2], decoded, atol=1e-4)


def test_images_are_drawn_a_row_per_chain_above_the_profile_of_all():
    chains = made_up_chains()
    top, bottom = draw_chains(chains, "Some chains", "height").axes
    expected = pictures.grid(chains.images.reshape(-1, 8, 8, 1), columns=3)
    np.testing.assert_array_equal(shown(top), np.asarray(expected))
    assert [label.get_text() for label in top.get_xticklabels()] == ["0", "10", "50"]
    assert top.get_title() == "Some chains"
    (line,) = bottom.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 30, 40, 50])
    np.testing.assert_allclose(line.get_ydata(), VALUES.mean(axis=1))
    assert bottom.get_ylabel() == "height"
    assert bottom.get_title().startswith("20 chains")


def test_steps_that_the_model_is_sampled_with_are_marked():
    _, bottom = draw_chains(made_up_chains(), "", trained_steps=20).axes
    _, dotted = bottom.lines
    assert list(dotted.get_xdata()) == [20, 20]
    assert [text.get_text().strip() for text in bottom.texts] == ["as sampled"]


@pytest.mark.parametrize(
    ("module", "title", "values"),
    [
        (transition, "Langevin transition of the tilted prior", "E (nats)"),
        (
            posterior_transition,
            "Langevin transition of the posterior, and the image",
            "log p(x | z) (nats)",
        ),
    ],
)
def test_titles_say_which_chain_and_units_what_is_profiled(module, title, values):
    figure = module.draw(made_up_chains())
    assert titles(figure)[0] == title
    assert figure.axes[1].get_ylabel() == values
