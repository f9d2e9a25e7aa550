"""Times training and sampling, each against another way to do the same.

    pip install -e '.[experiments,bench]'
    python -m tools.speed.benchmark [--only=NAME ...] [--repeats=7] [--json=FILE]
        [--picture=FILE] [--page=docs/benchmark.md]

The two sides of a benchmark run in one process and take turns. The table has the
medians over the repeats, without the first turn, and how many times faster ours is:

    cifar10_step      a training step of `cifar10`, all its Langevin steps, batch 16;
                      against plain PyTorch (tools/speed/torch_peer.py)
    mnist_step        a training step of `mnist`; against the same
    prior_chain       the chains of `cifar10` by batch size; against the same
    posterior_chain
    bfloat16_step     `cifar10_step` and `posterior_chain` with compute_dtype
    bfloat16_chain    "bfloat16"; against PyTorch's autocast to it, PyTorch in float32,
                      and ours in float32
    mala              the prior of `cifar10` by `jebm.mala`; against BlackJAX
    matrix_product    the posterior chain's multiplications a second, counted as a
                      direct convolution has them; against one large matrix product
    first_sample      a new process to its first samples of `cifar10`, the programs
                      compiled before; against compiling them
    first_step        the same of `digits` to its first training step
    pipeline          making a batch of `cifar10`; against the step that takes it
    memory            of the compiled prior chain by length and batch; no other side

Everything runs on the cores that the process may use. Images are noise, as no time
here depends on them. The table goes into the page between its two marks.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments import options
from experiments.configs import cifar10, mnist_uncorrected
from experiments.data.batches import Batches
from experiments.data.pixels import to_unit
from experiments.models import build_model, model_spec
from experiments.options import Experiment
from experiments.runtime import parallel
from experiments.training import learner
from jebm import langevin, mala
from jebm.chains import example_keys, run_chains
from jebm.densities import logdensity
from jebm.products import COMPUTE_DTYPES
from tools.arguments import path_argument

CIFAR10, MNIST = (32, 32, 3), (28, 28, 1)
# Steps that are timed at once, by batch size: a tenth of a second and more of either
# side, next to which the other's idle threads (which spin for a while) do not count.
PRIOR_STEPS = {1: 3000, 16: 600, 100: 300, 1000: 60}
POSTERIOR_STEPS = {1: 40, 16: 10, 100: 2, 1000: 1}
SIDE = 2048  # of the matrices of the large product
ROOT = pathlib.Path(__file__).parents[2]
MARKS = "<!-- table -->", "<!-- end of table -->"


class Missing(Exception):
    """Says that a benchmark needs a library that is not installed."""


def alternate(sides: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Measures the seconds of each side in turns; the first turn is not counted."""
    seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(ours: Callable, theirs: Callable, peer: str, repeats: int) -> dict:
    """Measures median seconds of both, with quartiles, and the ratio of the medians."""
    seconds = alternate({"ours": ours, "theirs": theirs}, repeats)
    return against(seconds["ours"], peer, seconds["theirs"])


def against(ours: list[float], peer: str, theirs: list[float]) -> dict:
    """Makes an entry of the results."""
    return {
        "seconds": float(np.median(ours)),
        "quartiles": np.quantile(ours, [0.25, 0.75]).tolist(),
        "peer": peer,
        "peer_seconds": float(np.median(theirs)),
        "peer_quartiles": np.quantile(theirs, [0.25, 0.75]).tolist(),
        "speedup": float(np.median(theirs) / np.median(ours)),
    }


def by_batch(compared: dict[int, dict], num_steps: dict[int, int]) -> dict:
    """Joins entries of several batch sizes to one, with their steps per second."""
    for batch, entry in compared.items():
        for side in ("", "peer_"):
            rate = num_steps[batch] / entry[f"{side}seconds"]
            entry[f"{side}steps_per_second"] = rate
    return {
        "peer": compared[16]["peer"],
        "speedup": compared[16]["speedup"],  # at the batch of `cifar10_step`
        "batch": {str(batch): entry for batch, entry in compared.items()},
    }


