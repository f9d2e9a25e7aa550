"""The model: what is fixed (`Model`) and what is learned (`Params`).

p(x, z) = p(x | z) exp(-E(z)) p_beta(z) / Z
"""

import dataclasses
import functools
import numbers
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm import types
from jebm.energies import reads_state
from jebm.hierarchy import given, has_encoder, infer, top_down, transport
from jebm.kernels import ENCODED, Chains, Langevin
from jebm.likelihoods import Gaussian
from jebm.products import check_compute_dtype
from jebm.threefry import fused


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Model:
    """A joint EBM prior over a multi-layer generator; holds no arrays.

    Compared by value and registered static: it passes as an ordinary argument through
    jit, grad, vmap and pmap, and equal models share one trace.

    Attributes:
      image_shape: (H, W, C).
      backbone: a Linen module under the contract of `jebm.hierarchy`. Where it has an
        `output_shape` that is None, it becomes what image and likelihood ask for.
      energy: a Linen module of `jebm.energies`; None for the Gaussian hierarchy itself.
      likelihood: p(x | z), see `jebm.likelihoods`.
      chains: how prior and posterior are sampled unless the caller says otherwise;
        their step sizes are Python numbers here, since a model holds no arrays.
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
        _check_parts(self)
        if not isinstance(self.remat, bool):
            raise ValueError(f"remat must be True or False, got {self.remat!r}")
        # Frozen: these are set once, to what was left open.
        object.__setattr__(self, "backbone", self._fitted_backbone())
        if self.chains.posterior is None:
            posterior = Langevin(num_steps=20, step_size=0.1)
            if has_encoder(self.backbone):
                posterior = Langevin(num_steps=0, step_size=0.1, start="encoder")
            chains = dataclasses.replace(self.chains, posterior=posterior)
            object.__setattr__(self, "chains", chains)
        check_chains(self.backbone, self.chains)
        _check_hashable(self.chains)
        sides = {"backbone": self.backbone, "likelihood": self.likelihood}
        bits = {name: getattr(side, "bits", None) for name, side in sides.items()}
        if None not in bits.values() and bits["backbone"] != bits["likelihood"]:
            raise ValueError(
                "backbone and likelihood must see colours of the same bits, got "
                f"{bits['backbone']} and {bits['likelihood']}"
            )

    def _fitted_backbone(self):
        if getattr(self.backbone, "output_shape", ()) is not None:
            return self.backbone
        height, width, channels = self.image_shape
        outputs = (height, width, self.likelihood.num_outputs(channels))
        return self.backbone.clone(output_shape=outputs)


def check_image_shape(shape: Any) -> None:
    """Raises a ValueError unless `shape` is three positive integers."""
    whole = isinstance(shape, tuple) and len(shape) == 3
    if not whole or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"image_shape must be three positive integers (H, W, C), got {shape!r}"
        )


def _check_parts(model):
    """Refuses parts that are of another kind: classes, functions, names."""
    likelihood = model.likelihood
    check_image_shape(model.image_shape)
    if not isinstance(model.backbone, nn.Module):
        raise ValueError(f"backbone must be a Linen module, got {model.backbone!r}")
    if not isinstance(model.energy, nn.Module | None):
        raise ValueError(
            f"energy must be a Linen module or None, got {model.energy!r}; "
            "jebm.energies.Function makes one of functions"
        )
    if isinstance(likelihood, type) or not hasattr(likelihood, "log_prob"):
        raise ValueError(
            f"likelihood must be one of jebm.likelihoods, got {likelihood!r}"
        )
    if not isinstance(model.chains, Chains):
        raise ValueError(f"chains must be a jebm.Chains, got {model.chains!r}")


def check_chains(backbone: nn.Module, chains: Chains) -> None:
    """Raises a ValueError where a chain starts at an encoder that is not there."""
    if chains.prior.start in ENCODED:
        raise ValueError(
            "start of the prior chain must be 'normal' or 'prior', as it has no image, "
            f"got {chains.prior.start!r}"
        )
    posterior = chains.posterior
    if posterior and posterior.start in ENCODED and not has_encoder(backbone):
        raise ValueError(
            f"the posterior chain starts at {posterior.start!r}, and the backbone has "
            "no encoder: give the model another chain, or chains=jebm.Chains() for "
            "those of a model without one"
        )


def _check_hashable(chains):
    """Refuses arrays in a model's own chains: models compare and hash by value."""
    for name, chain in (("prior", chains.prior), ("posterior", chains.posterior)):
        if not isinstance(chain.step_size, numbers.Real):
            raise ValueError(
                f"step_size of a model's own {name} chain must be a Python number, got "
                f"{chain.step_size!r}; pass arrays as `kernel=` of a call"
            )
        try:
            hash(chain)
        except TypeError:
            raise ValueError(
                f"a model's own {name} chain must hold Python numbers and tuples of "
                f"them, got {chain!r}; pass arrays as `kernel=` of a call"
            ) from None


