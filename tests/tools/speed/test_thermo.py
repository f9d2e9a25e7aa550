"""Tests of our side of the comparison with thermo-ebms."""

import jax
import numpy as np
import pytest

import jebm
from jebm import contract
from tools.speed import thermo


@pytest.mark.slow
def test_the_generator_keeps_the_contract_of_backbones():
    contract.check_backbone(thermo.our_model("float32"))


@pytest.mark.slow
def test_a_step_of_learning_is_finite_and_chains_have_their_lengths(monkeypatch):
    monkeypatch.setattr(thermo, "_PRIOR", (2, 0.16))
    monkeypatch.setattr(thermo, "_POSTERIOR", (1, 0.01))
    model = thermo.our_model("bfloat16")
    assert model.chains.prior.step_size**2 / 2 == pytest.approx(0.16)
    x = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    params = jebm.init(jax.random.key(0), model)
    for run in thermo.our_side(model, params, x):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run()))
