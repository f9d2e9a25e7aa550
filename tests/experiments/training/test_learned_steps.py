"""The step sizes that training adapts are those that samples are drawn with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments import options
from experiments.models import with_learned_steps
from experiments.runs import open_run
from experiments.runtime import parallel
from experiments.training import learner
from experiments.training.state import restore
from tests.experiments.runs import build_model, create_state


@pytest.fixture
def state(trained_run, test_config):
    """The run's state at its end."""
    return restore(trained_run, create_state(test_config, build_model(test_config)))


def test_a_loaded_run_has_the_learned_step_to_two_digits(
    trained_run, test_config, state
):
    learned = float(state.learner.step_sizes["prior"])
    begun = test_config.chains.prior.step_size
    assert abs(learned - begun) > 0.02
    model, _ = jebm.load(trained_run)
    assert model.chains.prior.step_size == pytest.approx(learned, rel=0.05)
    assert model.chains.prior.step_size == round(learned, 2)
    assert model.chains.posterior == build_model(test_config).chains.posterior
    others = dataclasses.replace(model, chains=build_model(test_config).chains)
    assert others == build_model(test_config)


@pytest.mark.parametrize(
    ("changes", "is_learned"),
    [
        ({}, True),
        ({"num_steps": 7}, True),
        ({"step_size": 0.3}, False),
        ({"name": "langevin"}, False),
        ({"space": "z"}, False),
    ],
)
def test_a_step_that_is_asked_for_wins(trained_run, test_config, changes, is_learned):
    learned = jebm.load(trained_run)[0].chains.prior.step_size
    test_config.chains.prior.update(changes)
    opened = open_run(options.read(test_config), trained_run).model.chains.prior
    asked = test_config.chains.prior
    assert opened.num_steps == asked.num_steps
    assert opened.step_size == (learned if is_learned else asked.step_size)


def test_a_chain_that_does_not_adapt_keeps_its_step(test_config):
    test_config.learning.target_acceptance = 0.0
    model = build_model(test_config)
    sizes = create_state(test_config, model).learner.step_sizes
    assert not sizes
    assert with_learned_steps(model, sizes) == model


def test_a_chain_that_has_diverged_keeps_the_models_step(test_config):
    model = build_model(test_config)
    assert with_learned_steps(model, {"prior": np.float32(np.nan)}) == model


def test_stiffness_of_training_is_that_of_the_learned_step(test_config, state):
    model, devices = build_model(test_config), parallel.devices()[:1]
    diagnose = parallel.pmap(learner.make_diagnose(model), devices, donate=False)
    images = parallel.split(np.zeros((4, 8, 8, 1), np.uint8), 1)

    def stiffness(step_size):
        moved = state.learner.replace(step_sizes={"prior": jnp.float32(step_size)})
        placed = learner.distribute(state.replace(learner=moved), devices)
        found = diagnose(jax.random.key(0), placed, images)
        return float(parallel.unreplicate(found)["prior_stiffness"])

    # The chains end at slightly different positions.
    assert stiffness(0.2) == pytest.approx(stiffness(0.1) * 4, rel=0.01)
