"""What the contract of `jebm.hierarchy` asks of every backbone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import multivariate_normal

import jebm
from jebm import objectives
from jebm.backbones.ladder import Ladder
from jebm.chains import draw_noise
from jebm.hierarchy import (
    given,
    infer,
    inverse_transport,
    log_prior,
    log_standard_normal,
    top_down,
    transport,
)
from tests.models import random_latents, random_params

VECTOR = {"latent_dims": (2, 1, 2), "prior_widths": (4,), "encoder_widths": (5,)}
LADDER = {"name": "ladder", "width": 4}
BACKBONES = {
    "vector-next": VECTOR | {"conditioning": "next", "decoder_widths": (5,)},
    "vector-above": VECTOR | {"conditioning": "above", "decoder_widths": (5,)},
    "vector-deconv": VECTOR | {"decoder_type": "deconv", "decoder_widths": (3, 2)},
    "ladder-vectors": LADDER
    | {"latent_shapes": ((2,), (1,), (2,)), "encoder_widths": (5, 4, 3)},
    "ladder-maps": LADDER
    | {"latent_shapes": ((4, 4, 1), (2, 2, 2), (2, 2, 1), (3,), (2,))}
    | {"encoder_widths": (2, 3, 3, 5, 4)},
}


@pytest.fixture(params=BACKBONES)
def model(request, x64):
    backbone = BACKBONES[request.param] | {"activation": "tanh", "log_scale_bound": 0.7}
    energy = {"widths": (6,), "activation": "tanh"}
    return jebm.build(
        {"image_shape": (4, 4, 1), "backbone": backbone, "energy": energy}
    )


@pytest.fixture
def params(model):
    return random_params(model, scale=0.5, dtype=jnp.float64)


def apply(model, params, function):
    return jax.jit(nn.apply(function, model.backbone))(params.backbone)


@pytest.mark.slow
def test_shapes_of_priors_and_of_the_output(model, params):
    z = random_latents(model, 3, dtype=jnp.float64)

    def run(backbone):
        latents, priors, state = top_down(backbone, 3, given(z))
        return latents, priors, backbone.decode(state)

    latents, priors, output = apply(model, params, run)
    shapes = [(3, *shape) for shape in model.backbone.latent_shapes]
    assert [prior.loc.shape for prior in priors] == shapes
    assert [prior.scale.shape for prior in priors] == shapes
    assert [z.shape for z in latents] == shapes
    assert output.shape == (3, 4, 4, 1)
    np.testing.assert_array_equal(priors[-1].loc, 0)
    np.testing.assert_array_equal(priors[-1].scale, 1)


@pytest.mark.slow
def test_transport_is_undone_and_changes_the_density_by_its_jacobian(model, params):
    eps = random_latents(model, 1, dtype=jnp.float64)
    flat, unravel = ravel_pytree(eps)

    @jax.jit
    def transported(flat):
        return apply(
            model, params, lambda b: top_down(b, 1, transport(unravel(flat)))[:2]
        )

    z, priors = transported(flat)
    for back, e in zip(inverse_transport(z, priors), eps, strict=True):
        np.testing.assert_allclose(back, e, atol=1e-10)
    jacobian = jax.jacrev(lambda flat: ravel_pytree(transported(flat)[0])[0])
    np.testing.assert_allclose(
        log_prior(z, priors),
        log_standard_normal(eps) - np.linalg.slogdet(jax.jit(jacobian)(flat))[1],
        rtol=1e-10,
    )


@pytest.mark.slow
def test_log_q_is_normalised_and_of_the_latents_that_are_drawn(model):
    """The mean of g(z) / q(z | x) over draws of q is 1 for any density g."""
    num = 8000
    params = random_params(model, scale=0.1, dtype=jnp.float64)  # q nearly Gaussian
    x = np.random.default_rng(0).uniform(size=(4, 4, 1))
    x = jnp.asarray(np.broadcast_to(x, (num, *x.shape)))
    noise = draw_noise(jax.random.split(jax.random.key(0), num), model, params)
    latents, log_q = apply(model, params, lambda b: infer(b, x, noise)[:2])
    log_q = sum(log_q)
    flat = np.concatenate([np.asarray(z).reshape(num, -1) for z in latents], axis=1)
    first, second = flat[: num // 2], flat[num // 2 :]
    # Near q, with lighter tails, and not of the draws that it is averaged over.
    density = multivariate_normal(first.mean(0), 0.8 * np.cov(first.T))
    ratio = np.exp(density.logpdf(second) - log_q[num // 2 :])
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(num // 2) < 0.5


@pytest.mark.slow
def test_examples_do_not_mix(model, params):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 4, 4, 1)))
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def run(x, keys):
        noise = draw_noise(keys, model, params)

        def inferred(backbone):
            latents, log_q, _, state = infer(backbone, x, noise)
            return latents, log_q, backbone.decode(state)

        return apply(model, params, inferred)

    together = run(x, keys)
    alone = run(x[2:3], keys[2:3])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[2:3], b, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_learning_reaches_every_parameter_and_the_encoder_alone_where_held(
    model, params
):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 4, 4, 1)))
    keys = jax.random.split(jax.random.key(0), 4)

    def grads(hold):
        def loss(params):
            params = (
                objectives.freeze_all_but_encoder(model, params) if hold else params
            )
            return objectives.variational_terms(model, params, x, keys).loss().mean()

        return jax.jit(jax.grad(loss))(params)

    free, held = grads(False), grads(True)
    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(free))
    assert model.backbone.encoder_modules
    for name, leaves in held.backbone["params"].items():
        moved = [bool((np.asarray(g) != 0).any()) for g in jax.tree.leaves(leaves)]
        assert set(moved) == {name in model.backbone.encoder_modules}


@pytest.mark.slow
def test_generator_does_not_depend_on_the_encoder(model, params):
    named = model.backbone.encoder_modules
    variables = params.backbone["params"]
    others = {name: v for name, v in variables.items() if name not in named}
    z = random_latents(model, 2, dtype=jnp.float64)

    def decoded(variables):
        def run(backbone):
            return backbone.decode(top_down(backbone, 2, given(z))[2])

        return jax.jit(nn.apply(run, model.backbone))({"params": variables})

    np.testing.assert_array_equal(decoded(others), decoded(variables))


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [((2,), (2,)), ((4, 4, 1), (2,), (2,))])
def test_top_layer_of_a_ladder_reaches_the_image_past_those_below(shapes, x64):
    """Zeroing what the lower layers write leaves a path from the top one."""
    spec = {"name": "ladder", "latent_shapes": shapes, "width": 4}
    model = jebm.build({"image_shape": (4, 4, 1), "backbone": spec})
    params = random_params(model, dtype=jnp.float64)
    z = random_latents(model, 1, dtype=jnp.float64)

    def image(top):
        latents = (*(jnp.zeros_like(a) for a in z[:-1]), top)
        return apply(
            model, params, lambda b: b.decode(top_down(b, 1, given(latents))[2])
        )

    assert np.abs(jax.jit(jax.jacfwd(image))(z[-1])).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_shapes": ()}, r"must hold \(D,\) or \(H, W, D\)"),
        ({"latent_shapes": ((2, 2),)}, r"must hold \(D,\) or \(H, W, D\)"),
        ({"latent_shapes": ((0,),)}, r"must hold \(D,\) or \(H, W, D\)"),
        ({"latent_shapes": ((3, 3, 1),)}, r"got \(3, 3, 1\) above \(4, 4, 1\)"),
        ({"latent_shapes": ((4, 2, 1),)}, "divided by a power of two"),
        ({"latent_shapes": ((2,), (2, 2, 1))}, r"got \(2, 2, 1\) above \(2,\)"),
        ({"latent_shapes": ((2, 2, 1), (4, 4, 1))}, "divided by a power of two"),
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"encoder_widths": (3,)}, r"one width per layer, got \(3,\) for 3 layers"),
        ({"log_scale_bound": 0.0}, "log_scale_bound must be positive"),
        ({"activation": "nope"}, "unknown activation 'nope'"),
    ],
)
def test_ladder_that_cannot_stand_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Ladder((4, 4, 1), **changes)