def cifar10_step(repeats: int) -> dict:
    """Measures the paper's joint step."""
    config = cifar10.get_config()
    config.learning.batch_size = 16
    return train_step(options.read(config), CIFAR10, repeats)


def mnist_step(repeats: int) -> dict:
    """Measures a step of variational training with persistent chains."""
    return train_step(options.read(mnist_uncorrected.get_config()), MNIST, repeats)


def train_step(experiment: Experiment, image_shape, repeats) -> dict:
    """Measures a training step against the peer's, from the same parameters."""
    ours, params, _ = our_step(experiment, image_shape)
    peer = load_peer(model_spec(experiment, image_shape), params)
    return compare(ours, their_step(peer, experiment), title(peer), repeats)


def our_step(
    experiment: Experiment, image_shape, num_devices: int = 1
) -> tuple[Callable, jebm.Params, jax.stages.Compiled]:
    """Compiles a training step.

    Returns it, the parameters that it starts from, and its program.
    """
    model, devices = build_model(experiment, image_shape), jax.local_devices()
    devices, key = devices[:num_devices], jax.random.key(experiment.seed)
    learning = experiment.learning
    state = learner.create_state(key, learning, model)
    params = jax.device_get(state.learner.params)
    state = learner.distribute(state, devices)
    images = parallel.split(noise(learning.batch_size, image_shape), num_devices)
    step = parallel.pmap(learner.make_train_step(learning, model), devices)
    program = step.lower(key, state, images).compile()

    def ours():
        nonlocal state
        state, metrics = program(key, state, images)
        jax.block_until_ready((state, metrics))

    return ours, params, program


def their_step(peer, experiment: Experiment) -> Callable:
    """Makes the peer's training step."""
    channels, height, width = peer.image_shape
    images = noise(experiment.learning.batch_size, (height, width, channels))
    trainer = torch_peer().Trainer(peer, experiment.learning)
    return lambda: trainer.step(to_torch(images))


def prior_chain(repeats: int) -> dict:
    """Measures Langevin steps of the tilted prior."""
    return chains("prior", PRIOR_STEPS, repeats)


def posterior_chain(repeats: int) -> dict:
    """Measures Langevin steps of the posterior, each through the generator and back."""
    return chains("posterior", POSTERIOR_STEPS, repeats)


def chains(name, num_steps, repeats) -> dict:
    """Measures the chain of `cifar10` of that name, ours against the peer's."""
    model, params, spec = cifar10_model()
    peer = load_peer(spec, params)
    compared = {}
    for batch, steps in num_steps.items():
        run = our_chain(model, params, name, batch, steps)
        x = to_torch(noise(batch, CIFAR10)) if name == "posterior" else None
        chain, start = spec["chains"][name], peer.start(batch)
        theirs = functools.partial(peer.run, start, chain, steps, x)
        compared[batch] = compare(run, theirs, title(peer), repeats)
    return by_batch(compared, num_steps)


def bfloat16_step(repeats: int) -> dict:
    """Measures the paper's joint step with products of bfloat16 operands."""
    config, ours = cifar10.get_config(), {}
    config.learning.batch_size = 16
    for dtype in COMPUTE_DTYPES:
        config.learning.compute_dtype = dtype
        experiment = options.read(config)
        ours[dtype], params, _ = our_step(experiment, CIFAR10)
    peers = load_peers(model_spec(experiment, CIFAR10), params)
    theirs = {name: their_step(peer, experiment) for name, peer in peers.items()}
    return of_rows(in_bfloat16("bfloat16_step", ours, theirs, repeats))


def bfloat16_chain(repeats: int) -> dict:
    """Measures the posterior chain with products of bfloat16 operands."""
    model, params, spec = cifar10_model()
    models = {dtype: jebm.with_compute_dtype(model, dtype) for dtype in COMPUTE_DTYPES}
    peers, chain, rows = load_peers(spec, params), spec["chains"]["posterior"], []
    for batch in (16, 100):
        steps, x = POSTERIOR_STEPS[batch], to_torch(noise(batch, CIFAR10))
        ours = {
            dtype: our_chain(model, params, "posterior", batch, steps)
            for dtype, model in models.items()
        }
        theirs = {
            name: functools.partial(peer.run, peer.start(batch), chain, steps, x)
            for name, peer in peers.items()
        }
        what = f"bfloat16_chain, batch {batch}"
        rows += in_bfloat16(what, ours, theirs, repeats, steps)
    return of_rows(rows)


