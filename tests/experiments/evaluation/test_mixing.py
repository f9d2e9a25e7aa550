import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments.data.loaders import LOADERS, Options
from experiments.evaluation import mixing
from experiments.evaluation.chains import chain_table
from tests.models import random_params

SHAPE = (8, 8, 1)
KEY = jax.random.key(0)


def model_with(energy=None, **chains):
    spec = {
        "image_shape": SHAPE,
        "backbone": {"latent_dims": (3, 2), "decoder_widths": (8,)},
        "likelihood": {"name": "gaussian", "scale": 1.0},
        "chains": chains,
    }
    spec["energy"] = energy
    model = jebm.build(spec)
    return model, random_params(model)


def first_pixels(images):
    return np.asarray(images).reshape(len(images), -1)[:, :3]


@pytest.fixture(scope="module")
def heldout():
    return LOADERS["digits"](Options())["test"].images[:20]


ENERGY = {"name": "layerwise", "widths": (4,), "activation": "tanh"}


@pytest.mark.slow
def test_chains_that_mix_are_told_from_those_that_do_not(heldout):
    quick, slow = (
        mixing.mixing(
            KEY,
            *model_with(
                ENERGY,
                prior={"num_steps": 30, "step_size": step},
                posterior={"num_steps": 30, "step_size": step},
            ),
            heldout,
            first_pixels,
        )
        for step in (1.0, 0.01)
    )
    for chain in ("prior", "posterior"):
        for suffix in ("", "_features"):
            rhat, ess = f"{chain}_rhat{suffix}", f"{chain}_ess{suffix}"
            assert quick[rhat] < 1.1 < 1.5 < slow[rhat]
            assert quick[ess] > 3 * slow[ess]
    assert quick["prior_draws"] == 16 * quick["posterior_draws"]
    assert quick["prior_ess"] < 2 * quick["prior_draws"]


def test_values_are_those_of_arviz_on_the_energies(monkeypatch, heldout):
    """With chains that are known: an autoregression of independent normals."""
    rng = np.random.default_rng(0)
    z = (
        jnp.asarray(rng.normal(size=(40, 64, 3)), jnp.float32),
        jnp.asarray(rng.normal(size=(40, 64, 2)), jnp.float32),
    )
    monkeypatch.setattr(mixing, "_trace", lambda *arguments, **options: z)
    model, params = model_with(ENERGY, prior={"num_steps": 2})
    model = jebm.Model(
        model.image_shape,
        model.backbone,
        model.energy,
        model.likelihood,
        jebm.Chains(model.chains.prior, jebm.Langevin(num_steps=0)),
    )
    numbers = mixing.mixing(KEY, model, params, heldout, None)
    assert set(numbers) == {"prior_draws", "prior_rhat", "prior_ess"}
    assert numbers["prior_draws"] == 40 * 64
    # Independent draws: R-hat is 1 and all of them count, within sampling error.
    assert numbers["prior_rhat"] == pytest.approx(1, abs=0.02)
    assert numbers["prior_ess"] == pytest.approx(40 * 64, rel=0.15)
    apart = jnp.repeat(z[0][:1], 40, axis=0)  # each chain at a place of its own
    moved = (apart + 0.1 * z[0], jnp.repeat(z[1][:1], 40, axis=0))
    monkeypatch.setattr(mixing, "_trace", lambda *arguments, **options: moved)
    assert mixing.mixing(KEY, model, params, heldout, None)["prior_rhat"] > 1.5


@pytest.mark.slow
def test_an_energy_that_does_not_vary_has_no_statistic(heldout):
    model, params = model_with(ENERGY, prior={"num_steps": 4})
    flat = params._replace(energy=jax.tree.map(jnp.zeros_like, params.energy))
    numbers = mixing.mixing(KEY, model, flat, heldout, None)
    assert np.isnan(numbers["prior_rhat"])
    assert np.isnan(numbers["prior_ess"])


@pytest.mark.slow
def test_the_gaussian_prior_has_no_chain(heldout):
    model, params = model_with(None, posterior={"num_steps": 4})
    numbers = mixing.mixing(KEY, model, params, heldout, None)
    assert {name.split("_")[0] for name in numbers} == {"posterior"}


@pytest.mark.slow
def test_tempered_sampler_mixes_where_the_chain_does_not(heldout):
    model, params = model_with(
        ENERGY,
        prior={"num_steps": 40, "step_size": 0.05},  # far too small for one chain
        posterior={"num_steps": 0, "start": "normal"},
    )
    numbers = mixing.mixing(
        KEY, model, params, heldout, first_pixels, num_temperatures=2
    )
    for suffix in ("", "_features"):
        assert (
            numbers[f"tempered_rhat{suffix}"]
            < 1.25
            < 1.6
            < numbers[f"prior_rhat{suffix}"]
        )
    assert numbers["tempered_draws"] == numbers["prior_draws"]


def test_chains_have_a_row_each_in_the_table():
    numbers = {"prior_rhat": 1.5, "prior_draws": 32, "posterior_draws": 16}
    table = chain_table(numbers, {"rhat": "R-hat", "ess": "ESS", "draws": "draws"})
    assert table.head == ["", "R-hat", "draws"]
    rows = [["prior chain", 1.5, 32], ["posterior chain", None, 16]]
    assert table.rows == rows
