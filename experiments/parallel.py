"""The only module that knows about devices.

A step runs under `jax.pmap` with one named axis; state is replicated, examples are
sharded together with their chains, so the only collectives are means over devices.
"""

import os
import pathlib
import platform
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AXIS = "devices"


def pmap(
    step: Callable, devices: Sequence[jax.Device], donate: bool = True
) -> Callable:
    """Maps `step(key, state, batch)` over devices, which all take the same key.

    The state's buffers are reused for the result unless `donate` is False.
    """
    return jax.pmap(
        step,
        AXIS,
        in_axes=(None, 0, 0),
        devices=devices,
        donate_argnums=(1,) if donate else (),
    )


def mean(tree: Any) -> Any:
    """Mean over all devices; inside a pmapped step."""
    return jax.lax.pmean(tree, AXIS)


def example_index(local_batch: int) -> jax.Array:
    """Indices in the global batch of this device's examples; inside a pmapped step."""
    return jax.lax.axis_index(AXIS) * local_batch + jnp.arange(
        local_batch, dtype=jnp.int32
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a pytree to every device, with a leading device axis."""
    sharding = _sharding(devices)
    return jax.tree.map(
        lambda x: jax.device_put(np.stack([np.asarray(x)] * len(devices)), sharding),
        tree,
    )


def unreplicate(tree: Any) -> Any:
    """The first device's copy, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def split(batch: np.ndarray, num_devices: int) -> np.ndarray:
    """Splits the first axis: [B, ...] to [num_devices, B / num_devices, ...]."""
    return batch.reshape(num_devices, -1, *batch.shape[1:])


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts what `split` has split where it will be worked on."""
    sharding = _sharding(devices)
    return jax.tree.map(lambda x: jax.device_put(x, sharding), tree)


def shard(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Spreads the first axis of every leaf over devices: `split`, and placed there."""
    parts = jax.tree.map(lambda x: split(np.asarray(x), len(devices)), tree)
    return place(parts, devices)


def unshard(tree: Any) -> Any:
    """The inverse of `shard`, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def hardware() -> str:
    """The devices of this process in words, with the release of JAX."""
    devices = jax.local_devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":
        kind = f"CPU device of {_processor()}, {_cores()} cores"
    return f"{len(devices)} x {kind}, jax {jax.__version__}"


def _cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor():
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    return next(names, platform.machine()).strip()


def _sharding(devices):
    # That which `pmap` returns: any other would make its second call compile.
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
