"""The model: what is fixed (`Model`), what is learned (`Params`), and `build`.

p(x, z) = p(x | z) exp(-E(z)) p_beta(z) / Z
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jebm.backbones.ladder import LadderBackbone
from jebm.backbones.nvae import NVAEBackbone
from jebm.backbones.vector import VectorBackbone
from jebm.distributions import (
    Bernoulli,
    Gaussian,
    LearnedGaussian,
    LogisticMixture,
)
from jebm.energies import (
    ConvEnergy,
    JointConvEnergy,
    JointEnergy,
    LayerwiseEnergy,
    StateEnergy,
    reads_state,
)
from jebm.hierarchy import Latents, given, has_encoder, infer, top_down, transport
from jebm.langevin import check_num_steps
from jebm.names import nearest, unknown

BACKBONES = {"vector": VectorBackbone, "ladder": LadderBackbone, "nvae": NVAEBackbone}
ENERGIES = {
    "layerwise": LayerwiseEnergy,
    "joint": JointEnergy,
    "conv": ConvEnergy,
    "joint_conv": JointConvEnergy,
    "state": StateEnergy,
}
LIKELIHOODS = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "learned_gaussian": LearnedGaussian,
    "logistic_mixture": LogisticMixture,
}
SPACES = ("eps", "z", "eps_released")
ENCODED = ("encoder", "mode")  # starts of a chain that an encoder knows
STARTS = ("normal", "prior", *ENCODED)


@dataclasses.dataclass(frozen=True)
class Chain:
    """A short-run Langevin chain.

    Attributes:
      num_steps: steps K, each one gradient.
      step_size: s of `jebm.langevin`.
      space: "eps" moves the noise of z = T(eps), whose Gaussian part is N(0, I)
        whatever the hierarchy has learned; "z" moves the latents themselves.
        "eps_released" moves eps by the density of z, see `jebm.densities`: for
        comparison with the paper's code.
      start: "normal" starts at N(0, I) in every layer of that space, "prior" at a
        sample of p_beta(z); in eps-space the two are one. For posterior chains,
        "encoder" starts at a sample of q(z | x), with num_steps=0 that is the draw,
        and "mode" where its noise is 0: at the mode of each q(z_i | z_{>i}, x).
    """

    num_steps: int = 40
    step_size: float = 0.4
    space: str = "eps"
    start: str = "normal"

    def __post_init__(self):
        check_num_steps(self.num_steps)
        if not hasattr(self.step_size, "dtype") and not (
            isinstance(self.step_size, int | float) and self.step_size > 0
        ):
            raise ValueError(f"step_size must be positive, got {self.step_size!r}")
        if self.space not in SPACES:
            raise ValueError(unknown("space", self.space, SPACES))
        if self.start not in STARTS:
            raise ValueError(unknown("start", self.start, STARTS))


@dataclasses.dataclass(frozen=True)
class Chains:
    """The chains a model was trained with."""

    prior: Chain = Chain(num_steps=40, step_size=0.4)
    posterior: Chain = Chain(num_steps=20, step_size=0.1)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Model:
    """A joint EBM prior over a multi-layer generator; holds no arrays.

    Compared by value and registered static: it passes as an ordinary argument through
    jit, grad, vmap and pmap, and equal models share one trace.

    Attributes:
      image_shape: (H, W, C).
      backbone: a Linen module under the contract of `jebm.hierarchy`.
      energy: a Linen module of `jebm.energies`; None for the Gaussian hierarchy itself.
      likelihood: p(x | z), see `jebm.distributions`.
      chains: how prior and posterior are sampled unless the caller says otherwise.
      remat: chains compute what is inside a layer once more on the way back of their
        gradient, instead of keeping it. Deep hierarchies then need the memory of one
        layer and of the states between, for one more pass forward.
    """

    image_shape: tuple[int, int, int]
    backbone: nn.Module
    energy: nn.Module | None
    likelihood: Any = dataclasses.field(default_factory=Gaussian)
    chains: Chains = Chains()
    remat: bool = False

    def __post_init__(self):
        if not isinstance(self.remat, bool):
            raise ValueError(f"remat must be True or False, got {self.remat!r}")
        check_chains(self.backbone, self.chains)
        sides = {"backbone": self.backbone, "likelihood": self.likelihood}
        bits = {name: getattr(side, "bits", None) for name, side in sides.items()}
        if None not in bits.values() and bits["backbone"] != bits["likelihood"]:
            raise ValueError(
                "backbone and likelihood must see colours of the same bits, got "
                f"{bits['backbone']} and {bits['likelihood']}"
            )


def check_chains(backbone: nn.Module, chains: Chains) -> None:
    """Raises a ValueError where a chain starts at an encoder that is not there."""
    if chains.prior.start in ENCODED:
        raise ValueError("the prior chain has no image to start at an encoder with")
    if chains.posterior.start in ENCODED and not has_encoder(backbone):
        raise ValueError(
            "the posterior chain cannot start at the encoder: the backbone has none"
        )


class Params(NamedTuple):
    """Whole Linen variable dicts; `energy` is {} where the model has none."""

    backbone: Any
    energy: Any


def build(spec: Mapping[str, Any]) -> Model:
    """Builds a model from plain values, as stored in a run's `model.json`.

    Args:
      spec: a mapping with `image_shape` and, all optional, `backbone`, `energy` and
        `likelihood`, each a mapping of `name` and that class's attributes, and
        `chains`, a mapping of `prior` and `posterior` to attributes of `Chain`, and
        `remat`.
        `energy=None` makes the Gaussian twin. Lists are read as tuples.

    Returns:
      The model; `build(spec) == build(spec)`.

    Raises:
      ValueError: for an unknown name or attribute (the message lists the known ones),
        a missing `image_shape`, or a value that the named class refuses.

    Example:
      >>> model = build({"image_shape": [8, 8, 1], "backbone": {"latent_dims": [4, 2]}})
      >>> model.backbone.latent_shapes
      ((4,), (2,))
    """
    _check_known(
        "field of the model", spec, [f.name for f in dataclasses.fields(Model)]
    )
    if "image_shape" not in spec:
        raise ValueError("the model needs an image_shape, (H, W, C)")
    image_shape = _freeze(spec["image_shape"])
    if np.shape(image_shape) != (3,) or not all(
        isinstance(n, int) and n > 0 for n in image_shape
    ):
        raise ValueError(
            f"image_shape must be three positive integers (H, W, C), got {image_shape}"
        )
    likelihood = _make("likelihood", LIKELIHOODS, spec.get("likelihood", {}))
    height, width, channels = image_shape
    backbone = _make(
        "backbone",
        BACKBONES,
        spec.get("backbone", {}),
        output_shape=(height, width, likelihood.num_outputs(channels)),
    )
    energy = spec.get("energy", {})
    if energy is not None:
        energy = _make("energy", ENERGIES, energy)
    chains = spec.get("chains", {})
    chain_names = [f.name for f in dataclasses.fields(Chains)]
    _check_known("chain", chains, chain_names)
    defaults = Chains()
    return Model(
        image_shape,
        backbone,
        energy,
        likelihood,
        Chains(
            **{
                name: _replace(f"{name} chain", getattr(defaults, name), chains[name])
                for name in chain_names
                if name in chains
            }
        ),
        spec.get("remat", False),
    )


def init(key: jax.Array, model: Model) -> Params:
    """Draws initial parameters.

    Args:
      key: typed key, [].
      model: the model.

    Returns:
      Params in float32. Energies of `jebm.energies` start at E = 0.

    Example:
      >>> model = build({"image_shape": (8, 8, 1)})
      >>> sorted(init(jax.random.key(0), model).energy["params"])
      ['f1', 'f2']
    """
    if isinstance(key, jax.core.Tracer):
        return _init(key, model)
    return _compiled_init(key, model)


def _init(key, model):
    key_backbone, key_energy = jax.random.split(key)
    shapes = model.backbone.latent_shapes
    eps = tuple(jnp.zeros((1, *shape), jnp.float32) for shape in shapes)

    def generate(backbone):
        if has_encoder(backbone):
            x = jnp.zeros((1, *model.image_shape), jnp.float32)
            infer(backbone, x, eps)
        latents, _, state = top_down(backbone, 1, transport(eps))
        return latents, state, backbone.decode(state)

    (latents, state, output), backbone = nn.init_with_output(generate, model.backbone)(
        key_backbone
    )
    height, width, channels = model.image_shape
    expected = (1, height, width, model.likelihood.num_outputs(channels))
    if output.shape != expected:
        raise ValueError(
            f"the backbone's decode must return {expected} for image_shape "
            f"{model.image_shape}, got {output.shape}"
        )
    if model.energy is None:
        return Params(backbone, {})
    seen = (latents, state) if reads_state(model.energy) else (latents,)
    return Params(backbone, model.energy.init(key_energy, *seen))


# It runs once: what a compiler gains on hundreds of draws is less than it takes.
_compiled_init = jax.jit(_init, compiler_options={"xla_backend_optimization_level": 0})


def energy(
    model: Model, params: Params, latents: Latents, state: Any = None
) -> jax.Array:
    """E(z) in nats, [B]; 0 for a Gaussian prior.

    `state` is that of `jebm.hierarchy.top_down` at `latents`, for a caller that has it;
    where None, and the energy reads it, the top-down pass is taken here.

    Example:
      >>> model = build({"image_shape": (8, 8, 1)})
      >>> params = init(jax.random.key(0), model)
      >>> energy(model, params, (jnp.ones((1, 16)), jnp.ones((1, 8)))).item()
      0.0
    """
    layers = len(model.backbone.latent_shapes)
    if len(latents) != layers:
        raise ValueError(f"latents must have {layers} layers, got {len(latents)}")
    if model.energy is None:
        return jnp.zeros_like(latents[0], shape=latents[0].shape[:1])
    if not reads_state(model.energy):
        return model.energy.apply(params.energy, latents)
    if state is None:

        def reached(backbone):
            return top_down(backbone, latents[0].shape[0], given(latents))[2]

        state = nn.apply(reached, model.backbone)(params.backbone)
    return model.energy.apply(params.energy, latents, state)


def float_dtype(params: Params) -> jnp.dtype:
    """The dtype that noise is drawn in: that of the first parameter."""
    leaves = jax.tree.leaves(params)
    return leaves[0].dtype if leaves else jnp.zeros(()).dtype


def _make(kind, registry, options, **fixed):
    if not isinstance(options, Mapping):
        raise ValueError(f"{kind} must be a mapping, got {options!r}")
    options = dict(options)
    name = options.pop("name", next(iter(registry)))
    if not isinstance(name, str) or name not in registry:
        raise ValueError(unknown(kind, name, registry))
    cls = registry[name]
    known = [f.name for f in dataclasses.fields(cls) if f.name not in _LINEN_FIELDS]
    _check_known(f"field of {kind} {name!r}", options, set(known) - set(fixed))
    try:
        return cls(**fixed, **{k: _freeze(v) for k, v in options.items()})
    except TypeError as error:  # a value of another type than the class expects
        raise ValueError(f"{kind} {name!r}: {error}") from error


_LINEN_FIELDS = ("parent", "name")


def _replace(kind, default, options):
    _check_known(
        f"field of the {kind}", options, [f.name for f in dataclasses.fields(default)]
    )
    try:
        return dataclasses.replace(default, **options)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error


def _check_known(what, options, known):
    if not isinstance(options, Mapping):
        raise ValueError(f"{what}: expected a mapping, got {options!r}")
    strange = sorted(set(options) - set(known))
    if strange:
        raise ValueError(
            f"unknown {what}: {strange}; known: {sorted(known)}"
            f"{nearest(strange[0], known)}"
        )


def _freeze(value):
    """Makes lists, also nested ones, into tuples: module fields must hash."""
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, Mapping):
        raise ValueError(f"expected no mapping here, got {value!r}")
    return value
