"""Measures how fast images come, and how fast a train step takes them.

    python -m tools.speed.pipeline [--only=CONFIG ...] [--steps=0] [--json=FILE]

For every configuration (or those named) it prints the images a second that
`batches.Batches` delivers. If the data set is not prepared, it makes files of the same
format and size, and says so. With --steps it also times that many train steps; the
large configurations need an accelerator for these.
"""

import argparse
import contextlib
import functools
import importlib
import io
import json
import time

import jax
import numpy as np
from PIL import Image

import jebm
from experiments import options
from experiments.configs import CONFIGS
from experiments.data import datasets, fake, loaders, sources
from experiments.data.batches import prefetched, training_batches
from experiments.errors import ConfigError
from experiments.models import build_model
from experiments.options import Data
from experiments.runtime import parallel
from experiments.training import learner
from tools.arguments import path_argument

_NUM_FILES = 256  # made of a large data set, and read again and again
_FILES = {  # format and size, width and height, in which images are published
    "celeb_a": ("jpeg", (178, 218)),
    "celeb_a_hq/256": ("png", (256, 256)),
    "lsun/church_outdoor": ("webp", (341, 256)),
}


def measure(config_name: str, seconds: float = 2.0, num_steps: int = 0) -> dict:
    """Measures one configuration.

    Args:
      config_name: a file of experiments/configs, without ".py".
      seconds: to read images for.
      num_steps: train steps to time; 0 for none.

    Returns:
      "config", "data", "source" ("prepared" or "made"), "batch_size",
      "pipeline_images_per_second"; with steps, "step_images_per_second" and
      "pipeline_over_step", which is above 1 where no step waits.
    """
    module = importlib.import_module(f"experiments.configs.{config_name}")
    experiment = options.read(module.get_config())
    batch_size = experiment.learning.batch_size
    source, images = _images(experiment.data)
    batches = training_batches(experiment, images, experiment.seed)
    with contextlib.closing(prefetched(batches.dataset(0))) as feed:
        next(feed)  # threads start
        taken, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            next(feed)
            taken += 1
    rate = taken * batch_size / elapsed
    found = {
        "config": config_name,
        "data": experiment.data.name,
        "source": source,
        "batch_size": batch_size,
        "pipeline_images_per_second": rate,
    }
    if num_steps:
        of_step = _step_rate(experiment, batches, images.shape[1:], num_steps)
        found["step_images_per_second"] = of_step
        found["pipeline_over_step"] = rate / of_step
    return found


@functools.lru_cache(maxsize=1)  # many configurations share a data set
def _read(data: Data):
    return datasets.load(data)["train"].images


def _images(data: Data):
    """Returns the images of training, and whether they are prepared or made."""
    try:
        return "prepared", _read(data)
    except ConfigError:
        return "made", _made(data.name)


@functools.cache
def _made(name):
    """Makes smooth images, a little noise on them, enough for a fair measurement."""
    if name not in _FILES:
        images, _ = fake.make(loaders.SHAPES[name], labelled=True)["train"]
        return np.resize(images, (50_000, *images.shape[1:]))
    kind, (width, height) = _FILES[name]
    images, _ = fake.make((height, width, 3), labelled=False)["train"]
    rng, files = np.random.default_rng(0), []
    for image in images[:_NUM_FILES]:
        noise = rng.integers(0, 8, image.shape, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image // 2 + noise).save(buffer, kind)
        files.append(buffer.getvalue())
    encoded = sources.Encoded(files * 8)  # more than any batch
    return loaders.streamed(name, encoded, loaders.Options())


def _step_rate(experiment, batches, image_shape, num_steps):
    """Measures images a second of train steps, after two that compile and warm up."""
    devices = jax.local_devices()
    model, learning = build_model(experiment, image_shape), experiment.learning
    key, backbone = jax.random.key(experiment.seed), None
    if learning.method == "two_stage":
        backbone = jax.jit(jebm.init)(key, model).backbone
    state = learner.create_state(key, learning, model, backbone)
    step_fn = parallel.pmap(learner.make_train_step(learning, model), devices)
    state = learner.distribute(state, devices)
    batch = parallel.shard(batches(0), devices)
    for step in range(2 + num_steps):
        if step == 2:
            jax.block_until_ready(state)
            started = time.perf_counter()
        state, _ = step_fn(key, state, batch)
    jax.block_until_ready(state)
    elapsed = time.perf_counter() - started
    return num_steps * learning.batch_size / elapsed


def main() -> None:
    """Reads the command line, prints a line for each configuration."""
    known = sorted(p.stem for p in CONFIGS.glob("*.py"))
    known = [name for name in known if name not in ("__init__", "default")]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=known, default=known)
    parser.add_argument("--steps", type=int, default=0, help="Train steps to time.")
    parser.add_argument("--json", type=path_argument, help="Writes a list there.")
    arguments = parser.parse_args()
    found = []
    for name in arguments.only:
        found.append(measure(name, num_steps=arguments.steps))
        told = found[-1]
        line = (
            f"{name:20} {told['data']:20} {told['source']:9} "
            f"{told['pipeline_images_per_second']:10,.0f} images/s"
        )
        if arguments.steps:
            line += f", {told['pipeline_over_step']:.1f} times the train step's"
        print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
