import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jebm
from jebm import objectives
from jebm.backbones.vector import Vector
from jebm.chains import (
    draw_noise,
    example_keys,
    start_positions,
    to_eps,
    to_latents,
)
from jebm.hierarchy import has_encoder, infer
from jebm.kernels import Chains, Langevin
from tests.models import grid_nodes, random_latents, random_params, small_model


@pytest.fixture(params=["next", "above"])
def conditioning(request):
    return request.param


def encoder_model(dims, conditioning="next", **spec):
    return small_model(dims, conditioning, encoder_widths=(6, 4), **spec)


def infer_with(model, params, x, keys):
    """(latents, log q) of the model's encoder."""
    noise = draw_noise(keys, model, params)
    encode = jax.jit(nn.apply(lambda b: infer(b, x, noise)[:2], model.backbone))
    latents, log_q = encode(params.backbone)
    return latents, sum(log_q)


def posterior_by_hand(params, x, latents, conditioning):
    """Location and scale of q for each layer from the raw parameters, in NumPy."""
    raw = jax.tree.map(np.asarray, params.backbone["params"])

    def dense(network, layer, h):
        return h @ raw[network][layer]["kernel"] + raw[network][layer]["bias"]

    features = np.asarray(x).reshape(len(x), -1)
    for layer in ("Dense_0", "Dense_1"):
        features = np.tanh(dense("encoder", layer, features))
    for i in range(len(latents)):
        above = [np.asarray(z) for z in latents[i + 1 :]]
        above = above[:1] if conditioning == "next" else above
        h = np.concatenate([features, *above], axis=1)
        loc, raw_scale = np.split(dense(f"posteriors_{i}", "Dense_0", h), 2, axis=1)
        yield loc, np.exp(0.7 * np.tanh(raw_scale / 0.7))


def log_q_by_hand(params, x, latents, conditioning):
    by_layer = zip(
        latents, posterior_by_hand(params, x, latents, conditioning), strict=True
    )
    return sum(stats.norm.logpdf(z, *normal).sum(1) for z, normal in by_layer)


@pytest.mark.slow
def test_log_q_is_the_density_of_the_latents_that_are_drawn(conditioning, x64):
    model = encoder_model((3, 2, 4), conditioning, image_shape=(2, 2, 1))
    params = random_params(model, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 2, 2, 1)))
    latents, log_q = infer_with(
        model, params, x, jax.random.split(jax.random.key(0), 5)
    )
    assert [z.shape for z in latents] == [(5, 3), (5, 2), (5, 4)]
    assert log_q.shape == (5,)
    expected = log_q_by_hand(params, x, latents, conditioning)
    np.testing.assert_allclose(log_q, expected, rtol=1e-10)


def test_noise_of_an_example_depends_on_its_key_and_layer_alone(conditioning, x64):
    model = encoder_model((2, 2), conditioning)
    params = random_params(model, dtype=jnp.float64)
    keys = jax.random.split(jax.random.key(0), 4)

    def noise(x, keys):
        latents, _ = infer_with(model, params, x, keys)
        normals = posterior_by_hand(params, x, latents, conditioning)
        return [
            (np.asarray(z) - loc) / scale
            for z, (loc, scale) in zip(latents, normals, strict=True)
        ]

    whole = noise(jnp.linspace(0, 1, 4).reshape(4, 1, 1, 1), keys)
    alone = noise(jnp.full((1, 1, 1, 1), 0.4), keys[2:3])  # and another image
    for of_all, of_one in zip(whole, alone, strict=True):
        np.testing.assert_allclose(of_one, of_all[2:3], rtol=1e-9)
    assert len(np.unique(np.concatenate(whole).round(9))) == 2 * 4 * 2


def test_variational_terms_are_those_of_the_latents_that_are_drawn(conditioning, x64):
    model = encoder_model((2, 1), conditioning)
    params = random_params(model, dtype=jnp.float64)
    x = jnp.linspace(0, 1, 5).reshape(5, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 5)
    got = objectives.variational_terms(model, params, x, keys)
    latents, log_q = infer_with(model, params, x, keys)
    expected = objectives.posterior_terms(model, params, x, latents)
    for name in ("log_likelihood", "log_prior", "energy"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name))
    np.testing.assert_allclose(got.log_q, log_q)
    np.testing.assert_allclose(got.loss(), expected.loss() + log_q)