def in_bfloat16(what, ours, theirs, repeats, num_steps=None) -> list[dict]:
    """Measures ours in bfloat16 against all other sides, which take turns with it.

    `ours` and `theirs` have a side for each of `COMPUTE_DTYPES`; the rows are steps per
    second of `num_steps`, or seconds.
    """
    module, title = torch_peer(), f"PyTorch {importlib.metadata.version('torch')}"
    sides = {
        "bfloat16": ours["bfloat16"],
        f"{title}, bfloat16 by autocast": module.autocast(theirs["bfloat16"]),
        title: theirs["float32"],
        "jebm, float32": ours["float32"],
    }
    seconds = alternate(sides, repeats)
    found = seconds.pop("bfloat16")
    rows = [against(found, peer, others) for peer, others in seconds.items()]
    for row in rows:
        row["what"] = what
        for side in ("", "peer_") if num_steps else ():
            row[f"{side}steps_per_second"] = num_steps / row[f"{side}seconds"]
    return rows


def of_rows(rows: list[dict]) -> dict:
    """Joins entries of several other sides to one, which has the first's speedup."""
    return {"peer": rows[0]["peer"], "speedup": rows[0]["speedup"], "rows": rows}


def our_chain(model, params, name, batch, num_steps) -> Callable:
    """Compiles a chain of so many steps."""
    compiled = lower_chain(model, params, name, batch, num_steps).compile()
    keys, x = chain_inputs(name, batch)
    return lambda: jax.block_until_ready(compiled(keys, params, x))


def chain_inputs(name, batch):
    """Returns keys, and the posterior's images: the prior's chain must have none."""
    keys = example_keys(jax.random.key(0), jnp.arange(batch))
    x = to_unit(noise(batch, CIFAR10)) if name == "posterior" else None
    return keys, x


def lower_chain(model, params, name, batch, num_steps):
    """Lowers the program of a chain, to be compiled."""
    chain = getattr(model.chains, name)
    chain = jebm.Langevin(num_steps, chain.step_size, chain.space, chain.start)
    keys, x = chain_inputs(name, batch)

    def run(keys, params, x):
        return run_chains(keys, model, params, chain, x=x).latents

    return jax.jit(run).lower(keys, params, x)


def mala_chain(repeats: int) -> dict:
    """Measures MALA on the tilted prior in eps-space, a chain per example, vmapped."""
    if importlib.util.find_spec("blackjax") is None:
        raise Missing("BlackJAX")
    import blackjax

    model, params, _ = cifar10_model()
    step_size, compared = 0.2, {}

    def density(params, eps):
        batch = tuple(e[None] for e in eps)
        return logdensity(model, params, batch, space="eps")[0]

    def ours(key, params, eps, num_steps):
        logdensity_fn = functools.partial(density, params)
        state, _ = langevin.run(
            key, eps, logdensity_fn, num_steps=num_steps, step_size=step_size,
            kernel=mala.MALA,
        )  # fmt: skip
        return state.position

    def theirs(key, params, eps, num_steps):
        # Its step is eps + h grad + sqrt(2 h) noise.
        algorithm = blackjax.mala(functools.partial(density, params), step_size**2 / 2)

        def one(state, key):
            return algorithm.step(key, state)[0], None

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(one, algorithm.init(eps), keys)[0].position

    for batch, num_steps in PRIOR_STEPS.items():
        keys = jax.random.split(jax.random.key(0), batch)
        shapes = model.backbone.latent_shapes
        eps = tuple(jnp.zeros((batch, *shape)) for shape in shapes)
        sides = []
        for side in (ours, theirs):
            each = functools.partial(side, num_steps=num_steps)
            run = jax.jit(jax.vmap(each, in_axes=(0, None, 0)))
            sides.append(
                lambda run=run: jax.block_until_ready(run(keys, params, eps))  # noqa: B023
            )
        peer = f"BlackJAX {importlib.metadata.version('blackjax')}"
        compared[batch] = compare(*sides, peer, repeats)
    return by_batch(compared, PRIOR_STEPS)


