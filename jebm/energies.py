"""Energies of the latents.

    layerwise    E(z) = - sum_i f_i(z_i)        (arXiv 2306.06323)
    joint        E(z) = - f(z_1, ..., z_L)      (arXiv 2310.09604)
    conv         layerwise, with convolutions where z_i is a map
    joint_conv   joint, with convolutions from the finest map to the coarsest
    state        E(z) = - f(h(z)), h the state that the decoder reads

and any function of yours, in whatever library, as a `Function`. An energy is any
Linen module that maps latents (a tuple, bottom to top, each [B, *shape_i]) to [B], in
nats; low energy is likely. One whose attribute `reads_state` is true maps (latents,
state), the second what `jebm.hierarchy.top_down` returns last.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm import convolution
from jebm.hierarchy import Latents
from jebm.networks import ACTIVATIONS, MLP, check_activation, check_widths
from jebm.products import check_compute_dtype


class Layerwise(nn.Module):
    """One MLP f_i per layer, zero at initialisation: training starts at p_beta.

    Attributes:
      widths: hidden widths of f_i, either the same for every layer, (200, 200), or one
        tuple per layer, bottom to top, ((200, 200, 200), (100, 100)).
      activation: a smooth one by default, because the Langevin chain must follow f.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> energy, latents = Layerwise(), (jnp.ones((5, 3)), jnp.ones((5, 2)))
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents).shape
      (5,)
    """

    widths: tuple = (200, 200)
    activation: str = "gelu"
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_activation(self.activation)
        check_compute_dtype(self.compute_dtype)
        if not isinstance(self.widths, tuple):
            raise ValueError(f"energy widths must be a tuple, got {self.widths!r}")
        for widths in self.widths:
            whole = widths if isinstance(widths, tuple) else (widths,)
            check_widths("energy widths", whole)
        super().__post_init__()

    @nn.compact
    def per_layer(self, latents: Latents) -> tuple[jax.Array, ...]:
        """Returns E_i(z_i) = -f_i(z_i), a tuple of [B], bottom to top."""
        per_layer = self.widths
        if not any(isinstance(w, tuple) for w in per_layer):
            per_layer = (self.widths,) * len(latents)
        if len(per_layer) != len(latents):
            raise ValueError(
                f"energy widths must have one tuple per layer: got {len(per_layer)} "
                f"for {len(latents)} layers"
            )
        networks = [
            _head(self, widths, f"f{i + 1}") for i, widths in enumerate(per_layer)
        ]
        return tuple(-f(z)[:, 0] for f, z in zip(networks, latents, strict=True))

    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        return sum(self.per_layer(latents))


class Joint(nn.Module):
    """One MLP of all layers, zero at initialisation.

    It sees which values of the layers go together, which a sum of one energy per layer
    cannot see. That matters where the decoder reads every layer, and a layer holds no
    more than its departure from those above: in a ladder.

    Attributes:
      widths: hidden widths of f.
      activation: a smooth one by default, because the Langevin chain must follow f.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> energy, latents = Joint(), (jnp.ones((5, 2, 2, 3)), jnp.ones((5, 2)))
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents).shape
      (5,)
    """

    widths: tuple[int, ...] = (200, 200)
    activation: str = "gelu"
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_activation(self.activation)
        check_compute_dtype(self.compute_dtype)
        if not isinstance(self.widths, tuple) or not all(
            isinstance(width, int) for width in self.widths
        ):
            raise ValueError(
                f"joint energy widths must be a tuple of integers, got {self.widths!r}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        flat = [z.reshape(z.shape[0], -1) for z in latents]
        f = _head(self, self.widths, "f")
        return -f(jnp.concatenate(flat, axis=-1))[:, 0]


class Conv(nn.Module):
    """One f_i per layer: convolutions that halve a map down to 4 x 4, then an MLP.

    Zero at initialisation. A layer of vectors has the MLP alone. (arXiv 2306.06323, on
    NVAE: 64 channels, widths of 200)

    Attributes:
      channels: of each convolution, 4 x 4 with stride 2.
      widths: hidden widths of the MLP.
      activation: a smooth one by default, because the Langevin chain must follow f.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> energy, latents = Conv(8), (jnp.ones((5, 16, 16, 3)), jnp.ones((5, 2)))
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents).shape
      (5,)
    """

    channels: int = 64
    widths: tuple[int, ...] = (200, 200)
    activation: str = "silu"
    compute_dtype: str = "float32"

    def __post_init__(self):
        _check_conv(self)
        super().__post_init__()

    @nn.compact
    def per_layer(self, latents: Latents) -> tuple[jax.Array, ...]:
        """Returns E_i(z_i) = -f_i(z_i), a tuple of [B], bottom to top."""
        energies = []
        for i, z in enumerate(latents):
            z = _halved(self, z, f"f{i + 1}_conv")
            f = _head(self, self.widths, f"f{i + 1}")
            energies.append(-f(z)[:, 0])
        return tuple(energies)

    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        return sum(self.per_layer(latents))


class JointConv(nn.Module):
    """One f of all layers: convolutions from the finest maps to the coarsest, an MLP.

    Maps of one resolution are taken together, with what the convolutions made of the
    finer ones; vectors are met by the MLP. Zero at initialisation.

    Attributes:
      channels: of each convolution, 4 x 4 with stride 2.
      widths: hidden widths of the MLP.
      activation: a smooth one by default, because the Langevin chain must follow f.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> maps = jnp.ones((5, 8, 8, 3)), jnp.ones((5, 4, 4, 3))
      >>> energy, latents = JointConv(8), (*maps, jnp.ones((5, 2)))
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents).shape
      (5,)
    """

    channels: int = 64
    widths: tuple[int, ...] = (200, 200)
    activation: str = "silu"
    compute_dtype: str = "float32"

    def __post_init__(self):
        _check_conv(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        maps = [z for z in latents if z.ndim == 4]
        vectors = [z for z in latents if z.ndim != 4]
        flat = []
        if maps:
            sides = sorted({z.shape[1:3] for z in maps}, reverse=True)
            side, level, halvings = sides[0], [], 0
            while True:
                level += [z for z in maps if z.shape[1:3] == side]
                x = jnp.concatenate(level, axis=-1)
                if side <= sides[-1] and min(side) <= 4:
                    break
                conv = _halving(self, f"conv_{halvings}")
                level = [ACTIVATIONS[self.activation](conv(x))]
                side, halvings = level[0].shape[1:3], halvings + 1
            flat.append(x)
        flat = [z.reshape(z.shape[0], -1) for z in flat + vectors]
        f = _head(self, self.widths, "f")
        return -f(jnp.concatenate(flat, axis=-1))[:, 0]


class State(nn.Module):
    """One f of the state that the decoder reads: convolutions down to 4 x 4, an MLP.

    An image depends on z through that state alone. So this energy can correct all that
    an image shows, and ignores what it does not show: the many units of a deep
    hierarchy in which q is p_beta and which the decoder has learned to ignore. To an
    energy of the latents themselves these units are noise. Zero at initialisation.

    It learns on a frozen backbone or beside a VAE. If its gradient reaches the
    backbone, the state changes with it.

    Attributes:
      channels: of each convolution, 4 x 4 with stride 2.
      widths: hidden widths of the MLP.
      activation: a smooth one by default, because the Langevin chain must follow f.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> energy, state = State(8), jnp.ones((5, 16, 16, 3))
      >>> params = energy.init(jax.random.key(0), (), state)
      >>> energy.apply(params, (), state).shape
      (5,)
    """

    channels: int = 64
    widths: tuple[int, ...] = (200, 200)
    activation: str = "silu"
    compute_dtype: str = "float32"

    reads_state = True

    def __post_init__(self):
        _check_conv(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, latents: Latents, state: jax.Array) -> jax.Array:
        """Returns E(z), [B]."""
        del latents
        if not isinstance(state, jax.Array):
            raise ValueError(
                "energy 'state' needs a backbone whose state is one array, got a "
                f"{type(state).__name__}"
            )
        state = _halved(self, state, "conv")
        f = _head(self, self.widths, "f")
        return -f(state)[:, 0]


def reads_state(energy: nn.Module) -> bool:
    """Says whether the energy takes the decoder's state besides the latents."""
    return getattr(energy, "reads_state", False)


