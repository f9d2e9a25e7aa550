import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import objectives
from jebm.chains import draw_noise, to_latents
from jebm.densities import logdensity
from jebm.hierarchy import infer, log_standard_normal
from tests.models import grid_nodes, random_latents, random_params, small_model


def negative_log_likelihood(model, params, x):
    """-log p(x) by quadrature in eps-space, log Z by the same rule.

    Independent of `objectives`, which is given nodes in z-space.
    """
    eps, _ = grid_nodes(bound=6, num=161)
    log_joint = logdensity(model, params, eps, space="eps", x=x)
    log_prior = logdensity(model, params, eps, space="eps")
    return -(jax.nn.logsumexp(log_joint) - jax.nn.logsumexp(log_prior))


def surrogate(model, params, x, positive, negative, weights):
    plus = objectives.posterior_terms(model, params, x, positive).loss()
    minus = objectives.prior_terms(model, params, negative).loss()
    return jnp.sum(weights[0] * plus) + jnp.sum(weights[1] * minus)


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["next", "above"])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_learning_gradient_is_that_of_the_likelihood_by_quadrature(
    conditioning, likelihood, x64
):
    model = small_model((1, 1), conditioning, likelihood={"name": likelihood})
    # Decoder, hierarchy with its share of log Z, and both energies all learn.
    check_gradient_by_quadrature(model, ("decoder", "priors_0", "f1", "f2"))


@pytest.mark.slow
def test_learning_gradient_of_an_energy_of_the_state(x64):
    """The state is the backbone's: E moves with it, in both phases."""
    check_gradient_by_quadrature(state_model(), ("writers_0", "top", "priors_0", "f"))


def state_model(**changes):
    """A ladder whose energy reads the state, so depends on the backbone."""
    backbone = {"name": "ladder", "latent_shapes": ((1,), (1,)), "width": 3}
    return jebm.build(
        {
            "image_shape": (1, 1, 1),
            "backbone": backbone
            | {"activation": "tanh", "log_scale_bound": 0.7}
            | changes,
            "energy": {"name": "state", "widths": (6,), "activation": "tanh"},
            "likelihood": {"name": "gaussian", "scale": 0.3},
        }
    )


def check_gradient_by_quadrature(model, parts):
    params = random_params(model, dtype=jnp.float64)
    nodes, _ = grid_nodes(bound=12, num=301)
    x = jnp.full((1, 1, 1, 1), 0.8)
    images = jnp.broadcast_to(x, (len(nodes[0]), 1, 1, 1))
    weights = (
        jax.nn.softmax(logdensity(model, params, nodes, space="z", x=images)),
        jax.nn.softmax(logdensity(model, params, nodes, space="z")),
    )
    gradient = jax.jit(jax.grad(surrogate, argnums=1), static_argnums=0)
    grads = gradient(model, params, images, nodes, nodes, weights)

    eps_nodes, _ = grid_nodes(bound=6, num=161)
    eps_images = jnp.broadcast_to(x, (len(eps_nodes[0]), 1, 1, 1))
    gradient = jax.jit(jax.grad(negative_log_likelihood, argnums=1), static_argnums=0)
    expected = gradient(model, params, eps_images)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    names = []
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(grads),
        jax.tree.leaves(expected),
        strict=True,
    ):
        names.append(jax.tree_util.keystr(path))
        np.testing.assert_allclose(got, want, atol=1e-6 * scale, err_msg=names[-1])
    for part in parts:
        largest = max(
            float(jnp.abs(g).max())
            for name, g in zip(names, jax.tree.leaves(expected), strict=True)
            if part in name
        )
        assert largest > 1e-3 * scale, part


@pytest.mark.slow
def test_the_share_of_log_z_in_the_gradient_of_the_hierarchy_is_not_negligible(x64):
    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64)
    nodes, _ = grid_nodes(bound=12, num=301)
    weights = jax.nn.softmax(logdensity(model, params, nodes, space="z"))

    def log_z(params):
        eps, _ = grid_nodes(bound=6, num=161)
        log_joint = logdensity(model, params, eps, space="eps")
        return jax.nn.logsumexp(log_joint) - jax.nn.logsumexp(log_standard_normal(eps))

    def negative(params):
        terms = objectives.prior_terms(model, params, nodes)
        return jnp.sum(weights * terms.loss())

    got = jax.jit(jax.grad(negative))(params).backbone["params"]["priors_0"]
    expected = jax.jit(jax.grad(log_z))(params).backbone["params"]["priors_0"]
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    assert largest > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * largest),
        got,
        expected,
    )