@pytest.mark.slow
@pytest.mark.parametrize("energy", [None, {"widths": (6,), "activation": "tanh"}])
def test_expected_loss_is_minus_the_elbo_by_quadrature(conditioning, energy, x64):
    model = encoder_model((1, 1), conditioning, energy=energy)
    params = random_params(model, dtype=jnp.float64)
    nodes, volume = grid_nodes(bound=12, num=301)
    image, num = jnp.full((1, 1, 1, 1), 0.8), 20_000
    images = jnp.full((len(nodes[0]), 1, 1, 1), 0.8)
    log_q = log_q_by_hand(params, images, nodes, conditioning)
    weights = np.exp(log_q) * volume
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)  # nothing is left out
    terms = objectives.posterior_terms(model, params, images, nodes)
    expected = weights @ (np.asarray(terms.loss()) + log_q)

    keys = jax.random.split(jax.random.key(0), num)
    draws = objectives.variational_terms(
        model, params, jnp.broadcast_to(image, (num, 1, 1, 1)), keys
    )
    loss = np.asarray(draws.loss())
    assert abs(loss.mean() - expected) < 4 * loss.std() / np.sqrt(num)
    if energy is None:  # a bound on log p(x), which the same nodes integrate
        log_joint = np.asarray(terms.log_likelihood + terms.log_prior)
        log_evidence = np.log(np.sum(np.exp(log_joint)) * volume)
        assert -expected < log_evidence


@pytest.mark.slow
def test_gradient_of_the_variational_loss_is_its_finite_difference(conditioning, x64):
    model = encoder_model((2, 1), conditioning, image_shape=(2, 1, 1))
    params = random_params(model, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 2, 1, 1)))
    keys = jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def loss(params):
        return objectives.variational_terms(model, params, x, keys).loss().mean()

    grads, treedef = jax.tree.flatten(jax.jit(jax.grad(loss))(params))
    leaves, rng, h = jax.tree.leaves(params), np.random.default_rng(2), 1e-5
    assert len(grads) > 15
    for i, (leaf, grad) in enumerate(zip(leaves, grads, strict=True)):
        assert np.abs(grad).max() > 1e-6
        direction = jnp.asarray(rng.normal(size=leaf.shape))
        up, down = (
            loss(treedef.unflatten([*leaves[:i], moved, *leaves[i + 1 :]]))
            for moved in (leaf + h * direction, leaf - h * direction)
        )
        slope = jnp.sum(grad * direction)
        np.testing.assert_allclose((up - down) / (2 * h), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_energy_grad_scale_mixes_the_losses_of_the_tilted_and_untilted_prior(
    conditioning, x64
):
    check_energy_grad_scale(encoder_model((2, 1), conditioning, image_shape=(2, 1, 1)))


@pytest.mark.slow
def test_energy_grad_scale_of_an_energy_that_reads_the_state(x64):
    backbone = {
        "name": "ladder",
        "latent_shapes": ((2,), (1,)),
        "width": 3,
        "encoder_widths": (4, 3),
        "activation": "tanh",
    }
    energy = {"name": "state", "widths": (6,), "activation": "tanh"}
    spec = {"image_shape": (2, 1, 1), "backbone": backbone, "energy": energy}
    check_energy_grad_scale(jebm.build(spec))


def check_energy_grad_scale(model):
    params = random_params(model, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 2, 1, 1)))
    keys = jax.random.split(jax.random.key(0), 3)
    negative = random_latents(model, 3, dtype=jnp.float64)

    def positive(model, share):
        return lambda p: objectives.variational_terms(model, p, x, keys, share).loss()

    def both(share):
        def loss(params):
            minus = objectives.prior_terms(model, params, negative, share)
            return positive(model, share)(params) + minus.loss()

        return loss

    def with_gradients(loss):
        grads = jax.grad(lambda params: loss(params).sum())(params)
        return loss(params), *(jax.flatten_util.ravel_pytree(g)[0] for g in grads)

    untilted = dataclasses.replace(model, energy=None)
    _, none, _ = with_gradients(positive(untilted, 1.0))
    for loss in (both, lambda share: positive(model, share)):
        value, full, energy = with_gradients(loss(1.0))
        assert np.abs(full - none).max() > 1e-3
        for share in (0.0, 0.25):
            same, backbone, energy_again = with_gradients(loss(share))
            np.testing.assert_array_equal(same, value)
            np.testing.assert_array_equal(energy_again, energy)
            np.testing.assert_allclose(
                backbone, none + share * (full - none), rtol=0, atol=1e-12
            )