def _halved(energy, x, name):
    """Halves a map by convolutions down to 4 x 4; returns a vector as it is."""
    halvings = 0
    while x.ndim == 4 and min(x.shape[1:3]) > 4:
        conv = _halving(energy, f"{name}_{halvings}")
        x = ACTIVATIONS[energy.activation](conv(x))
        halvings += 1
    return x


class Function(nn.Module):
    """An energy that is a pair of functions, of any library or none.

    The parameters that `init_fn` makes, a pytree of arrays, are `params.energy` of
    the model, under "params" and "function". Functions compare by identity: define
    them once, in a module, so that equal models share one trace.

    Attributes:
      init_fn: (key, latents) -> parameters.
      apply_fn: (parameters, latents) -> E(z) in nats, [B].

    Raises:
      ValueError: where `apply_fn` returns another shape.

    Example:
      >>> def init_fn(key, latents):
      ...     return [jnp.ones(z.shape[1:]) for z in latents]
      >>> def apply_fn(weights, latents):
      ...     return sum(z**2 @ w for w, z in zip(weights, latents))
      >>> energy, latents = Function(init_fn, apply_fn), (jnp.ones((5, 3)),)
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents)
      Array([3., 3., 3., 3., 3.], dtype=float32)
    """

    init_fn: Callable[[jax.Array, Latents], Any]
    apply_fn: Callable[[Any, Latents], jax.Array]

    @nn.compact
    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        params = self.param("function", self.init_fn, latents)
        energy = self.apply_fn(params, latents)
        expected = latents[0].shape[:1]
        if jnp.shape(energy) != expected:
            raise ValueError(
                f"apply_fn must return one energy per example, {expected}, "
                f"got {jnp.shape(energy)}"
            )
        return energy


def _head(energy, widths, name):
    """Makes the MLP f, zero at initialisation, with the settings of an energy."""
    return MLP(widths, 1, energy.activation, True, energy.compute_dtype, name=name)


def _halving(energy, name):
    halve = functools.partial(convolution.stand_in, compute_dtype=energy.compute_dtype)
    return nn.Conv(
        energy.channels, (4, 4), strides=2, name=name, conv_general_dilated=halve
    )


def _check_conv(energy):
    check_activation(energy.activation)
    check_compute_dtype(energy.compute_dtype)
    if not isinstance(energy.channels, int) or energy.channels < 1:
        raise ValueError(
            f"energy channels must be a positive integer, got {energy.channels!r}"
        )
    if not isinstance(energy.widths, tuple) or not all(
        isinstance(width, int) for width in energy.widths
    ):
        raise ValueError(
            f"energy widths must be a tuple of integers, got {energy.widths!r}"
        )
