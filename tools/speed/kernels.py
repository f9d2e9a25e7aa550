"""Holds Markov kernels against each other on the prior of a trained model.

    python -m tools.speed.kernels --run=RUN [--only NAME ...] [--seeds=3] [--draws=5000]
        [--json=FILE]
    python -m tools.speed.kernels --pretrained=digits

MAMS needs BlackJAX, `pip install -e '.[bench]'`, and is left out where that is missing.
Each kernel has a list of trials, a step size and its other settings. Every trial runs
64 chains of 4,000 gradients from positions of the prior, and counts the effective draws
(ArviZ's bulk ESS) of E, of |eps|^2 and of the first three principal components of
classifier features of the decoded images. The best trial has the largest geometric
mean of the three components: these are slow where the energy and |eps|^2 are not. With
it, chains start at N(0, I), and their images are held against the held-out ones
(Frechet distance in the same features) after 10, 20, 40, 100 and 200 gradients.

The table counts effective draws per 1,000 gradients, which are at most about 25, as
one position of 40 is looked at. Seconds are the fastest of five turns that the kernels
take one after the other, relative to the first kernel's. The last column is the
standard deviation of a distance between seeds.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats

import jebm
from experiments import options
from experiments.configs import default
from experiments.data import datasets
from experiments.data.pixels import to_unit
from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation import classifier
from experiments.rundir.settings import read_settings
from experiments.runs import open_run
from experiments.runtime import compilation
from jebm import langevin, mala, underdamped
from jebm.chains import decode, draw_noise, example_keys, to_latents
from jebm.densities import logdensity, one_chain
from jebm.hierarchy import log_standard_normal
from jebm.metrics import feature_statistics, frechet_distance
from tools.arguments import path_argument
from tools.speed import contenders

BUDGETS = (10, 20, 40, 100, 200)  # gradients from N(0, I)
CHAINS, GRADIENTS, EVERY = 64, 4000, 40
WATCHED = ("E", "|eps|^2", "PC 1", "PC 2", "PC 3")
_STEPS = (0.2, 0.3, 0.4)
_ONE = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
_FRICTIONS = [(h, (f,)) for f in (0.5, 1.5) for h in _STEPS]
_LENGTHS = [(h, at) for at in ((2, 1.0), (5, 1.0)) for h in _STEPS]


class Contender(NamedTuple):
    """A kernel and the settings that are tried of it."""

    make: Callable[..., langevin.Kernel]
    trials: list[tuple[float, tuple]]  # step size, arguments of `make`
    trajectory: bool = False  # the first argument is the gradients of a move


KERNELS = {
    "MALA": Contender(lambda: mala.MALA, [(h, ()) for h in _ONE]),
    "pCNL": Contender(contenders.crank_nicolson, [(h, ()) for h in _ONE]),
    "underdamped": Contender(underdamped.underdamped, _FRICTIONS),
    "underdamped, slow uniform": Contender(contenders.slice_underdamped, _FRICTIONS),
    "HMC": Contender(
        contenders.trajectory, [(h, (n,)) for n in (2, 5) for h in _STEPS], True
    ),
    "MALT": Contender(contenders.trajectory, _LENGTHS, True),
    "MAMS": Contender(
        contenders.microcanonical,
        [(h, (n,)) for n in (2, 5) for h in (0.7, 1.1, 1.5)],
        True,
    ),
}


class Problem(NamedTuple):
    """A trained prior, and the features that its images are measured in."""

    model: jebm.Model
    params: jebm.Params
    features: Callable  # images [N, H, W, C] in [0, 1] -> [N, D]
    real: tuple  # mean and covariance of the features of held-out images
    directions: np.ndarray  # [D, 3], their first principal components

    def start(self, seed: int, num: int) -> Any:
        """Draws positions of N(0, I)."""
        keys = example_keys(jax.random.key(seed), jnp.arange(num))
        return draw_noise(keys, self.model, self.params)

    def drawn(self, eps) -> np.ndarray:
        """Returns the features of the images of eps, [N, D]."""
        parts = (tuple(e[i : i + 500] for e in eps) for i in range(0, len(eps[0]), 500))
        return self.features(np.concatenate([self._images(part) for part in parts]))

    def _images(self, eps):
        return np.asarray(_images(self.model, self.params, eps))


@functools.partial(jax.jit, static_argnums=0)
def _images(model, params, eps):
    return decode(model, params, to_latents(model, params, eps, "eps"))


@functools.partial(jax.jit, static_argnums=0)
def _log_tilt(model, params, eps):
    return logdensity(model, params, eps, space="eps") - log_standard_normal(eps)


def of(model: jebm.Model, params: jebm.Params, data: str, images) -> Problem:
    """Makes the problem of a model and held-out images, uint8, of a data set.

    Raises:
      ConfigError: for a model without energies, whose prior needs no chain.
    """
    if model.energy is None:
        raise ConfigError("the model has no energies: its prior needs no chain")
    features, _ = classifier.load(data)
    real = features(to_unit(images))
    centred = real - real.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2][:3].T
    params = jax.tree.map(jnp.asarray, params)
    return Problem(model, params, features, feature_statistics(real), directions)


@functools.partial(jax.jit, static_argnames=("model", "name", "length", "num", "every"))
def _paths(keys, start, trial, params, *, model, name, length, num, every):
    step_size, own = trial
    each = length[0] if length else 1  # gradients of a move
    logdensity_fn = one_chain(model, params, "eps", None, 1.0)

    def one(chain):
        _, info, path = langevin.trajectory(
            *chain, logdensity_fn, num_steps=num // each, every=every // each,
            step_size=step_size, kernel=KERNELS[name].make(*length, *own),
        )  # fmt: skip
        return path, info.acceptance_rate

    # No more chains at once than fit into the cache of a core.
    path, rates = jax.lax.map(one, (keys, start), batch_size=500)
    return path, rates.mean()


def paths(problem: Problem, name: str, trial, seed: int, start, num: int, every: int):
    """Runs chains of `num` gradients; returns positions [N, T, ...] and acceptance."""
    keys = example_keys(jax.random.key(seed), jnp.arange(len(start[0])))
    step_size, own = trial
    static = own[:1] if KERNELS[name].trajectory else ()  # the length of a trajectory
    return _paths(
        keys, start, (step_size, own[len(static) :]), problem.params,
        model=problem.model, name=name, length=static, num=num, every=every,
    )  # fmt: skip


def effective(problem: Problem, path) -> np.ndarray:
    """Counts the effective draws of each value watched, of a path [N, T, ...]."""
    chains, draws = path[0].shape[:2]
    eps = jax.tree.map(lambda e: e.reshape(-1, *e.shape[2:]), path)
    tilt = _log_tilt(problem.model, problem.params, eps)
    squares = sum((e.reshape(len(e), -1) ** 2).sum(axis=1) for e in eps)
    values = [tilt, squares, *(problem.drawn(eps) @ problem.directions).T]
    values = [np.asarray(v, np.float64).reshape(chains, draws) for v in values]
    return np.array([array_stats.ess(v, chain_axis=0, draw_axis=1) for v in values])


def tuned(problem: Problem, name: str, mixed, report=print) -> dict:
    """Measures the trials of a kernel, and returns the best one's numbers."""
    found = []
    for trial in KERNELS[name].trials:
        path, rate = paths(problem, name, trial, 1, mixed, GRADIENTS, EVERY)
        draws = effective(problem, jax.tree.map(lambda e: e[:, 1:], path))
        per_thousand = 1000 * draws / (len(mixed[0]) * GRADIENTS)
        row = {"trial": trial, "acceptance": float(rate)}
        row["effective"] = dict(
            zip(WATCHED, per_thousand.round(2).tolist(), strict=True)
        )
        report(name, json.dumps(row))
        found.append(row)
    return max(found, key=of_features) | {"all": found}