@pytest.mark.slow
def test_holding_all_but_the_encoder_leaves_it_the_gradient_of_the_loss(conditioning):
    model = encoder_model((2, 1), conditioning)
    params = random_params(model)
    x = jnp.linspace(0, 1, 4).reshape(4, 1, 1, 1)
    keys = jax.random.split(jax.random.key(0), 4)

    def grads(hold):
        def loss(params):
            params = (
                objectives.freeze_all_but_encoder(model, params) if hold else params
            )
            return objectives.variational_terms(model, params, x, keys).loss().mean()

        return jax.jit(jax.grad(loss))(params)

    held, free = grads(True), grads(False)
    assert all((g == 0).all() for g in jax.tree.leaves(held.energy))
    names = free.backbone["params"].keys()
    assert set(names) > {"encoder", "posteriors_0", "posteriors_1", "decoder"}
    for name in names:
        pairs = zip(
            jax.tree.leaves(held.backbone["params"][name]),
            jax.tree.leaves(free.backbone["params"][name]),
            strict=True,
        )
        for got, expected in pairs:
            assert (expected != 0).any()
            if name.startswith(("encoder", "posteriors")):
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
            else:
                assert (got == 0).all()


@pytest.mark.slow
def test_posterior_chain_starts_at_the_encoder(conditioning):
    model = encoder_model((3, 2), conditioning, image_shape=(2, 2, 1))
    params = random_params(model)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 2, 2, 1)), jnp.float32)
    key = jax.random.key(3)
    chains = Chains(posterior=Langevin(0, 0.05, start="encoder"))
    by_encoder = dataclasses.replace(model, chains=chains)
    got = jebm.posterior_sample(key, by_encoder, params, x)
    named = jebm.posterior_sample(key, model, params, x, num_steps=0, start="encoder")
    keys = example_keys(key, jnp.arange(4))
    expected = start_positions(
        keys, by_encoder, params, chains.posterior, x
    )  # eps of q's draws
    expected = to_latents(by_encoder, params, expected, "eps")
    for a, b, c in zip(got, named, expected, strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(a, b)
    # They are draws of q: the noise that q's own location and scale leave is N(0, I).
    num = 4000
    many = jnp.broadcast_to(x[:1], (num, 2, 2, 1))
    latents = jebm.posterior_sample(key, by_encoder, params, many)
    by_layer = posterior_by_hand(params, many, latents, conditioning)
    for z, (loc, scale) in zip(latents, by_layer, strict=True):
        noise = (np.asarray(z) - loc) / scale
        assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    # One step from there moves by about the step's size.
    moved = jebm.posterior_sample(key, by_encoder, params, x, num_steps=1)
    for a, b in zip(moved, got, strict=True):
        assert (a != b).all()


@pytest.mark.parametrize("space", ["eps", "z"])
def test_positions_and_latents_are_inverse(space):
    model = encoder_model((3, 2))
    params = random_params(model)
    latents = random_latents(model, 5)
    positions = latents if space == "z" else to_eps(model, params, latents)
    back = to_latents(model, params, positions, space)
    for a, b in zip(latents, back, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "z"])