def matrix_product(repeats: int) -> dict:
    """Compares the posterior chain with the machine's speed at products."""
    batch, num_steps, side = 16, POSTERIOR_STEPS[16], SIDE
    model, params, _ = cifar10_model()
    chain = our_chain(model, params, "posterior", batch, num_steps)
    a = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    seconds = alternate(
        {
            "chain": chain,
            "product": lambda: jax.block_until_ready([product(a, a) for _ in range(8)]),
        },
        repeats,
    )
    ours = num_steps * direct_flops(model, batch) / np.median(seconds["chain"])
    peak = 8 * 2 * side**3 / np.median(seconds["product"])
    return {
        "gflop_per_second": ours / 1e9,
        "peer": f"product of two matrices of {side} x {side}",
        "peer_gflop_per_second": peak / 1e9,
        "speedup": ours / peak,
    }


def direct_flops(model: jebm.Model, batch: int) -> int:
    """Counts FLOPs of a posterior step's deconvolution: forward, back to z alone."""
    backbone = model.backbone
    height, width, channels = model.image_shape
    first, *others = backbone.decoder_widths
    height, width = height >> len(others), width >> len(others)
    products = backbone.latent_dims[0] * height * width * first
    for features in others:
        products += height * width * first * 16 * features
        height, width, first = 2 * height, 2 * width, features
    products += height * width * first * 9 * channels
    return 2 * 2 * batch * products


FIRST_SAMPLE = """
import json, sys
import jax, jebm
model = jebm.build(json.loads(sys.argv[1]))
params = jebm.init(jax.random.key(0), model)
jebm.sample(jax.random.key(1), model, params, 16).x.block_until_ready()
print("done", flush=True)
"""


def first_sample(repeats: int) -> dict:
    """Times a new process until it has drawn 16 samples."""
    spec = json.dumps(cifar10_spec())
    return starts(lambda _: ["-c", FIRST_SAMPLE, spec], "done", repeats)


def first_step(repeats: int) -> dict:
    """Times a new process until `digits` has taken its first training step."""

    def arguments(folder):
        config = ROOT / "experiments" / "configs" / "digits.py"
        return [
            "-m", "experiments.main", f"--config={config}",
            f"--workdir={folder / 'run'}", "--config.log.every=1",
        ]  # fmt: skip

    return starts(arguments, "step ", repeats)


def starts(arguments: Callable, until: str, repeats: int) -> dict:
    """Times processes until they print a line, with programs compiled before or not."""
    cold, second = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            for seconds in (cold, second):
                path = pathlib.Path(tempfile.mkdtemp(dir=folder))
                cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
                seconds.append(start(arguments(path), until, os.environ | cache))
    return against(second, "without compiled programs", cold)


def start(arguments, until, environment) -> float:
    """Times a Python process from its start to a line that begins with `until`."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith(until):
                seconds = time.perf_counter() - started
                process.kill()
                return seconds
    raise RuntimeError(f"no line {until!r} of {arguments}: exit {process.returncode}")


def pipeline(repeats: int) -> dict:
    """Measures batches of 16 images of 50,000, against the chains of a `cifar10` step.

    These are the least that a step can take.
    """
    images, batch = noise(50_000, CIFAR10), 16
    batches = Batches(images, batch, seed=0)
    model, params, _ = cifar10_model()
    chains = [
        our_chain(model, params, name, batch, getattr(model.chains, name).num_steps)
        for name in ("prior", "posterior")
    ]
    indices = iter(range(10**9))
    sides = {
        "batch": lambda: batches(next(indices)),
        "chains": lambda: [chain() for chain in chains],
    }
    seconds = alternate(sides, repeats)
    return against(seconds["batch"], "the chains of the step", seconds["chains"])


def memory(repeats: int) -> dict:
    """Counts bytes that `cifar10`'s compiled prior chain needs beside its arguments."""
    del repeats  # nothing is timed
    model, params, _ = cifar10_model()

    def held(batch, num_steps):
        compiled = lower_chain(model, params, "prior", batch, num_steps).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return {
        "temp_bytes_by_chain_length": {str(n): held(16, n) for n in (10, 100, 1000)},
        "temp_bytes_by_batch": {str(n): held(n, 60) for n in (1, 16, 100, 1000)},
    }