def of_features(row: dict) -> float:
    """Returns the geometric mean of the effective draws of the components."""
    return float(np.exp(np.mean([np.log(row["effective"][c]) for c in WATCHED[2:]])))


def distances(problem: Problem, name: str, trial, seed: int, num: int) -> list[float]:
    """Measures the Frechet distances after each of `BUDGETS`."""
    start, every = problem.start(100 + seed, num), BUDGETS[0]
    path, _ = paths(problem, name, trial, 200 + seed, start, BUDGETS[-1], every)
    each = [tuple(layer[:, n // every] for layer in path) for n in BUDGETS]
    found = [feature_statistics(problem.drawn(eps)) for eps in each]
    return [float(frechet_distance(*those, *problem.real)) for those in found]


def seconds(problem: Problem, trials: dict, turns: int = 5) -> dict[str, float]:
    """Times 100 gradients of 500 chains of each kernel, the fastest of its turns."""
    start, found = problem.start(0, 500), dict.fromkeys(trials, np.inf)
    for turn in range(turns + 1):  # the first one compiles
        for name, trial in trials.items():
            begun = time.perf_counter()
            jax.block_until_ready(paths(problem, name, trial, turn, start, 100, 100))
            if turn:
                found[name] = min(found[name], time.perf_counter() - begun)
    return found


def compare(problem: Problem, names, seeds: int, num: int, report=print) -> dict:
    """Tunes and measures the kernels; returns what `table` takes."""
    mixed, _ = paths(
        problem, "MALA", (0.25, ()), 0, problem.start(0, CHAINS), 4000, 4000
    )
    mixed = jax.tree.map(lambda e: e[:, -1], mixed)
    rows = {name: tuned(problem, name, mixed, report) for name in names}
    for name, row in rows.items():
        row["frechet"] = [
            distances(problem, name, row["trial"], seed, num) for seed in range(seeds)
        ]
        report(name, row["trial"], np.mean(row["frechet"], axis=0).round(2))
    for name, value in seconds(
        problem, {n: r["trial"] for n, r in rows.items()}
    ).items():
        rows[name]["seconds"] = value
    return rows


def table(rows: dict) -> str:
    """Writes the comparison as Markdown."""
    heads = ["kernel", "step, settings", "accepted", "draws, E", "draws, features"]
    heads += ["seconds"]
    heads += [str(budget) for budget in BUDGETS]
    if len(next(iter(rows.values()))["frechet"]) > 1:
        heads.append("between seeds")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    one = next(iter(rows.values()))["seconds"]
    for name, row in rows.items():
        step_size, own = row["trial"]
        settings = ", ".join(f"{value:g}" for value in (step_size, *own))
        cells = [name, settings, f"{row['acceptance']:.2f}"]
        cells += [f"{row['effective']['E']:.1f}", f"{of_features(row):.1f}"]
        cells += [f"{row['seconds'] / one:.2f}"]
        each = np.asarray(row["frechet"])
        cells += [f"{mean:.2f}" for mean in each.mean(axis=0)]
        if len(each) > 1:
            cells.append(f"{each.std(axis=0, ddof=1).mean():.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def opened(run: pathlib.Path | None, pretrained: str | None) -> Problem:
    """Opens a run, or a shipped model and the held-out images of its data set."""
    if run is not None:
        opened = open_run(options.read(read_settings(run)), run)
        data = opened.experiment.data.name
        return of(opened.model, opened.params, data, opened.heldout)
    config = default.get_config()
    config.data.name = config.data.fake_like = pretrained
    images = datasets.load(options.read(config).data)["test"].images
    return of(*jebm.load_pretrained(pretrained), pretrained, images)


def main() -> None:
    """Reads the command line, compares and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=path_argument, help="A trained run.")
    which.add_argument("--pretrained", help="A model that is shipped with jebm.")
    here = importlib.util.find_spec("blackjax") is not None
    usual = [name for name in KERNELS if here or name != "MAMS"]
    parser.add_argument("--only", nargs="*", choices=KERNELS, default=usual)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--json", type=path_argument, help="Writes all numbers there.")
    given = parser.parse_args()
    compilation.enable_compilation_cache()
    try:
        problem = opened(given.run, given.pretrained)
    except USER_ERRORS as error:
        raise SystemExit(f"error: {error}") from None
    report = functools.partial(print, flush=True)
    rows = compare(problem, given.only, given.seeds, given.draws, report)
    print(f"\n{table(rows)}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