def with_compute_dtype(model: Model, compute_dtype: str | None) -> Model:
    """Returns the model with the backbone's products of operands of `compute_dtype`.

    Energies stay as they are: their products are small, so that bfloat16 gains nothing
    there and costs acceptance (docs/benchmark.md).

    Args:
      model: the model.
      compute_dtype: of the matrix products and convolutions of the backbone's networks,
        "float32" or "bfloat16"; None for the model's own. See `jebm.products`.

    Raises:
      ValueError: for another dtype, or "bfloat16" and a backbone that has no attribute
        `compute_dtype`.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> with_compute_dtype(model, "bfloat16").backbone.compute_dtype
      'bfloat16'
    """
    if compute_dtype is None:
        return model
    check_compute_dtype(compute_dtype)
    if hasattr(model.backbone, "compute_dtype"):
        backbone = model.backbone.clone(compute_dtype=compute_dtype)
        return dataclasses.replace(model, backbone=backbone)
    if compute_dtype != "float32":
        raise ValueError(
            f"compute_dtype {compute_dtype!r} needs a backbone with an attribute "
            f"compute_dtype, got {type(model.backbone).__name__}"
        )
    return model


class Params(NamedTuple):
    """Whole Linen variable dicts; `energy` is {} where the model has none."""

    backbone: Any
    energy: Any


def trainable(params: Params, frozen: bool = False) -> Params:
    """Returns the collections "params" alone, {} for a `frozen` backbone.

    That is what an optimiser sees: batch statistics are no parameters.
    """
    backbone, energy = (variables.get("params", {}) for variables in params)
    return Params({} if frozen else backbone, energy)


def merge(params: Params, learned: Params) -> Params:
    """Returns `params` with what `trainable` took of them replaced by `learned`."""
    parts = zip(params, learned, strict=True)
    return Params(*(old | {"params": new} if new else old for old, new in parts))


def init(
    key: types.Key, model: Model, dtype: jax.typing.DTypeLike | None = None
) -> Params:
    """Draws initial parameters.

    Args:
      key: typed key, [].
      model: the model.
      dtype: of floating-point parameters; None for JAX's default, float32 or, where
        x64 is enabled, float64.

    Returns:
      Params. Energies of `jebm.energies` start at E = 0.

    Raises:
      ValueError: for a `dtype` that is not floating-point, or a backbone whose decode
        returns another shape than the likelihood needs.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> sorted(init(jax.random.key(0), model).energy["params"])
      ['f1', 'f2']
    """
    dtype = jnp.zeros((), dtype).dtype  # as JAX has it, by x64
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be floating-point, got {dtype}")
    if isinstance(key, jax.core.Tracer):
        return _init(key, model, dtype)
    return _compiled_init(fused(key), model, dtype)


def _init(key, model, dtype):
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
    energy = {}
    if model.energy is not None:
        seen = (latents, state) if reads_state(model.energy) else (latents,)
        energy = model.energy.init(key_energy, *seen)
    # Networks make float32, so that a seed means one start in any precision.
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if floating(leaf) else leaf,
        Params(backbone, energy),
    )


# It runs once: what a compiler gains on hundreds of draws is less than it takes.
_compiled_init = functools.partial(
    jax.jit,
    static_argnums=2,
    compiler_options={"xla_backend_optimization_level": 0},
)(_init)


def energy(
    model: Model, params: Params, latents: types.Latents, state: Any = None
) -> types.PerExample:
    """Computes E(z) in nats, [B]; 0 for a Gaussian prior.

    `state` is that of `jebm.hierarchy.top_down` at `latents`, for a caller that has it;
    where None, and the energy reads it, the top-down pass is taken here.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = init(jax.random.key(0), model)
      >>> energy(model, params, (jnp.ones((1, 16)), jnp.ones((1, 8)))).item()
      0.0
    """
    layers = len(model.backbone.latent_shapes)
    if not isinstance(latents, tuple | list) or len(latents) != layers:
        got = len(latents) if isinstance(latents, tuple | list) else type(latents)
        raise ValueError(f"latents must be a tuple of {layers} layers, got {got}")
    if model.energy is None:
        return jnp.zeros_like(latents[0], shape=latents[0].shape[:1])
    seen: tuple[Any, ...] = (latents,)
    if reads_state(model.energy) and state is None:

        def reached(backbone):
            return top_down(backbone, latents[0].shape[0], given(latents))[2]

        state = nn.apply(reached, model.backbone)(params.backbone)
    if reads_state(model.energy):
        seen = (latents, state)
    value: Any = model.energy.apply(params.energy, *seen)
    if jnp.shape(value) != latents[0].shape[:1]:
        raise ValueError(
            f"the energy must return one value per example, {latents[0].shape[:1]}, "
            f"got {jnp.shape(value)}"
        )
    return value


def float_dtype(params: Params) -> jnp.dtype:
    """Returns the dtype that noise is drawn in: that of the first parameter."""
    leaves = jax.tree.leaves(params)
    return leaves[0].dtype if leaves else jnp.zeros(()).dtype
