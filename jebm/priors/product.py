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
from jebm.kernels import MALA, Chain
from jebm.priors import walks
from jebm.priors.base import UNNORMALISED, Law, Prior

_CHAIN = MALA(400, 0.3)


@dataclasses.dataclass(frozen=True)
class _Product(Prior):
    """The prior of `product`; its state is (weights, states)."""

    density: ClassVar[str | None] = UNNORMALISED
    cannot: ClassVar[str] = "draw without a chain"

    parts: tuple[Prior, ...] = ()
    chain: Chain = _CHAIN

    def sample(self, key, frozen, state, num, effort=1):
        """Draws by a tested chain from N(0, I)."""

        def logdensity(eps):
            batch = tuple(e[None] for e in eps)
            tilt = self.log_tilt(frozen, state, batch)
            return (log_standard_normal(batch) + tilt)[0]

        keys = walks.example_keys(key, num, walks.STEPS)
        steps = self.chain.num_steps * effort
        start = frozen.noise(key, num)
        return walks.run(keys, start, logdensity, steps, self.chain.step_size)[0]

    def log_tilt(self, frozen, state, eps):
        """Computes the weighted sum of the parts' g, [N] in nats, up to a constant."""
        weights, states = state
        parts = zip(self.parts, states, strict=True)
        tilts = [part.log_tilt(frozen, state, eps) for part, state in parts]
        return weights @ jnp.stack(tilts)

    def trained(self, state):
        """Leaves out what only learning reads of each part."""
        weights, states = state
        parts = zip(self.parts, states, strict=True)
        return weights, tuple(part.trained(state) for part, state in parts)


def product(
    laws: Sequence[Law],
    weights: Sequence[float] | None = None,
    chain: MALA = _CHAIN,
) -> Law:
    """Makes the law of the weighted sum of the tilts of several laws.

    Args:
      laws: of one frozen generator, each with a density.
      weights: w_j; None for 1 each.
      chain: that draws; its steps are tested.

    Raises:
      ValueError: for no law, a law without a density, or weights of another number.

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
    if not isinstance(chain, MALA):
        raise ValueError(f"chain must be a jebm.MALA, got {chain!r}")
    frozen = laws[0].frozen
    state = jnp.asarray(weights, frozen.dtype), tuple(law.state for law in laws)
    return Law(_Product(tuple(law.prior for law in laws), chain), frozen, state)
