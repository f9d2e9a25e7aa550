"""Compiles an experiment for a TPU without having one; prints what a chip must hold.

    pip install -e '.[tpu-aot]'
    python -m tools.speed.tpu_memory --config=experiments/configs/cifar10_nvae.py
        --image_shape=32,32,3 [--topology=v5e:2x4] [--config.FIELD=...]

The TPU's own compiler compiles the train step, of `learning.batch_size` images over all
chips, and the sampler, of `eval.batch_size` images on one. For each the tool prints
what a chip must hold (arguments, results and intermediate values; v5e has 16 GiB), and
its collectives, of which none may be in a loop. It needs no data.
"""

import os
import re
import sys
import time

# Before jax looks for devices: there are none.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from ml_collections import config_flags

import jebm
from experiments import command_line, options
from experiments.errors import USER_ERRORS, ConfigError
from experiments.models import build_model
from experiments.options import Learning
from experiments.runtime import compilation, parallel
from experiments.training import learner

COLLECTIVES = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def devices_of(topology: str) -> list[jax.Device]:
    """Returns the chips that programs can be compiled for.

    Raises:
      ConfigError: for an unknown topology, or if the TPU's compiler is not installed.
    """
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:  # of the plugin, whatever it raises
        raise ConfigError(
            f"no topology {topology!r}: {str(error).splitlines()[0]} (the compiler "
            "is that of pip install -e '.[tpu-aot]')"
        ) from None


def lower_step(learning: Learning, model: jebm.Model, devices):
    """Lowers the train step of all chips."""
    num, batch = len(devices), learning.batch_size
    if batch % num:
        raise ConfigError(
            f"learning.batch_size must be a multiple of the {num} chips, got {batch}"
        )
    key = jax.eval_shape(lambda: jax.random.key(0))

    def create(key):
        backbone = jebm.init(key, model).backbone  # of a first stage, if there is one
        return learner.create_state(key, learning, model, backbone)

    state = jax.eval_shape(create, key)

    def each(a):
        return jax.ShapeDtypeStruct((num, *a.shape), a.dtype)

    images = jax.ShapeDtypeStruct((batch, *model.image_shape), np.uint8)
    pool, images = jax.eval_shape(
        lambda tree: jax.tree.map(lambda a: parallel.split(a, num), tree),
        (state.learner.persistent, images),
    )
    shared = jax.tree.map(
        each, state.replace(learner=state.learner.replace(persistent=()))
    )
    state = shared.replace(learner=shared.learner.replace(persistent=pool))
    step = learner.make_train_step(learning, model)
    return parallel.pmap(step, devices).lower(key, state, images)


def lower_sampler(batch_size: int, model: jebm.Model, device):
    """Lowers prior chains and decoder of one chip."""

    def sampler(key, params):
        return jebm.sample(key, model, params, batch_size).x

    where = jax.sharding.SingleDeviceSharding(device)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: jebm.init(key, model), key)
    return jax.jit(sampler, in_shardings=where, out_shardings=where).lower(key, params)


def bytes_per_chip(compiled) -> int:
    """Counts the bytes that a chip holds while the program runs."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def collectives(text: str) -> tuple[int, int]:
    """Counts the collectives of a compiled program, and those inside a loop."""
    bodies = dict(
        re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    )
    calls = {
        name: set(re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", body))
        for name, body in bodies.items()
    }
    looped, todo = set(), re.findall(r"\b(?:body|condition)=%?([\w.\-]+)", text)
    while todo:
        name = todo.pop()
        if name not in looped:
            looped.add(name)
            todo += calls.get(name, ())
    found = {
        name: len(re.findall(rf" (?:{COLLECTIVES})(?:-start)?\(", body))
        for name, body in bodies.items()
    }
    return sum(found.values()), sum(found[name] for name in looped & found.keys())


def main(argv: list[str]) -> None:
    """Compiles both programs and prints the numbers."""
    del argv  # its flags are parsed, and it may hold nothing else
    try:
        shape = tuple(int(n) for n in flags.FLAGS.image_shape or ())
        if len(shape) != 3 or min(shape) < 1:
            raise ConfigError("--image_shape must be HEIGHT,WIDTH,CHANNELS")
        experiment = options.read(flags.FLAGS.config)
        compilation.set_precision(experiment.matmul_precision)
        model = build_model(experiment, shape)
        devices = devices_of(flags.FLAGS.topology)
        learning, batch_size = experiment.learning, experiment.eval.batch_size
        lowered = {
            f"train step, {learning.batch_size} images on {len(devices)} chips":
                lower_step(learning, model, devices),
        }  # fmt: skip
        if model.energy is not None:
            name = f"sampler, {batch_size} images on 1 chip"
            lowered[name] = lower_sampler(batch_size, model, devices[0])
        for name, program in lowered.items():
            started = time.perf_counter()
            compiled = program.compile()
            total, looped = collectives(compiled.as_text())
            print(
                f"{name}: {bytes_per_chip(compiled) / 2**30:.2f} GiB a chip, {total} "
                f"collectives, {looped} of them in loops (compiled in "
                f"{time.perf_counter() - started:.0f} s)",
                flush=True,
            )
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


def _define_flags():
    """Defines the flags; only the program calls it, as no two may define the same."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("topology", "v5e:2x4", "Kind and grid of chips.")
    flags.DEFINE_list("image_shape", None, "Height, width, channels.")


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=command_line.parse)