def test_mode_is_the_location_of_every_layer_given_those_above(space, conditioning):
    model = encoder_model((3, 2, 4), conditioning)
    params, x = random_params(model), jnp.linspace(0, 1, 4).reshape(4, 1, 1, 1)
    chain = Langevin(num_steps=0, space=space, start="mode")
    model = dataclasses.replace(model, chains=Chains(posterior=chain))
    modes = jebm.posterior_sample(jax.random.key(0), model, params, x)
    locations = posterior_by_hand(params, x, modes, conditioning)
    for z, (loc, _) in zip(modes, locations, strict=True):
        np.testing.assert_allclose(z, loc, rtol=1e-4, atol=1e-5)
    score = jebm.scores.score(jax.random.key(1), model, params, x)
    again = jebm.scores.score(jax.random.key(2), model, params, x, num_samples=3)
    np.testing.assert_allclose(score, again, rtol=1e-5)


@pytest.mark.parametrize("start", ["encoder", "mode"])
def test_start_at_an_encoder_that_is_not_there_is_refused(start):
    chain = Langevin(start=start)
    without, with_it = small_model((2, 1)), encoder_model((2, 1))
    with pytest.raises(ValueError, match="backbone has no encoder"):
        dataclasses.replace(without, chains=Chains(posterior=chain))
    with pytest.raises(ValueError, match="start of the prior chain must be 'normal'"):
        dataclasses.replace(with_it, chains=Chains(prior=chain))
    params, x = jebm.init(jax.random.key(0), without), jnp.ones((1, 1, 1, 1))
    arguments = (jax.random.key(0), without, params, x)
    with pytest.raises(ValueError, match="backbone has no encoder"):
        jebm.reconstruct(*arguments, start=start)
    with pytest.raises(ValueError, match=r"unknown start 'nope'; known: .*encoder"):
        jebm.posterior_sample(*arguments, start="nope")


def test_encoder_is_optional_and_leaves_the_generator_as_it_is():
    without, with_it = small_model((2, 1)), encoder_model((2, 1))
    assert not has_encoder(without.backbone)
    assert has_encoder(with_it.backbone)
    assert not has_encoder(object())  # of a user's own backbone
    params, more = (
        jebm.init(jax.random.key(0), model).backbone["params"]
        for model in (without, with_it)
    )
    assert more.keys() - params.keys() == {"encoder", "posteriors_0", "posteriors_1"}
    shapes = jax.tree.map(jnp.shape, params)
    assert {name: jax.tree.map(jnp.shape, more[name]) for name in params} == shapes


def test_encoder_without_a_width_is_refused():
    with pytest.raises(ValueError, match=r"encoder_widths must .* got \(\)"):
        Vector(output_shape=(1, 1, 1), encoder_widths=())


def test_weights_of_one_leave_the_loss_and_layers_sum_to_the_divergence(x64):
    model = small_model(encoder_widths=(4,))
    params = random_params(model, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 1, 1, 1)))
    keys = jax.random.split(jax.random.key(0), 3)
    terms = objectives.variational_terms(model, params, x, keys)
    np.testing.assert_allclose(terms.kl_per_layer.sum(1), terms.log_q - terms.log_prior)
    np.testing.assert_allclose(terms.loss(jnp.ones(2)), terms.loss(), rtol=1e-12)
    heavier = terms.loss(jnp.array([1.0, 3.0])) - terms.loss()
    np.testing.assert_allclose(heavier, 2 * terms.kl_per_layer[:, 1], rtol=1e-10)


@pytest.mark.slow
def test_balance_weighs_a_layer_by_what_it_tells_and_by_the_pixels_of_its_map(x64):
    backbone = {
        "name": "ladder", "latent_shapes": ((4, 4, 1), (4, 4, 1), (2, 2, 1)), "width": 2
    }  # fmt: skip
    model = jebm.build({"image_shape": (4, 4, 1), "backbone": backbone})
    layers = jnp.array([[2.0, -1.0, 0.5], [0.0, 3.0, 0.5]])
    size = jnp.abs(layers).mean(axis=0)
    weights = objectives.kl_weights(model, size, 0.5)
    # alpha: 16 pixels in two maps, 4 in one.
    share = np.array([1.01 / 8, 2.01 / 8, 0.51 / 4])
    np.testing.assert_allclose(weights, 0.5 * share / share.mean(), rtol=1e-12)
    whole = objectives.kl_weights(model, size, 1.0)
    np.testing.assert_array_equal(whole, 1)
    even = objectives.kl_weights(model, size, 0.5, balance=False)
    np.testing.assert_array_equal(even, 0.5)
