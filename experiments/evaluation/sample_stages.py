"""Samples by all devices, as stages from indices of samples to images.

Sample n draws from the fold of a key with n, on whatever device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from experiments.runtime import parallel
from jebm.chains import decode, example_keys, run_chains


def sampler(
    model: jebm.Model, params: jebm.Params
) -> Callable[..., tuple[Callable, Callable]]:
    """Makes the stages from what `given` returns to latents, and on to images.

    Returns:
      a function of a key, a chain and a temperature that returns these two stages; the
      decoder is the same for all, so that it compiles once.
    """
    devices = jax.local_devices()
    replicated = parallel.replicate(params, devices)

    def decoded(key, params, latents):
        del key
        return decode(model, params, latents)

    decoder = parallel.pmap(decoded, devices, donate=False)

    def stages(key, chain, temperature):
        def draw(key, params, batch):
            keys = example_keys(key, batch["index"])
            return run_chains(
                keys, model, params, chain, x=batch.get("x"), temperature=temperature
            ).latents

        chains = parallel.pmap(draw, devices, donate=False)
        return (
            lambda batch: chains(key, replicated, batch),
            lambda latents: decoder(None, replicated, latents),
        )

    return stages


def given(heldout, num: int | None) -> Callable[[np.ndarray], Any]:
    """Makes of indices what the first stage takes, sharded over devices.

    With `num`, also held-out images, uint8 [N, H, W, C], spread over so many samples.
    """

    def first(indices):
        batch = {"index": indices.astype(np.int32)}
        if num is not None:
            fewer = min(num, len(heldout))
            spread = indices % fewer * len(heldout) // fewer
            batch["x"] = np.asarray(to_unit(jnp.asarray(heldout[spread])))
        return parallel.shard(batch, jax.local_devices())

    return first
