"""The only module that knows about devices and processes.

A step runs under `jax.pmap` with one named axis over the devices of all processes;
state is replicated, examples are sharded together with their chains, so the only
collectives are means over devices. The first process alone prints, and reads and writes
the directory of a run: the others take part in the steps, from what it shares.
"""

import contextlib
import io
import os
import pathlib
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from experiments.errors import USER_ERRORS, ConfigError, ProcessFailed
from experiments.runtime import stop

AXIS = "devices"
_HEARTBEAT_SECONDS = 30  # without a sign of life a process is given up
_WEEK_MS = 7 * 24 * 3600 * 1000


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a run; before jax is asked for devices.

    Args:
      coordinator: address HOST:PORT of the first process; "auto" where the cluster
        tells all (TPU pods, SLURM, Open MPI); None for a single process.
      num_processes: how many there are.
      process_id: which of them this is, from 0.

    Raises:
      ConfigError: if the arguments do not go together or nothing can be detected.
    """
    if coordinator in (None, "auto"):
        if (num_processes, process_id) != (None, None):
            raise ConfigError(
                "--num_processes and --process_id go with --coordinator=HOST:PORT"
            )
        arguments = {}
    else:
        arguments = _address(coordinator, num_processes, process_id)
    if coordinator is None:
        return
    try:
        jax.distributed.initialize(
            **arguments, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"--coordinator={coordinator}: {error}") from error


def _address(coordinator, num_processes, process_id) -> dict[str, Any]:
    """Returns what tells JAX where the processes meet, and which this one is."""
    if num_processes is None or process_id is None:
        raise ConfigError(
            f"--coordinator={coordinator} needs --num_processes and --process_id"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id must lie in [0, {num_processes}), got {process_id}"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }


def is_first() -> bool:
    """Tells whether this process prints, and reads and writes the run."""
    return jax.process_index() == 0


def devices() -> list[jax.Device]:
    """Lists those of all processes; first those of the first process, and so on."""
    return sorted(jax.devices(), key=lambda d: (d.process_index, d.id))


def num_here(devices: Sequence[jax.Device]) -> int:
    """Counts the `devices` of this process."""
    return len(_here(devices))


def pmap(
    step: Callable, devices: Sequence[jax.Device], donate: bool = True
) -> jax.stages.Wrapped:
    """Maps `step(key, state, batch)` over devices, which all take the same key.

    State and batch are those of this process's devices, with a leading device axis.
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
    """Takes the mean over all devices; inside a pmapped step."""
    return jax.lax.pmean(tree, AXIS)


def example_index(local_batch: int) -> jax.Array:
    """Returns where this device's examples stand in the global batch; inside a step."""
    return jax.lax.axis_index(AXIS) * local_batch + jnp.arange(
        local_batch, dtype=jnp.int32
    )


def gather(x: jax.Array) -> jax.Array:
    """Joins the first axes of all devices' arrays; inside a step."""
    return jax.lax.all_gather(x, AXIS, tiled=True)


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a pytree to every device, with a leading axis over those of here."""
    num = num_here(devices)
    return place(jax.tree.map(lambda x: np.stack([np.asarray(x)] * num), tree), devices)


def unreplicate(tree: Any) -> Any:
    """Returns the first device's copy, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def split(batch: np.ndarray, num_devices: int) -> np.ndarray:
    """Splits the first axis: [B, ...] to [num_devices, B / num_devices, ...]."""
    return batch.reshape(num_devices, -1, *batch.shape[1:])


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts what `split` has split, for the devices of here, where it is worked on."""
    here = [devices[i] for i in _here(devices)]
    return jax.tree.map(lambda x: jax.device_put(x, _sharding(x, here)), tree)


def shard(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Spreads the first axis of every leaf over devices: `split`, and placed there.

    Every process gives the whole, and places the share of its own devices.
    """
    here = _here(devices)
    parts = jax.tree.map(lambda x: split(np.asarray(x), len(devices))[here], tree)
    return place(parts, devices)


def unshard(tree: Any) -> Any:
    """Undoes `shard`, to NumPy arrays; all processes call it together."""
    parts = multihost_utils.process_allgather(tree, tiled=True)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def hardware() -> str:
    """Describes the devices of all processes in words, with the release of JAX."""
    device = jax.local_devices()[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = f"CPU device of {_processor()}, {_cores()} cores"
    return f"{jax.device_count()} x {kind}, jax {jax.__version__}"


def _cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor():
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
    return next(names, platform.machine()).strip()


def share(tree: Any) -> Any:
    """Gives every process the arrays of the first one, bit for bit.

    All call it together, with trees of the same shapes.
    """
    if jax.process_count() == 1:
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    # JAX broadcasts by a sum, which is exact of integers: that of floats turns -0.0
    # and subnormal numbers to 0.0.
    bits = jax.tree.map(lambda x: x.view(f"u{x.itemsize}"), arrays)
    shared = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda x, like: x.view(like.dtype), shared, arrays)


def agree(*flags: bool) -> list[bool]:
    """Tells for each flag whether any process has raised it; all call it together."""
    raised = np.array([bool(flag) for flag in flags])
    by_process = multihost_utils.process_allgather(raised)
    return by_process.any(axis=0).tolist()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Makes work fail in every process if it fails in one; all enter it together.

    Raises:
      ProcessFailed: where it was another that failed.
    """
    try:
        yield
    except Exception:
        agree(True)
        raise
    if agree(False) == [True]:
        raise ProcessFailed("another process has ended with an error, printed there")


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Lets one of the processes print, none end before all, and all fail with one."""
    if not jax.distributed.is_initialized():
        yield
        return
    try:
        with contextlib.redirect_stdout(sys.stdout if is_first() else io.StringIO()):
            yield
    except stop.Stopped as stopped:
        if is_first():
            print(stopped)
    except BaseException as error:
        if isinstance(error, USER_ERRORS):
            print(f"error: {error}", file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            reason = str(error).splitlines()[0]
            print(f"error: another process may have ended: {reason}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        # An orderly end would wait for the others, which wait for this one: it is its
        # death that ends them.
        os._exit(1)
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key="end", timeout_ms=_WEEK_MS)
    jax.distributed.shutdown()


def _here(devices):
    """Returns where the devices of this process stand among `devices`."""
    own = jax.process_index()
    return [i for i, device in enumerate(devices) if device.process_index == own]


def _sharding(x, devices):
    # That which `pmap` returns: any other would make its second call compile.
    if not getattr(jax.config, "jax_pmap_shmap_merge", True):  # of older JAX
        return jax.sharding.PmapSharding.default(x.shape, devices=devices)
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
