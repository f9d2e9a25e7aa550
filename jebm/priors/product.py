"""Energies that were learned apart, added when they are sampled.

    g(eps) = sum_j w_j g_j(eps)

Each g_j holds what one law knows of eps: a class, an attribute, all images. With
weights 1, 1, -1 of two attributes and of all images the sum is the law of images with
both, if the attributes are independent given eps. (arXiv 2004.06030)
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp

from jebm.hierarchy import log_standard_normal
from jebm.kernels import ENCODED, MALA, Chain, Tempered
from jebm.priors import annealed, walks
from jebm.priors.base import UNNORMALISED, Law, Prior

_CHAIN = MALA(400, 0.3)


@dataclasses.dataclass(frozen=True)
class _Product(Prior):
    """The prior of `product`; its state is (weights, states)."""

    density: ClassVar[str | None] = UNNORMALISED
    cannot: ClassVar[str] = "draw without a chain"

    parts: tuple[Prior, ...] = ()
    chain: Chain = _CHAIN

    def init(self, key, frozen, draws):
        """Returns weights of 1 and untrained parts, of the shapes that a law has."""
        states = tuple(part.init(key, frozen, draws) for part in self.parts)
        return jnp.ones(len(states), frozen.dtype), states

    def sample(self, key, frozen, state, num, effort=1):
        """Draws by a tested chain from N(0, I)."""

        def logdensity(eps):
            batch = tuple(e[None] for e in eps)
            tilt = self.log_tilt(frozen, state, batch)
            return (log_standard_normal(batch) + tilt)[0]

        keys, chain = walks.example_keys(key, num, walks.STEPS), self.chain
        return walks.run(
            keys, frozen.noise(key, num), logdensity, chain.num_steps * effort,
            chain.step_size, kernel=chain.kernel,
        )[0]  # fmt: skip

    def log_tilt(self, frozen, state, eps):
        """Computes the weighted sum of the parts' g, [N] in nats, up to a constant."""
        weights, states = state
        parts = zip(self.parts, states, strict=True)
        tilts = [part.log_tilt(frozen, state, eps) for part, state in parts]
        return weights @ jnp.stack(tilts)

    def log_z(self, key, frozen, state):
        """Estimates log Z by annealing: see `jebm.priors.annealed`."""
        given = frozen, state
        return annealed.log_z(key, self._tilt, given, frozen.size, frozen.dtype)

    def _tilt(self, given, eps):
        """Computes g of one flat eps [D]."""
        frozen, state = given
        return self.log_tilt(frozen, state, frozen.layers(eps[None]))[0]

    def trained(self, state):
        """Leaves out what only learning reads of each part."""
        weights, states = state
        parts = zip(self.parts, states, strict=True)
        return weights, tuple(part.trained(state) for part, state in parts)


def product(
    laws: Sequence[Law],
    weights: Sequence[float] | None = None,
    chain: Chain = _CHAIN,
) -> Law:
    """Makes the law of the weighted sum of the tilts of several laws.

    Args:
      laws: of one frozen generator, each with a density.
      weights: w_j; None for 1 each.
      chain: that draws, from N(0, I) in eps-space: a `jebm.MALA` or any other whose
        steps are tested, but for `jebm.Tempered`.

    Raises:
      ValueError: for no law, a law without a density, weights of another number, or
        another chain.

    Example:
      >>> import jax, jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> gaussian = Law(jebm.priors.Gaussian(), frozen, ())
      >>> both = product([gaussian, gaussian], chain=MALA(2, 0.3))
      >>> both.logdensity(both.sample(jax.random.key(0), 4)).shape
      (4,)
    """
    if not laws:
        raise ValueError("laws must hold at least one")
    weights = [1.0] * len(laws) if weights is None else list(weights)
    if len(weights) != len(laws):
        raise ValueError(
            f"weights must be one of each of {len(laws)} laws, got {len(weights)}"
        )
    for law in laws:
        if law.prior.density is None:
            raise ValueError(f"{type(law.prior).__name__} has no density to add")
    tested = isinstance(chain, Chain) and chain.adjusted
    if not tested or isinstance(chain, Tempered):
        raise ValueError(
            "chain must have a Metropolis test, such as jebm.MALA(400, 0.3), and must "
            f"not be jebm.Tempered, got {chain!r}"
        )
    if chain.space != "eps" or chain.start in ENCODED:
        raise ValueError(
            "chain must move in space 'eps' from start 'normal', got "
            f"{chain.space!r} and {chain.start!r}"
        )
    frozen = laws[0].frozen
    state = jnp.asarray(weights, frozen.dtype), tuple(law.state for law in laws)
    return Law(_Product(tuple(law.prior for law in laws), chain), frozen, state)
