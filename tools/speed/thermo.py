"""Times learning of a one-layer latent EBM against thermo-ebms.

    pip install --no-deps jaxkan
    python -m tools.speed.thermo --code=CHECKOUT [--batch=16] [--repeats=5]

CHECKOUT is a checkout of github.com/PritRaj1/thermo-ebms: JAX with Flax NNX, one layer
of latents, its networks in bfloat16 with parameters of float32 unless told otherwise.
The network and the settings are those of its config for CIFAR-10 with learning by
maximum likelihood: 81 latents, a generator of three maps, 60 steps of the prior's chain
and 20 of the posterior's. Both sides have the same parameters, and the tool first
prints how far the scores of prior and posterior are apart, in float32. Then the sides
take turns, in float32 and in bfloat16: the chains, and a training step with them.
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jebm
from jebm.chains import example_keys, run_chains
from jebm.convolution import ConvTranspose
from jebm.densities import logdensity
from jebm.distributions import Normal
from jebm.likelihoods import Gaussian
from jebm.products import dense
from tools.arguments import path_argument
from tools.speed.benchmark import alternate

_SHAPE, _LATENTS, _WIDTHS, _MAPS = (32, 32, 3), 81, (200, 200, 1), (1024, 512, 256)
_PRIOR, _POSTERIOR = (60, 0.16), (20, 0.01)  # steps, and eta = step_size^2 / 2
_RATES, _BETAS = {"energy": 2e-5, "backbone": 1e-4}, (0.999, 0.5)


class Generator(nn.Module):
    """N(0, I), and transposed convolutions of 4 x 4 from one pixel to the image."""

    compute_dtype: str = "float32"
    output_shape = _SHAPE
    latent_shapes = ((_LATENTS,),)

    @nn.compact
    def decode(self, z: jax.Array) -> jax.Array:
        """Maps [B, D] to [B, 32, 32, 3]."""
        first, *others = _MAPS
        x = dense(16 * first, self.compute_dtype, use_bias=False, name="first")(z)
        bias = self.param("bias", nn.initializers.zeros, (first,), jnp.float32)
        x = x.reshape(-1, 4, 4, first) + bias.reshape(1, 1, 1, -1)
        for features in (*others, _SHAPE[-1]):
            x = nn.leaky_relu(x, 0.2)
            x = ConvTranspose(features, 4, 2, self.compute_dtype)(x)
        return x

    def start(self, batch: int) -> jax.Array:
        """Returns what is above the layer: nothing."""
        return jnp.zeros((batch, 0))

    def prior(self, i: int, state: jax.Array) -> Normal:
        """Returns N(0, I)."""
        zeros = jnp.zeros((len(state), _LATENTS))
        return Normal(zeros, zeros + 1)

    def merge(self, i: int, state: jax.Array, z: jax.Array) -> jax.Array:
        """Returns what the decoder reads."""
        return z


class Energy(nn.Module):
    """Dense layers, each with an activation, the last too."""

    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, latents: tuple[jax.Array, ...]) -> jax.Array:
        """Returns E(z), [B]."""
        (x,) = latents
        for width in _WIDTHS:
            x = nn.leaky_relu(dense(width, self.compute_dtype)(x), 0.1)
        return -x[:, 0]


class Side(NamedTuple):
    """What is timed; each function returns when it is done."""

    prior: Callable
    posterior: Callable
    step: Callable


def our_model(compute_dtype: str) -> jebm.Model:
    """Makes the model of both sides; images are in [0, 1] here, in [-1, 1] there."""

    def chain(num_steps, eta):
        return jebm.Langevin(num_steps, math.sqrt(2 * eta), space="z")

    return jebm.Model(
        _SHAPE, Generator(compute_dtype), Energy(compute_dtype), Gaussian(0.15),
        jebm.Chains(chain(*_PRIOR), chain(*_POSTERIOR)),
    )  # fmt: skip


def our_side(model: jebm.Model, params: jebm.Params, x: np.ndarray) -> Side:
    """Compiles chains and a learner."""
    keys = example_keys(jax.random.key(0), jnp.arange(len(x)))

    @jax.jit
    def chain(keys, params, x=None):
        which = model.chains.prior if x is None else model.chains.posterior
        return run_chains(keys, model, params, which, x=x).latents

    optimizer = optax.multi_transform(
        {name: optax.adam(rate, *_BETAS) for name, rate in _RATES.items()},
        jebm.Params("backbone", "energy"),
    )
    options = jebm.learning.Options(posterior=model.chains.posterior)
    learner = jebm.maximum_likelihood(model, model.chains.prior, optimizer, options)
    state = dataclasses.replace(learner.init(jax.random.key(0)), params=params)

    def step():
        nonlocal state
        state, info = learner.update(jax.random.key(0), state, x)
        return jax.block_until_ready((state.params, info))

    return Side(
        lambda: jax.block_until_ready(chain(keys, params)),
        lambda: jax.block_until_ready(chain(keys, params, x)),
        step,
    )


def their_model(dtype):
    """Makes the model of the checkout, with networks of that dtype."""
    from flax import nnx
    from thermo_ebms import config, models

    models.EBM.half_prec = models.GEN.half_prec = dtype

    def chain(num_steps, eta):
        return config.MCMCConfig(stepsize=eta, numsteps=num_steps)

    blocks = [
        config.ConvBlock(channels, 4, 2 if i else 1, "SAME" if i else "VALID")
        for i, channels in enumerate(_MAPS)
    ]
    energy = config.EBMConfig(mcmc=chain(*_PRIOR), layer_widths=list(_WIDTHS))
    generator = config.GENConfig(mcmc=chain(*_POSTERIOR), blocks=blocks)
    settings = config.ModelConfig(
        z_dim=_LATENTS, base="neural", ebm=energy, gen=generator
    )
    return models.mleEBM(settings, nnx.Rngs(0))


def their_side(model, x: np.ndarray) -> Side:
    """Compiles its chains and, around its losses, an update like that of its trainer.

    The trainer itself needs a data set, a logger and a checkpoint directory.
    """
    from flax import nnx

    key, images = jax.random.key(0), jnp.asarray(2 * x - 1)
    optimizer = optax.multi_transform(
        {
            name: optax.adam(rate, *_BETAS)
            for name, rate in zip(("ebm", "gen"), _RATES.values(), strict=True)
        },
        functools.partial(
            jax.tree_util.tree_map_with_path, lambda path, _: path[0].key
        ),
    )
    state = nnx.ModelAndOptimizer(model, optimizer)

    @nnx.jit
    def update(state, x, z_post, z_prior):
        def loss(model):
            return model.ebm.loss(z_post, z_prior) + model.loss(x, z_post, z_prior)

        value, grads = nnx.value_and_grad(loss)(state.model)
        state.update(grads)
        return value

    def step():
        prior = state.model.sample_prior(key, len(x))
        posterior = state.model.sample_posterior(key, images)
        jax.block_until_ready(update(state, images, posterior, prior))
        jax.block_until_ready(nnx.state(state))

    return Side(
        lambda: jax.block_until_ready(model.sample_prior(key, len(x))),
        lambda: jax.block_until_ready(model.sample_posterior(key, images)),
        step,
    )


def parameters(model) -> jebm.Params:
    """Returns their parameters as ours have them."""

    layers = [layer for layer in model.gen.g.layers if hasattr(layer, "kernel")]
    first = layers[0].kernel[...][::-1, ::-1]  # [4, 4, D, features]
    backbone = {
        "first": {"kernel": first.transpose(2, 0, 1, 3).reshape(_LATENTS, -1)},
        "bias": layers[0].bias[...],
    }
    for i, layer in enumerate(layers[1:]):
        # tanh(u) on [-1, 1] is sigmoid(2 u) on [0, 1].
        scale = 2.0 if layer is layers[-1] else 1.0
        mirrored = layer.kernel[...][::-1, ::-1].swapaxes(2, 3)
        backbone[f"ConvTranspose_{i}"] = {
            "kernel": scale * mirrored,
            "bias": scale * layer.bias[...],
        }
    linear = [layer for layer in model.ebm.f.layers if hasattr(layer, "kernel")]
    energy = {
        f"Dense_{i}": {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for i, layer in enumerate(linear)
    }
    return jebm.Params({"params": backbone}, {"params": energy})


def differences(ours, params, theirs, x) -> dict[str, float]:
    """Compares scores: the largest difference over the root mean square."""
    z = jax.random.normal(jax.random.key(1), (len(x), _LATENTS))
    there = z[:, None, None]
    their_prior = theirs.ebm.prior_score(there)
    their_posterior = their_prior + theirs.gen.posterior_score(there, 2 * x - 1)

    def score(x=None):
        def density(z):
            return logdensity(ours, params, (z,), x=x, space="z").sum()

        return jax.grad(density)(z)

    pairs = {
        "prior": (score(), their_prior[:, 0, 0]),
        "posterior": (score(jnp.asarray(x)), their_posterior[:, 0, 0]),
    }
    return {
        name: float(abs(a - b).max() / jnp.sqrt((b**2).mean()))
        for name, (a, b) in pairs.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Compares, times, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=path_argument, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(argv)
    sys.path.insert(0, str(given.code))
    x = np.random.default_rng(0).random((given.batch, *_SHAPE), np.float32)
    for dtype in ("float32", "bfloat16"):
        theirs = their_model(jnp.dtype(dtype))
        params, ours = parameters(theirs), our_model(dtype)
        if dtype == "float32":
            for name, value in differences(ours, params, theirs, x).items():
                print(f"score of the {name}: differs by {value:.1e}")
        sides = our_side(ours, params, x), their_side(theirs, x)
        print(f"{dtype}, batch {given.batch}")
        for what in Side._fields:
            both = {
                name: getattr(side, what)
                for name, side in zip(("jebm", "thermo-ebms"), sides, strict=True)
            }
            medians = {
                name: np.median(seconds)
                for name, seconds in alternate(both, given.repeats).items()
            }
            mine, their = medians.values()
            print(
                f"  {what:10} {mine:.3f} s against {their:.3f} s: "
                f"{their / mine:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
