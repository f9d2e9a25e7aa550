"""Chains as values and pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import sampling
from tests.models import random_params, small_model

KEY = jax.random.key(0)
ALL = {
    "langevin": jebm.Langevin(3, 0.2),
    "mala": jebm.MALA(3, 0.2),
    "underdamped": jebm.Underdamped(3, 0.2, friction=0.7),
    "tempered": jebm.Tempered(3, 0.2, inverse_temperatures=(0.0, 0.5, 1.0)),
}


def test_the_former_name_of_a_space_is_refused_with_the_present_one():
    words = "unknown space 'eps_released'; .*; it is now called 'eps_no_jacobian'"
    with pytest.raises(ValueError, match=words):
        jebm.Langevin(space="eps_released")


@pytest.fixture(scope="module")
def model():
    return small_model((3, 2), image_shape=(2, 2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_step_size_is_data_and_the_rest_is_static(name, model):
    chain, params = ALL[name], random_params(model)
    leaves, treedef = jax.tree.flatten(chain)
    assert leaves[0] == 0.2
    assert treedef.unflatten(leaves) == chain and hash(chain) == hash(ALL[name])
    for odd in (None, object(), -1.0):  # what JAX itself puts there is not checked
        assert treedef.unflatten([odd] * len(leaves)).step_size is odd
    longer = jax.tree.structure(type(chain)(**{**vars(chain), "num_steps": 4}))
    assert longer != treedef

    def draw(step_size):
        kernel = treedef.unflatten([step_size, *leaves[1:]])
        return jebm.sample(KEY, model, params, 2, kernel=kernel).x

    draw(0.1)
    before = sampling._sample._cache_size()
    assert not np.array_equal(draw(0.2), draw(0.3))
    assert sampling._sample._cache_size() == before


def test_a_chain_is_mapped_over_its_step_size(model):
    params = random_params(model)
    sizes = jnp.array([0.05, 0.3])
    chains = jax.vmap(lambda s: jebm.Langevin(4, s))(sizes)
    assert chains.step_size.shape == (2,)

    def draw(chain):
        return jebm.sample(KEY, model, params, 3, kernel=chain).x

    together = jax.vmap(draw)(chains)
    for x, size in zip(together, sizes, strict=True):
        alone = draw(jebm.Langevin(4, float(size)))
        np.testing.assert_allclose(x, alone, rtol=1e-5, atol=1e-6)


def test_a_learned_step_size_has_a_gradient(model):
    params = random_params(model)

    def brightness(chain):
        return jebm.sample(KEY, model, params, 2, kernel=chain).x.mean()

    slope = jax.grad(brightness)(jebm.Langevin(4, 0.2)).step_size
    assert np.isfinite(slope) and slope != 0


def test_models_hold_numbers_and_calls_take_arrays(model):
    chains = jebm.Chains(prior=jebm.Langevin(3, jnp.float32(0.2)))
    with pytest.raises(ValueError, match=r"prior chain must be a Python number"):
        jebm.Model((2, 2, 1), model.backbone, model.energy, chains=chains)


@pytest.mark.parametrize(
    "chain",
    [
        jebm.Underdamped(3, 0.1, friction=jnp.float32(1.5)),
        jebm.Tempered(inverse_temperatures=jnp.array([0.0, 1.0])),
    ],
)
def test_models_hold_no_arrays_of_other_fields_either(model, chain):
    with pytest.raises(ValueError, match="own prior chain must hold Python numbers"):
        jebm.Model(
            (2, 2, 1), model.backbone, model.energy, chains=jebm.Chains(prior=chain)
        )


def test_posterior_is_the_encoders_draw_where_there_is_an_encoder():
    backbone = jebm.backbones.Vector(encoder_widths=(4,))
    with_it = jebm.Model((2, 2, 1), backbone, None)
    without = jebm.Model((2, 2, 1), jebm.backbones.Vector(), None)
    assert with_it.chains.posterior == jebm.Langevin(0, 0.1, start="encoder")
    assert without.chains.posterior == jebm.Langevin(20, 0.1)
    assert with_it.backbone.output_shape == (2, 2, 1)  # as image and likelihood ask


@pytest.mark.slow
@pytest.mark.parametrize(
    "likelihood", [jebm.likelihoods.Gaussian(), jebm.likelihoods.LogisticMixture(2)]
)
def test_backbones_are_fitted_to_image_and_likelihood(likelihood):
    shapes = {"vector": {}, "ladder": {"latent_shapes": ((4, 4, 2), (3,))}}
    for kind, fields in shapes.items():
        cls = {"vector": jebm.backbones.Vector, "ladder": jebm.backbones.Ladder}[kind]
        model = jebm.Model((8, 8, 3), cls(**fields), None, likelihood)
        assert model.backbone.output_shape == (8, 8, likelihood.num_outputs(3))
        x = jebm.sample(KEY, model, jebm.init(KEY, model), 2).x
        assert x.shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match="output_shape is not known"):
        jebm.backbones.Ladder().init(KEY, 1, method="start")


@pytest.mark.slow
def test_exact_score_is_that_of_quadrature_where_uncorrected_steps_are_biased(x64):
    """score(1) = E[log p(x|z) + log p_beta(z) - E(z)], z_1 of the tilted conditional.

    z_2 is the encoder's mode. Tolerance: five standard errors of the exact mean.
    """
    model = small_model((1, 1), encoder_widths=(4,))
    params = random_params(model, dtype=jnp.float64, scale=2.0)
    x, num = jnp.full((1, 1, 1, 1), 0.8), 4000
    mode = jebm.Langevin(num_steps=0, start="mode")
    z_2 = jebm.posterior_sample(KEY, model, params, x, kernel=mode)[1]
    line = jnp.linspace(-15, 15, 4001)[:, None]
    z = (line, jnp.full_like(line, z_2[0, 0]))
    images = jnp.full((len(line), 1, 1, 1), 0.8)
    weights = jax.nn.softmax(jebm.prior_logdensity(model, params, z))
    expected = weights @ jebm.joint_logdensity(model, params, images, z)

    def scores(kernel):
        many = jnp.broadcast_to(x, (num, 1, 1, 1))
        return jebm.scores.score(
            KEY, model, params, many, 1, kernel=kernel, posterior=mode
        )

    exact = scores(jebm.MALA(300, 0.7))
    error = exact.std() / np.sqrt(num)
    assert abs(exact.mean() - expected) < 5 * error
    biased = scores(jebm.Langevin(300, 1.2))
    assert abs(biased.mean() - expected) > 10 * error
    with pytest.raises(ValueError, match=r"kernel must be a jebm\.Langevin"):
        scores("mala")