BENCHMARKS = {
    "cifar10_step": cifar10_step,
    "mnist_step": mnist_step,
    "prior_chain": prior_chain,
    "posterior_chain": posterior_chain,
    "bfloat16_step": bfloat16_step,
    "bfloat16_chain": bfloat16_chain,
    "mala": mala_chain,
    "matrix_product": matrix_product,
    "first_sample": first_sample,
    "first_step": first_step,
    "pipeline": pipeline,
    "memory": memory,
}


def cifar10_spec():
    """Returns the description of the paper's model."""
    return model_spec(options.read(cifar10.get_config()), CIFAR10)


@functools.cache
def cifar10_model():
    """Returns the paper's model, initial parameters, and its description."""
    spec = cifar10_spec()
    model = jebm.build(spec)
    return model, jebm.init(jax.random.key(0), model), spec


def noise(num, image_shape) -> np.ndarray:
    """Draws images of noise, uint8."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num, *image_shape), np.uint8)


def torch_peer():
    """Imports the module of the peer, with PyTorch on all cores of this process."""
    if importlib.util.find_spec("torch") is None:
        raise Missing("PyTorch")
    import torch

    from tools.speed import torch_peer

    torch.set_num_threads(num_cores())
    return torch_peer


def load_peers(spec, params) -> dict:
    """Loads peers to run in each of `COMPUTE_DTYPES`."""
    wraps = {"float32": lambda function: function, "bfloat16": torch_peer().autocast}
    return {dtype: load_peer(spec, params, wraps[dtype]) for dtype in COMPUTE_DTYPES}


def load_peer(spec, params, wrap=lambda function: function):
    """Loads the peer with our parameters, in the faster layout of its maps."""
    module = torch_peer()
    peers = [module.Peer(spec).load(jax.device_get(params)) for _ in range(2)]
    module.in_channels_last(peers[1])
    if spec["backbone"]["decoder_type"] != "deconv":
        return peers[0]
    x = to_torch(noise(16, CIFAR10))
    sides = {
        peer: functools.partial(
            wrap(peer.run), peer.start(16), spec["chains"]["posterior"], 1, x
        )
        for peer in peers
    }
    seconds = alternate(sides, 3)
    return min(peers, key=lambda peer: np.median(seconds[peer]))


def title(peer) -> str:
    """Names the peer's version, and the layout that it was found faster in."""
    layouts = [getattr(m, "layout", None) for m in peer.modules()]
    layout = next((str(m).split(".")[-1] for m in layouts if m is not None), "")
    version = importlib.metadata.version("torch")
    return f"PyTorch {version}{', ' * bool(layout)}{layout}"


def to_torch(images):
    """Converts uint8 images [B, H, W, C] to what the peer takes."""
    return torch_peer().to_images(images).float() / 255


