"""Chains as values: which Markov kernel, how many steps, in which space, from where.

A chain is a pytree whose step size is data, and whose other settings are static: a new
step size compiles nothing anew, and a chain passes through jit, vmap and grad.

    Langevin   uncorrected steps of `jebm.langevin`
    MALA       the same steps with a Metropolis test, `jebm.mala`
    Underdamped
               tested steps that keep their direction, `jebm.underdamped`
    Tempered   MALA's or Langevin's steps on several temperatures, `jebm.tempering`
"""

import dataclasses
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jebm import langevin, mala, tempering, underdamped
from jebm.names import unknown_name_message

SPACES = ("eps", "z", "eps_no_jacobian")
RENAMED_SPACES = {"eps_released": "eps_no_jacobian"}  # of older versions: the new name
ENCODED = ("encoder", "mode")  # starts of a chain that an encoder knows
STARTS = ("normal", "prior", *ENCODED)


def _check_positive(name, value):
    """Demands a positive, finite number; a jax.Array [] is taken on trust."""
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()  # known without waiting for a device
    if hasattr(value, "dtype"):
        if value.shape:
            got = f"{value.dtype}{list(value.shape)}"
            raise ValueError(f"{name} must be one number, got {got}")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    elif not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    elif value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


@dataclasses.dataclass(frozen=True)
class Chain:
    """The settings that all chains share; use one of `KERNELS`.

    Attributes:
      num_steps: steps K, each one gradient.
      step_size: s of `jebm.langevin`; a Python number or an array [].
      space: "eps" moves the noise of z = T(eps), whose Gaussian part is N(0, I)
        whatever the hierarchy has learned; "z" moves the latents themselves.
        "eps_no_jacobian" moves eps by the density of z, see `jebm.densities`: for
        comparison with the paper's code.
      start: "normal" starts at N(0, I) in every layer of that space, "prior" at a
        sample of p_beta(z); in eps-space the two are one. For posterior chains,
        "encoder" starts at a sample of q(z | x), with num_steps=0 that is the draw,
        and "mode" where its noise is 0: at the mode of each q(z_i | z_{>i}, x).

    Raises:
      ValueError: for a value out of range, or an unknown space or start.
    """

    num_steps: int = 40
    step_size: Any = 0.4
    space: str = "eps"
    start: str = "normal"

    def __post_init__(self):
        langevin.check_num_steps(self.num_steps)
        _check_positive("step_size", self.step_size)
        if self.space not in SPACES:
            message = unknown_name_message("space", self.space, SPACES)
            if str(self.space) in RENAMED_SPACES:
                message += f"; it is now called {RENAMED_SPACES[self.space]!r}"
            raise ValueError(message)
        if self.start not in STARTS:
            raise ValueError(unknown_name_message("start", self.start, STARTS))

    @property
    def kernel(self) -> langevin.Kernel:
        """Returns the Markov kernel whose steps the chain takes."""
        raise NotImplementedError

    @property
    def adjusted(self) -> bool:
        """Says whether a test corrects moves; if so, the law is exact at any s."""
        return False


def _pytree(*data: str):
    """Registers a frozen dataclass as a pytree with these fields as children."""

    def register(cls):
        static = [f.name for f in dataclasses.fields(cls) if f.name not in data]

        def flatten(chain):
            keyed = [
                (jax.tree_util.GetAttrKey(name), getattr(chain, name)) for name in data
            ]
            return keyed, tuple(getattr(chain, name) for name in static)

        def unflatten(values, children):
            # Past the checks: JAX also unflattens trees of what are no numbers.
            chain = object.__new__(cls)
            for name, value in zip((*static, *data), (*values, *children), strict=True):
                object.__setattr__(chain, name, value)
            return chain

        jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
        return cls

    return register


@_pytree("step_size")
@dataclasses.dataclass(frozen=True)
class Langevin(Chain):
    """A short-run Langevin chain: uncorrected steps, so its law depends on s.

    Attributes are those of `Chain`. (arXiv 2306.06323)

    Example:
      >>> chain = Langevin(num_steps=20, step_size=0.3)
      >>> jax.tree.leaves(chain)
      [0.3]
    """

    @property
    def kernel(self) -> langevin.Kernel:
        """Returns `langevin.LANGEVIN`."""
        return langevin.LANGEVIN


