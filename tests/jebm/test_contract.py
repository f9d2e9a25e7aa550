"""A backbone that breaks the contract in one way, and what is said of it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm.distributions import Normal


class Sound(nn.Module):
    """Two layers of vectors, the lower one a linear map of the upper."""

    latent_shapes: tuple = ((3,), (2,))

    def setup(self):
        self.head = nn.Dense(6)
        self.decoder = nn.Dense(16)

    def start(self, batch):
        return jnp.full((batch, 0), 0.0)

    def prior(self, i, state):
        if i == 1:
            return Normal(jnp.zeros((len(state), 2)), jnp.ones((len(state), 2)))
        loc, log_scale = jnp.split(self.head(state), 2, axis=-1)
        return Normal(loc, jnp.exp(jnp.tanh(log_scale)))

    def merge(self, i, state, z):
        return jnp.concatenate([state, z], axis=-1)

    def decode(self, state):
        return self.decoder(state).reshape(-1, 4, 4, 1)


def check(backbone):
    jebm.check_backbone(jebm.Model((4, 4, 1), backbone, energy=None))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        {
            "latent_dims": (3, 2),
            "prior_widths": (4,),
            "decoder_widths": (4,),
            "encoder_widths": (4,),
        },
        {
            "name": "ladder",
            "latent_shapes": ((2, 2, 2), (3,)),
            "width": 4,
            "encoder_widths": (4, 3),
        },
    ],
    ids=["vector", "ladder"],
)
def test_backbones_of_the_package_keep_the_contract(spec):
    jebm.check_backbone(jebm.build({"image_shape": (4, 4, 1), "backbone": spec}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Sound", "Infers"])
def test_a_sound_backbone_of_a_user_passes(name):
    check(globals()[name]())


class Scale(Sound):
    def prior(self, i, state):
        prior = super().prior(i, state)
        return prior._replace(scale=prior.scale - (1.0 if i == 0 else 0.0))


class Nan(Sound):
    def prior(self, i, state):
        prior = super().prior(i, state)
        return prior._replace(loc=prior.loc + jnp.log(-prior.scale))


class Pair(Sound):
    def prior(self, i, state):
        return tuple(super().prior(i, state))


class OneScale(Sound):
    def prior(self, i, state):
        return super().prior(i, state)._replace(scale=jnp.ones(self.latent_shapes[i]))


class Whole(Sound):
    def decode(self, state):
        return super().decode(state).astype(jnp.int32)


class Flat(Sound):
    def decode(self, state):
        return self.decoder(state)


class Drops(Sound):
    def merge(self, i, state, z):
        return super().merge(i, state, z if i == 0 else jnp.zeros_like(z))


class Kinks(Sound):
    def merge(self, i, state, z):
        return super().merge(i, state, z + jnp.sqrt(0.0 * z))


class Draws(Sound):
    def merge(self, i, state, z):
        noise = jax.random.normal(self.make_rng("noise"), z.shape)
        return super().merge(i, state, z + noise)


class DrawsByItself(Sound):
    def merge(self, i, state, z):
        return super().merge(i, state, z + float(np.random.default_rng().normal()))


class Writes(Sound):
    def setup(self):
        super().setup()
        self.count = self.variable("counts", "merged", lambda: jnp.zeros(()))

    def merge(self, i, state, z):
        self.count.value += 1.0
        return super().merge(i, state, z)


class Mixes(Sound):
    def merge(self, i, state, z):
        return super().merge(i, state, z - z.mean(axis=0, keepdims=True))


class Branches(Sound):
    def merge(self, i, state, z):
        return super().merge(i, state, z if z.sum() > 0 else -z)


class Signature(Sound):
    def merge(self, state, z):
        return jnp.concatenate([state, z], axis=-1)


class Undeclared(Sound):
    def encode(self, x):
        return x

    def posterior(self, i, state, features, prior, noise):
        return noise, jnp.zeros(len(noise))


class Infers(Sound):
    has_encoder = True
    encoder_modules = ("features", "heads_0", "heads_1")

    def setup(self):
        super().setup()
        self.features = nn.Dense(5)
        self.heads = [nn.Dense(6), nn.Dense(4)]

    def encode(self, x):
        return jnp.tanh(self.features(x.reshape(len(x), -1)))

    def normal(self, i, state, features):
        output = self.heads[i](jnp.concatenate([state, features], axis=-1))
        loc, log_scale = jnp.split(output, 2, axis=-1)
        return Normal(loc, jnp.exp(jnp.tanh(log_scale)))

    def posterior(self, i, state, features, prior, noise):
        q = self.normal(i, state, features)
        z = q.loc + q.scale * noise
        return z, q.log_prob(z)


class OfTheNoise(Infers):
    def posterior(self, i, state, features, prior, noise):
        q = self.normal(i, state, features)
        return q.loc + q.scale * noise, q.log_prob(noise)


class Means(Infers):
    def posterior(self, i, state, features, prior, noise):
        z, log_q = super().posterior(i, state, features, prior, noise)
        return z, log_q / self.latent_shapes[i][0]


class Mode(Infers):
    def posterior(self, i, state, features, prior, noise):
        q = self.normal(i, state, features)
        return q.loc, q.log_prob(q.loc)


class PerUnit(Infers):
    def posterior(self, i, state, features, prior, noise):
        z, _ = super().posterior(i, state, features, prior, noise)
        return z, -(noise**2)


class OnlyZ(Infers):
    def posterior(self, i, state, features, prior, noise):
        return super().posterior(i, state, features, prior, noise)[0]


class Names(Infers):
    encoder_modules = ("features",)


class MixesImages(Infers):
    def encode(self, x):
        return super().encode(x - x.mean(axis=0, keepdims=True))


class OldKeys(Infers):
    def posterior(self, i, state, features, prior, keys):
        q = self.normal(i, state, features)
        draw = jax.vmap(lambda key: jax.random.normal(key, q.loc.shape[1:]))
        z = q.loc + q.scale * draw(keys)
        return z, q.log_prob(z)


class Promises(Sound):
    has_encoder = True


class Fields(Sound):
    extra: object = None


class NoMerge(nn.Module):
    latent_shapes: tuple = ((2,),)

    start, prior, decode = Sound.start, Sound.prior, Sound.decode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (lambda: "vector", "must be a Linen module, got 'vector'"),
        (NoMerge, r"lacks the verbs \['merge'\]"),
        (Promises, r"lacks the verbs \['encode', 'posterior'\]"),
        (Undeclared, "a posterior and no attribute has_encoder"),
        (lambda: Sound([(3,), (2,)]), r"latent_shapes must be a tuple .* got \[\(3,\)"),
        (lambda: Sound((3, 2)), r"latent_shapes must be a tuple .* got \(3, 2\)"),
        (lambda: Sound(()), r"latent_shapes must be a tuple .* got \(\)"),
        (lambda: Sound(((3,), (0,))), r"latent_shapes must be a tuple .* \(0,\)"),
        (lambda: Fields(extra=np.ones(2)), "extra must be hashable, got ndarray"),
        (
            lambda: Fields(extra=functools.partial(nn.relu)),
            "extra does not compare by value",
        ),
        (Signature, r"merge\(1, state, z\) failed with TypeError: .* positional"),
        (Branches, r"merge\(1, state, z\) failed with TracerBoolConversionError"),
        (Draws, r"merge\(1, state, z\) failed with InvalidRngError: .*'?noise"),
        (Writes, r"merge\(1, state, z\) failed with ModifyScopeVariableError"),
        (DrawsByItself, "two calls with the same arguments differ"),
        (Pair, r"prior\(1, state\) must return a jebm.distributions.Normal, got tuple"),
        (OneScale, r"prior\(1, state\).scale must return \[3, 2\], got \[2\]"),
        (
            lambda: Sound(((2,), (2,))),
            r"prior\(0, state\).loc .*\[3, 2\], got \[3, 3\]",
        ),
        (Scale, r"prior\(0, state\).scale must be positive, got -0\.\d"),
        (Nan, r"prior\(1, state\).loc must be finite"),
        (Flat, r"decode\(state\) must return \[3, 4, 4, 1\], got \[3, 16\]"),
        (Whole, r"decode\(state\) must be floating-point, got int32"),
        (Mixes, "depends on the others of its batch"),
        (Drops, r"z_2 reaches neither .* does backbone.merge\(1, state, z\) drop it"),
        (OfTheNoise, r"log q of backbone.posterior\(0, ...\) is not the log-density"),
        (Means, r"log q of backbone.posterior\(0, ...\) is not the log-density"),
        (Mode, r"log q of backbone.posterior\(0, ...\) is not the log-density"),
        (PerUnit, r"log q of .*posterior\(1, .*\) must return \[3\], got \[3, 2\]"),
        (OnlyZ, r"posterior\(1, .*\) must return \(z, log q\), got "),
        (Names, r"encoder_modules .*\('features', 'heads_0', 'heads_1'\); got \('fea"),
        (MixesImages, "inferred of an example depends on the others of its batch"),
        (OldKeys, r"posterior\(1, .*\) failed with .*Error"),
        (Kinks, "the generator's gradient at z_2 is not finite"),
    ],
)
def test_a_broken_backbone_is_told_what_is_wrong(backbone, words):
    with pytest.raises(ValueError, match=words):
        check(backbone())
