"""Measures how the cost of a training step grows with the size of the problem.

    python -m tools.speed.growth [--only=NAME ...] [--repeats=5] [--json=FILE]
        [--picture=FILE] [--page=docs/benchmark.md]

The step is that of the paper's joint learning, `cifar10` with narrow networks and
chains of ten steps. One number varies, the others stay as `USUAL` has them:

    layers     of latents, 16 units each
    batch      images of a step
    side       of the images, in pixels; the decoder begins at 8 and doubles
    devices    that share a batch (of a CPU: forced, on the cores that there are)

Each point has a process of its own. Seconds are medians over the repeats; bytes are
what the compiled step holds on a device beside its arguments and results. The exponent
p of cost ~ size^p is the slope of the logarithms over the last three points, where what
a step costs at any size counts least. The table goes into the page between its marks.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from experiments import options, pictures
from experiments.configs import cifar10
from tools.arguments import path_argument
from tools.speed import benchmark

USUAL = {"layers": 2, "batch": 16, "side": 32, "devices": 1}
SIZES = {
    "layers": (2, 4, 8, 16, 30),
    "batch": (4, 16, 64, 256),
    "side": (16, 32, 64, 128),
    "devices": (1, 2, 4, 8),
}
MARKS = "<!-- growth -->", "<!-- end of growth -->"
_FIRST_SIDE = 8  # that the decoder begins at


def experiment(layers: int, batch: int, side: int) -> options.Experiment:
    """Makes the narrow `cifar10` of so many layers, images and pixels."""
    config = cifar10.get_config()
    stages = (side // _FIRST_SIDE).bit_length()
    config.backbone.latent_dims = (16,) * layers
    config.backbone.prior_widths = (64, 64)
    config.backbone.decoder_widths = (64,) * stages
    config.energy.widths = ((64, 64),) * layers
    config.learning.batch_size = batch
    for chain in config.chains.values():
        chain.num_steps = 10
    return options.read(config)


def point(
    layers: int, batch: int, side: int, devices: int, repeats: int
) -> dict[str, float]:
    """Measures the step on this process's devices: "seconds" and "bytes"."""
    chosen, shape = experiment(layers, batch, side), (side, side, 3)
    step, _, program = benchmark.our_step(chosen, shape, devices)
    memory = program.memory_analysis()
    if memory is None:
        raise RuntimeError("this platform does not say what a program holds")
    seconds = benchmark.alternate({"step": step}, repeats)["step"]
    return {
        "seconds": float(np.median(seconds)),
        "bytes": memory.temp_size_in_bytes,
    }


def measure(name: str, size: int, repeats: int) -> dict[str, float]:
    """Measures a point in a process of its own, with as many devices as it asks for."""
    sizes = USUAL | (
        {"devices": size, "batch": 64} if name == "devices" else {name: size}
    )
    forced = f"--xla_force_host_platform_device_count={sizes['devices']}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
    }
    code = (
        "import json, sys; from tools.speed import growth; "
        "print(json.dumps(growth.point(**json.loads(sys.argv[1]))))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, json.dumps(sizes | {"repeats": repeats})],
        env=environment, cwd=benchmark.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{name} {size}: {ended.stderr}")
    return json.loads(ended.stdout.splitlines()[-1])


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Fits p of cost ~ size^p to the last three points.

    Example:
      >>> round(exponent([1, 2, 4, 8], [9.0, 4.0, 16.0, 64.0]), 2)
      2.0
    """
    slope, _ = np.polyfit(np.log(sizes[-3:]), np.log(costs[-3:]), 1)
    return float(slope)


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Formats a row for each number that varies, in Markdown."""
    lines = ["| what varies | sizes | seconds a step | p | MiB | p |", "|---" * 6 + "|"]
    for name, points in results.items():
        sizes = [int(size) for size in points]
        cells = [name, ", ".join(map(str, sizes))]
        for unit, scale in (("seconds", 1), ("bytes", 2**20)):
            costs = [found[unit] / scale for found in points.values()]
            cells.append(", ".join(f"{cost:.3g}" for cost in costs))
            cells.append(f"{exponent(sizes, costs):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(
    results: dict[str, dict[str, dict[str, float]]], path: pathlib.Path
) -> None:
    """Draws seconds and bytes against each size, on logarithmic axes."""
    figure = Figure(figsize=(3 * len(results), 5.5), layout="constrained")
    rows = figure.subplots(2, len(results), sharex="col", sharey="row", squeeze=False)
    for column, (name, points) in zip(rows.T, results.items(), strict=True):
        sizes = [int(size) for size in points]
        for axes, unit, scale in zip(
            column, ("seconds", "bytes"), (1, 2**20), strict=True
        ):
            costs = [found[unit] / scale for found in points.values()]
            axes.plot(sizes, costs, "o-")
            axes.set(xscale="log", yscale="log")
            axes.set_xticks(sizes, map(str, sizes), minor=False)
            axes.set_xticks([], minor=True)
            axes.set_title(f"p = {exponent(sizes, costs):.2f}")
        column[1].set_xlabel(name)
    rows[0, 0].set_ylabel("seconds a step")
    rows[1, 0].set_ylabel("MiB a device")
    pictures.save_figure(figure, path, "How the cost of a training step grows.")


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    for name in ("json", "picture", "page"):
        parser.add_argument(f"--{name}", type=path_argument)
    given = parser.parse_args(argv)
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")
    if given.page and given.only:
        parser.error("--page holds the rows of all sizes: leave --only out")
    results: dict[str, dict[str, dict[str, float]]] = {}
    asked = [(name, size) for name in given.only or SIZES for size in SIZES[name]]
    for name, size in tqdm(asked, desc="points", unit="point"):
        found = measure(name, size, given.repeats)
        results.setdefault(name, {})[str(size)] = found
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.picture:
        picture(results, given.picture)
    if given.page:
        benchmark.write_page(table(results), given.page, MARKS)


if __name__ == "__main__":
    main()
