import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments import options
from experiments.configs import cifar10, mnist
from experiments.models import build_model, model_spec
from jebm.chains import draw_noise, to_eps
from jebm.densities import logdensity
from jebm.learning import losses

torch = pytest.importorskip("torch", reason="the peer is PyTorch (pip install torch)")

from tools.speed import torch_peer  # noqa: E402


def small(module):
    """The experiment's own kind of model, tiny; its shape of images."""
    config = module.get_config()
    config.backbone.prior_widths = (7, 6)
    if config.backbone.decoder_type == "deconv":
        config.backbone.latent_dims = (5, 3)
        config.backbone.decoder_widths = (6, 5, 4)
        config.energy.widths = ((7, 6), (5,))
        return options.read(config), (16, 8, 3)
    config.backbone.decoder_widths = config.backbone.encoder_widths = (9, 8)
    config.backbone.latent_dims, config.energy.widths = (4, 3), (7, 6)
    return options.read(config), (4, 6, 1)


@pytest.fixture(params=[cifar10, mnist], ids=["cifar10", "mnist"])
def tiny(request):
    """Options, shape of images, model and its initial parameters, in float32."""
    experiment, shape = small(request.param)
    model = build_model(experiment, shape)
    return experiment, shape, model, jebm.init(jax.random.key(0), model)


@pytest.fixture
def sides(tiny, x64):
    """Options, our model and parameters with no zeros, the peer with the same, x, z."""
    experiment, shape, model, params = tiny
    spec = model_spec(experiment, shape)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a) + rng.normal(0, 0.1, a.shape)), params
    )
    peer = torch_peer.Peer(spec).double().load(params)
    x = jnp.asarray(rng.uniform(size=(2, *shape)))
    z = tuple(
        jnp.asarray(rng.normal(size=(2, *s))) for s in model.backbone.latent_shapes
    )
    return experiment, model, params, peer, x, z


def tensors(z):
    return [torch.from_numpy(np.array(zi)) for zi in z]


@pytest.mark.parametrize("chain", ["prior", "posterior"])
def test_a_gradient_of_a_chain_is_ours_number_by_number(chain, sides):
    experiment, model, params, peer, x, z = sides
    space = experiment.chains[chain]["space"]
    given = {"prior": None, "posterior": x}[chain]

    def total(z):
        return logdensity(model, params, z, space=space, x=given).sum()

    images = None if given is None else torch_peer.to_images(x)
    expected, gradient = jax.jit(jax.value_and_grad(total))(z)
    for layout in (lambda peer: peer, torch_peer.in_channels_last):
        value = layout(peer).logdensity(tensors(z), space, images).sum()
        np.testing.assert_allclose(value.item(), expected, rtol=1e-12)
        found = peer.gradient(tensors(z), space, images)
        for ours, theirs in zip(gradient, found, strict=True):
            np.testing.assert_allclose(theirs.numpy(), ours, rtol=1e-9, atol=1e-11)


def test_the_gradient_of_the_loss_is_ours(sides):
    experiment, model, params, peer, x, z = sides
    learning = experiment.learning
    rng = np.random.default_rng(1)
    positive, negative = (
        tuple(jnp.asarray(rng.normal(size=zi.shape)) for zi in z) for _ in range(2)
    )
    images = torch_peer.to_images(x)
    keys = jax.random.split(jax.random.key(2), 2)
    if learning.method == "mle":
        theirs = peer.chain_loss(images, tensors(positive), tensors(negative))
    else:
        noise = draw_noise(keys, model, params)
        positive = None
        theirs = peer.encoder_loss(
            images, tensors(noise), tensors(negative), learning.gradient_penalty
        )
    theirs.backward()

    samples = negative, to_eps(model, params, negative)
    batch = losses.Batch(x, keys, positive, *samples, jnp.int32(0), {})
    penalty = jebm.learning.Options(gradient_penalty=learning.gradient_penalty)

    def loss(params):
        if learning.method == "mle":
            return losses.maximum_likelihood_loss(model, penalty, params, batch)[0]
        arguments = penalty, jebm.learning.WarmUp(), learning.energy_grad_scale
        return losses.variational_loss(model, *arguments, params, batch)[0]

    expected = torch_peer.Peer(model_spec(experiment, model.image_shape)).double()
    expected.load(jax.jit(jax.grad(loss))(params))  # gradients in the peer's own layout
    for (name, p), q in zip(
        peer.named_parameters(), expected.parameters(), strict=True
    ):
        np.testing.assert_allclose(
            p.grad.numpy(), q.detach().numpy(), rtol=1e-8, atol=1e-10, err_msg=name
        )


def test_training_steps_move_every_parameter_and_stay_finite(sides):
    experiment, _, params, _, x, _ = sides
    spec, learning = model_spec(experiment, x.shape[1:]), experiment.learning
    spec["chains"]["prior"]["num_steps"] = 3
    spec["chains"]["posterior"]["num_steps"] = min(
        2, spec["chains"]["posterior"]["num_steps"]
    )
    if learning.persistent_chains:
        few = {"batch_size": 2, "persistent_chains": 4, "persistent_steps": 3}
        learning = dataclasses.replace(learning, **few)
    peer = torch_peer.Peer(spec).load(jax.tree.map(np.float32, params))
    before = [p.detach().clone() for p in peer.parameters()]
    trainer = torch_peer.Trainer(peer, learning)
    pool = [p.clone() for p in trainer.pool]
    images = torch_peer.to_images(x).float()
    assert all(np.isfinite(trainer.step(images)) for _ in range(2))
    for (name, new), old in zip(peer.named_parameters(), before, strict=True):
        assert not torch.equal(new, old), name
        assert new.isfinite().all(), name
    if learning.persistent_chains:
        for new, old in zip(trainer.pool, pool, strict=True):
            assert not (new == old).all(dim=1).any()  # both slots were visited


def test_a_model_of_another_kind_is_refused():
    spec = model_spec(options.read(cifar10.get_config()), (32, 32, 3))
    spec["energy"]["name"] = "joint"
    with pytest.raises(ValueError, match=r"no model of the kind .*'joint'"):
        torch_peer.Peer(spec)