def num_cores() -> int:
    """Counts the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def table(results: dict) -> str:
    """Formats the results as lines of a table in Markdown."""
    lines = [
        "| what | ours | other | times as fast | other side |",
        "|---|---|---|---|---|",
    ]

    def line(name, entry):
        unit = "gflop_per_second" if "gflop_per_second" in entry else "seconds"
        if "steps_per_second" in entry:
            unit = "steps_per_second"
        words = {"steps_per_second": "steps/s", "gflop_per_second": "GFLOP/s"}
        values = (
            f"{entry[side + unit]:,.3g} {words.get(unit, 's')}"
            if entry[side + unit] < 1000
            else f"{entry[side + unit]:,.0f} {words.get(unit, 's')}"
            for side in ("", "peer_")
        )
        cells = name, *values, f"{entry['speedup']:.2f}", entry["peer"]
        return f"| {' | '.join(cells)} |"

    for name, entry in results.items():
        for batch, values in entry.get("batch", {}).items():
            lines.append(line(f"{name}, batch {int(batch):,}", values))
        lines += [line(row["what"], row) for row in entry.get("rows", ())]
        if "peer" in entry and not {"batch", "rows"} & entry.keys():
            lines.append(line(name, entry))
        for kind in ("chain_length", "batch"):
            for number, held in entry.get(f"temp_bytes_by_{kind}", {}).items():
                what = f"{name}, {kind.replace('_', ' ')} {int(number):,}"
                lines.append(f"| {what} | {held / 2**20:,.2f} MiB | | | |")
    return "\n".join(lines)


def picture(results: dict, path: pathlib.Path) -> None:
    """Draws how many times faster ours is, and the chains' steps a second by batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="tight")
    # The pipeline's is of other work than its other side's.
    speedups = {
        name: entry["speedup"]
        for name, entry in results.items()
        if "speedup" in entry and name != "pipeline"
    }
    names = list(speedups)[::-1]
    bars = left.barh(names, [speedups[name] for name in names])
    left.bar_label(bars, fmt=" %.2f")
    left.set(title="times as fast as the other side (batch 16)")
    left.axvline(1, color="black", linewidth=1)
    left.margins(x=0.15)
    for name, entry in results.items():
        for side, style in (("", "-"), ("peer_", "--")) if "batch" in entry else ():
            batches = [int(batch) for batch in entry["batch"]]
            rates = [
                batch * values[f"{side}steps_per_second"]
                for batch, values in zip(batches, entry["batch"].values(), strict=True)
            ]
            label = f"{name}, {'ours' if not side else entry['peer'].split(',')[0]}"
            color = f"C{list(results).index(name)}"
            right.plot(batches, rates, style, marker="o", color=color, label=label)
    right.set(
        xscale="log",
        yscale="log",
        xlabel="batch",
        title="steps per second, all chains",
    )
    if right.get_legend_handles_labels()[0]:
        right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def write_page(text: str, page: pathlib.Path, marks: tuple[str, str] = MARKS) -> None:
    """Replaces what is between the marks of a page by the machine and a table."""
    before, found, rest = page.read_text().partition(marks[0])
    _, ended, after = rest.partition(marks[1])
    if not (found and ended):
        raise ValueError(f"{page} must hold the lines {' and '.join(marks)}")
    told = ", ".join(f"{name} {value}" for name, value in machine().items())
    parts = [before + marks[0], f"Measured {time.strftime('%Y-%m-%d')}: {told}."]
    page.write_text("\n\n".join([*parts, text, marks[1]]) + after)


def machine() -> dict:
    """Describes the machine that the numbers are from."""
    packages = ("jax", "jaxlib", "flax", "torch", "blackjax")
    found = [name for name in packages if importlib.util.find_spec(name)]
    versions = {name: importlib.metadata.version(name) for name in found}
    return {
        "device": jax.devices()[0].device_kind,
        "cores": num_cores(),
        "python": ".".join(map(str, sys.version_info[:3])),
    } | versions


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmarks that were asked for, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=BENCHMARKS)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=path_argument)
    parser.add_argument("--picture", type=path_argument)
    parser.add_argument("--page", type=path_argument)
    given = parser.parse_args(argv)
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")
    if given.page and given.only:
        parser.error("--page holds the lines of all benchmarks: leave --only out")
    results = {}
    print(", ".join(f"{k} {v}" for k, v in machine().items()), flush=True)
    for name in given.only or BENCHMARKS:
        try:
            results[name] = BENCHMARKS[name](given.repeats)
        except Missing as missing:
            message = f"{name} needs {missing}: pip install -e '.[bench]'"
            if given.only or given.page:
                sys.exit(f"error: {message}")
            print(f"left out: {message}", flush=True)
            continue
        print("\n".join(table({name: results[name]}).splitlines()[2:]), flush=True)
    print(f"\n{table(results)}")
    if given.json:
        found = {"machine": machine(), "repeats": given.repeats} | results
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    if given.picture:
        picture(results, given.picture)
    if given.page:
        write_page(table(results), given.page)


if __name__ == "__main__":
    main()
