"""The log-density of one position, for samplers of other libraries."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jebm import checks, types
from jebm.chains import decode, reach
from jebm.densities import one_chain
from jebm.langevin import normal_like
from jebm.model import Model, Params, float_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogDensity:
    """log N(eps; 0, I) - E(T(eps)) of one position, + log p(x | T(eps)) given an image.

    Made by `logdensity_fn`. It is a function of eps and a pytree of its arrays, so that
    it passes through jit and vmap, over images or over the parameters of many seeds.

    Attributes:
      model: the model.
      params: its parameters.
      x: one image [H, W, C] in [0, 1], or None.
    """

    model: Model = dataclasses.field(metadata={"static": True})
    params: Params
    x: jax.Array | None

    def __call__(self, position: types.Position) -> types.Scalar:
        """Returns the log-density of eps, in nats, up to log Z.

        Args:
          position: eps, a tuple bottom to top of [*shape_i]; no batch axis.

        Returns:
          [], nats.
        """
        checks.position(self.model, position)
        return one_chain(self.model, self.params, "eps", self.x, 1.0)(position)

    def potential(self, position: types.Position) -> types.Scalar:
        """Returns minus the log-density, [] in nats: numpyro's potential."""
        return -self(position)

    @property
    def size(self) -> int:
        """Counts the latent units in all: the dimension of a position."""
        return sum(math.prod(shape) for shape in self.model.backbone.latent_shapes)

    def init(self, key: types.Key) -> types.Position:
        """Draws a position to start at, from N(0, I): a draw of the untilted prior."""
        dtype = float_dtype(self.params)
        shapes = self.model.backbone.latent_shapes
        return normal_like(key, tuple(jnp.zeros(shape, dtype) for shape in shapes))

    def latents(self, position: types.Position) -> types.Position:
        """Maps eps to z = T(eps), a tuple bottom to top of [*shape_i]."""
        return jax.tree.map(lambda z: z[0], self._reached(position)[0])

    def image(self, position: types.Position) -> Float[jax.Array, "h w c"]:
        """Maps eps to E[x | T(eps)], [H, W, C] in [0, 1]."""
        return decode(self.model, self.params, *self._reached(position))[0]

    def _reached(self, position):
        checks.position(self.model, position)
        batched = jax.tree.map(lambda eps: eps[None], tuple(position))
        return reach(self.model, self.params, batched, "eps")


def logdensity_fn(
    model: Model, params: Params, x: types.Image | None = None
) -> LogDensity:
    """Makes the log-density of one position that other libraries' samplers take.

    The prior's without `x`, the posterior's with it, both in eps-space, where the
    Gaussian hierarchy is N(0, I) at every layer. (arXiv 2306.06323)

    Args:
      model: the model.
      params: its parameters.
      x: one image [H, W, C], floating-point in [0, 1], or None.

    Returns:
      A `LogDensity`: position -> [] in nats, up to log Z, with the maps `latents` and
      `image` from a position, and `init` to draw one.

    Raises:
      ValueError: if `params` or `x` do not fit the model.

    Example:
      >>> import jebm
      >>> model, params = jebm.load_pretrained("digits")
      >>> logdensity = logdensity_fn(model, params)
      >>> position = logdensity.init(jax.random.key(0))
      >>> logdensity(position).shape, logdensity.image(position).shape
      ((), (8, 8, 1))
    """
    checks.params(model, params)
    if x is not None:
        checks.image(model, x)
        x = jnp.asarray(x, float_dtype(params))
    return LogDensity(model, params, x)