@pytest.mark.slow
def test_no_gradient_reaches_the_samples():
    model = small_model((2, 1))
    params = random_params(model)
    z = random_latents(model, 3)
    x = jnp.full((3, 1, 1, 1), 0.5)

    def total(z):
        plus = objectives.posterior_terms(model, params, x, z).loss()
        minus = objectives.prior_terms(model, params, z).loss()
        penalty = objectives.energy_gradient_penalty(model, params, z)
        return jnp.sum(plus + minus + penalty)

    for grad in jax.grad(total)(z):
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.slow
def test_terms_are_per_example():
    model = small_model((2, 1))
    params = random_params(model)
    z = random_latents(model, 5)
    x = jnp.linspace(0, 1, 5).reshape(5, 1, 1, 1)
    whole = objectives.posterior_terms(model, params, x, z)
    one = objectives.posterior_terms(
        model, params, x[2:3], jax.tree.map(lambda a: a[2:3], z)
    )
    for a, b in zip(whole[:4], one[:4], strict=True):  # the rest is an encoder's
        assert a.shape == (5,)
        np.testing.assert_allclose(a[2], b[0], rtol=1e-5)


@pytest.mark.slow
def test_energy_gradient_penalty_is_the_squared_slope_in_eps_space(x64):
    model = small_model((2, 3))
    params = random_params(model, dtype=jnp.float64)
    eps = random_latents(model, 4, dtype=jnp.float64)

    def energy(eps):
        return jebm.energy(model, params, to_latents(model, params, eps, "eps"))

    got = objectives.energy_gradient_penalty(model, params, eps)
    expected, h = 0, 1e-5
    for i, e in enumerate(eps):
        for d in range(e.shape[1]):
            shift = [jnp.zeros_like(a) for a in eps]
            shift[i] = shift[i].at[:, d].set(h)
            up = energy(jax.tree.map(jnp.add, eps, tuple(shift)))
            down = energy(jax.tree.map(jnp.subtract, eps, tuple(shift)))
            expected = expected + ((up - down) / (2 * h)) ** 2
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
def test_energy_gradient_penalty_teaches_the_energy_alone():
    model = small_model((2, 3))
    params = random_params(model)
    z = random_latents(model, 4)
    grads = jax.grad(lambda p: objectives.energy_gradient_penalty(model, p, z).sum())(
        params
    )
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads.backbone))
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads.energy))


def test_log_q_of_given_latents_is_that_of_the_draw():
    model = small_model((3, 2), image_shape=(2, 2, 1), encoder_widths=(5,))
    params = random_params(model)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(6, 2, 2, 1)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), 6)
    noise = draw_noise(keys, model, params)

    def drawn(backbone):
        return infer(backbone, x, noise)[:2]

    latents, log_q = nn.apply(drawn, model.backbone)(params.backbone)
    found = objectives.encoder_log_prob(model, params, x, latents)
    np.testing.assert_allclose(found, sum(log_q), rtol=1e-4, atol=1e-4)
    grads = jax.grad(lambda p: objectives.encoder_log_prob(model, p, x, latents).sum())(
        params
    )
    moved = {
        name
        for name, leaves in grads.backbone["params"].items()
        if any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(leaves))
    }
    assert moved == set(model.backbone.encoder_modules)


def test_log_q_of_given_latents_needs_a_normal_encoder():
    model = small_model((3, 2), image_shape=(2, 2, 1))
    params = random_params(model)
    x, latents = jnp.full((1, 2, 2, 1), 0.5), (jnp.zeros((1, 3)), jnp.zeros((1, 2)))
    with pytest.raises(ValueError, match="normal given the layers above"):
        objectives.encoder_log_prob(model, params, x, latents)