@_pytree("step_size")
@dataclasses.dataclass(frozen=True)
class MALA(Chain):
    """A Metropolis-adjusted chain: its law is the density it is given, at any s.

    Attributes are those of `Chain`; it costs one gradient more than it has steps.

    Example:
      >>> import jebm
      >>> model, params = jebm.load_pretrained("digits")
      >>> exact = MALA(num_steps=3, step_size=0.2)
      >>> jebm.sample(jax.random.key(0), model, params, 2, kernel=exact).x.shape
      (2, 8, 8, 1)
    """

    @property
    def kernel(self) -> langevin.Kernel:
        """Returns `mala.MALA`."""
        return mala.MALA

    @property
    def adjusted(self) -> bool:
        """Returns True."""
        return True


@_pytree("step_size", "friction")
@dataclasses.dataclass(frozen=True)
class Underdamped(Chain):
    """A tested chain that keeps its direction: as exact as MALA, in fewer steps.

    It costs one gradient more than it has steps. A step of one size is accepted about
    as often as MALA's. docs/sampling.md compares the two.

    Attributes:
      num_steps, step_size, space, start: of `Chain`.
      friction: of `jebm.underdamped`; a positive number or an array []. The chain keeps
        its direction for a time 1 / friction, that is 1 / (friction step_size) steps.

    Raises:
      ValueError: as `Chain`, and for a friction that is not positive and finite.

    Example:
      >>> import jebm
      >>> model, params = jebm.load_pretrained("digits")
      >>> exact = Underdamped(num_steps=3, step_size=0.2)
      >>> jebm.sample(jax.random.key(0), model, params, 2, kernel=exact).x.shape
      (2, 8, 8, 1)
    """

    friction: Any = 1.5

    def __post_init__(self):
        super().__post_init__()
        _check_positive("friction", self.friction)

    @property
    def kernel(self) -> langevin.Kernel:
        """Returns `underdamped.underdamped` at the friction."""
        return underdamped.underdamped(self.friction)

    @property
    def adjusted(self) -> bool:
        """Returns True."""
        return True


@_pytree("step_size", "inverse_temperatures")
@dataclasses.dataclass(frozen=True)
class Tempered(Chain):
    """Parallel tempering in eps-space: it mixes where one chain does not.

    Each step costs one gradient per inverse temperature.

    Attributes:
      num_steps, step_size, space, start: of `Chain`; space must be "eps" and start
        "normal", where the replica at b = 0 is known exactly.
      inverse_temperatures: b rising from 0 to 1, numbers or an array [R]; None for
        `tempering.temperature_schedule()`.
      adjusted: whether each move is tested as MALA's are.

    Raises:
      ValueError: as `Chain`, and for inverse temperatures that do not rise from 0 to 1.

    Example:
      >>> Tempered(num_steps=20, inverse_temperatures=(0.0, 0.5, 1.0)).num_steps
      20
    """

    inverse_temperatures: Any = None
    adjusted: bool = False

    def __post_init__(self):
        super().__post_init__()
        if (self.space, self.start) != ("eps", "normal"):
            raise ValueError(
                "a tempered chain moves in space 'eps' from start 'normal', got "
                f"{self.space!r} and {self.start!r}"
            )
        if self.inverse_temperatures is not None:
            tempering.check_inverse_temperatures(self.inverse_temperatures)

    @property
    def kernel(self) -> langevin.Kernel:
        """Returns `tempering.tempered` at the inverse temperatures."""
        b = self.inverse_temperatures
        b = tempering.temperature_schedule() if b is None else jnp.asarray(b)
        return tempering.tempered(b, adjusted=self.adjusted)


KERNELS = {
    "langevin": Langevin,
    "mala": MALA,
    "underdamped": Underdamped,
    "tempered": Tempered,
}


# A draw of p_beta itself: transported noise.
ANCESTRAL = Langevin(num_steps=0, space="eps")


@dataclasses.dataclass(frozen=True)
class Chains:
    """The chains that a model is sampled by unless the caller passes another.

    Attributes:
      prior: of the tilted prior.
      posterior: of p(z | x); None for a draw of the encoder alone where there is one,
        and else 20 Langevin steps of 0.1.
    """

    prior: Chain = Langevin(num_steps=40, step_size=0.4)
    posterior: Chain | None = None
