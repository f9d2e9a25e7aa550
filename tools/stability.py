"""Trains many seeds and settings in one vmapped program, and says which stay sound.

    python -m tools.stability --config=experiments/configs/digits.py --workdir=DIR
        --seeds=20 --length=3
    python -m tools.stability --config=experiments/configs/digits.py --workdir=DIR
        --seeds=2 --length=3 --setting=gradient_penalty=0 --setting=energy_lr=1e-3

`--length` multiplies `learning.num_steps`; each `--setting` is one more row, with
fields of `learning` that may differ between the lanes of one program. No lane is ever
rescued: each is held against the limits of `config.guard` at every `log.every` steps,
and what it came to is written to DIR/stability.json, with Frechet distances of the
averaged parameters at the end. A killed run goes on from its last checkpoint.
"""

import json
import math
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from experiments import (
    classifier,
    command_line,
    datasets,
    evaluate,
    guard,
    learning,
    parallel,
    sample,
    train,
    workdir,
)
from experiments.command_line import ConfigError
from jebm import checkpoints

TRACED = (
    "backbone_lr",
    "energy_lr",
    "energy_penalty",
    "gradient_penalty",
    "energy_share",
    "restart_fraction",
)


def main(argv: list[str]) -> None:
    """Trains the lanes and writes stability.json."""
    del argv
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    try:
        settings = [parse_setting(text) for text in given.setting]
        path = pathlib.Path(given.workdir)
        run(given.config, path, settings, given.seeds, given.length)
    except command_line.USER_ERRORS as error:
        sys.exit(f"error: {error}")


def run(config, path: pathlib.Path, settings: list[dict], seeds: int, length: float):
    """Trains `seeds` lanes of each setting for `length` times the config's steps."""
    config.learning.num_steps = round(length * config.learning.num_steps)
    train.check_learning(config)
    sample.check_log(config)
    splits = datasets.load(config.data.name, config.data.data_dir, config.data.labels)
    model = sample.build_model(config, splits["train"].images.shape[1:])
    lanes = [(setting, seed) for setting in settings for seed in range(seeds)]
    spec = {"lanes": [[setting, seed] for setting, seed in lanes]}
    workdir.check_settings(path, config, "train")
    _check_lanes(path, spec)
    workdir.write_settings(path, config, spec)

    state, history = _train(config, path, model, splits["train"].images, lanes)
    features, _ = classifier.load(config.data.name)
    results = []
    for i, (setting, seed) in enumerate(tqdm(lanes, desc="evaluating", disable=None)):
        ema = jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), state.ema)
        key = jax.random.fold_in(jax.random.key(seed), learning.Role.EVALUATION)
        found = evaluate.distances(
            key, model, ema, splits["test"].images, features, config.eval
        )
        found = {k: v for k, v in found.items() if math.isfinite(v)}
        results.append({"setting": setting, "seed": seed} | history.lane(i) | found)
    workdir.write_json(path / "stability.json", results)
    _print_table(settings, results)


def _check_lanes(path, lanes):
    """Refuses to go on with other lanes than those of `path`."""
    file = path / "model.json"
    if file.is_file() and json.loads(file.read_text()) != lanes:
        raise ConfigError(f"{path} holds other lanes: choose another --workdir")


def _train(config, path, model, images, lanes):
    devices = jax.local_devices()[:1]
    fields = dict(config.learning)
    traced = {
        name: jnp.asarray([setting.get(name, fields[name]) for setting, _ in lanes])
        for name in TRACED
    }
    keys = jax.vmap(jax.random.key)(jnp.asarray([seed for _, seed in lanes]))
    optimizer = learning.create_optimizer(config.learning)  # of the state's structure

    def lane_learning(values):
        return types.SimpleNamespace(**(fields | values))

    def create(key, values):
        state = learning.create_state(key, lane_learning(values), model)
        return state.replace(tx=optimizer)

    def lane_step(lane, state, images):
        key, values = lane
        options = lane_learning(values)
        step_fn = learning.make_train_step(options, model)
        state = state.replace(tx=learning.create_optimizer(options))
        state, metrics = step_fn(key, state, images)
        return state.replace(tx=optimizer), metrics

    def lane_diagnose(lane, state, images):
        return learning.make_diagnose(model)(lane[0], state, images)

    state = train.restore(path, jax.vmap(create)(keys, traced))
    step = int(state.step[0])
    history = _History(path, step, len(lanes))
    batches = [
        datasets.Batches(images, config.learning.batch_size, seed) for _, seed in lanes
    ]
    step_fn = parallel.pmap(jax.vmap(lane_step), devices)
    diagnose_fn = parallel.pmap(jax.vmap(lane_diagnose), devices, donate=False)
    state = parallel.replicate(state, devices)
    last, pending = config.learning.num_steps, []
    with (
        checkpoints.manager(path, config.log.keep) as manager,
        tqdm(initial=step, total=last, unit="step", disable=None) as progress,
    ):
        while step < last:
            batch = np.stack([lane(step) for lane in batches])[None]
            state, metrics = step_fn((keys, traced), state, batch)
            step += 1
            pending.append(metrics)
            progress.update()
            if step % config.log.every and step != last:
                continue
            values = parallel.unreplicate(pending)
            values = {k: np.mean([v[k] for v in values], axis=0) for k in values[0]}
            pending = []
            if step % config.log.diagnose_every == 0 or step == last:
                found = diagnose_fn((keys, traced), state, batch[:, :, :16])
                values |= parallel.unreplicate(found)
            wrong = history.add(step, values, config.guard)
            said = f"{wrong}/{len(lanes)} beyond the limits"
            progress.set_postfix_str(said)
            if progress.disable:
                print(f"step {step}/{last}: {said}", flush=True)
            if step % config.log.checkpoint_every == 0 or step == last:
                checkpoints.save(
                    manager, step, train.checkpoint_items(parallel.unreplicate(state))
                )
    return parallel.unreplicate(state), history


class _History:
    """metrics.jsonl with a list over lanes for every metric."""

    def __init__(self, path, step, lanes):
        self._lines = [x for x in workdir.read_metrics(path) if x["step"] <= step]
        self._path, self._lanes = path, lanes

    def add(self, step, values, limits):
        """Adds an interval; returns how many lanes have ever left the limits."""
        wrong = [
            guard.verdict({k: float(v[i]) for k, v in values.items()}, limits)
            for i in range(self._lanes)
        ]
        lists = {
            k: [float(x) if np.isfinite(x) else None for x in v]
            for k, v in values.items()
        }
        self._lines.append({"step": step, "wrong": wrong} | lists)
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        workdir.write_text(self._path / "metrics.jsonl", text)
        return sum(any(x["wrong"][i] for x in self._lines) for i in range(self._lanes))

    def lane(self, i):
        """What lane i came to, in numbers as long as they were finite."""
        lines = [
            {k: v[i] for k, v in line.items() if k != "step"} | {"step": line["step"]}
            for line in self._lines
        ]
        wrong = next((line for line in lines if line["wrong"]), None)
        found = {"diverged": wrong and f"step {wrong['step']}: {wrong['wrong']}"}
        for name in _KEPT:
            if values := [x[name] for x in lines if x.get(name) is not None]:
                found[f"largest_{name}"] = max(values, key=abs)
                found[f"last_{name}"] = values[-1]
        return found


_KEPT = (
    *guard.LIMITS,
    "prior_acceptance",
    "prior_stiffness",
    "posterior_acceptance",
    "posterior_stiffness",
)
_COLUMNS = {
    "largest_energy_gap_nats": "largest gap",
    "last_energy_gap_nats": "last gap",
    "last_prior_stiffness": "prior stiffness",
    "last_posterior_stiffness": "posterior stiffness",
    "frechet": "Frechet 1x",
    "frechet_long_chain": "Frechet 4x",
    "frechet_untilted": "untilted",
    "frechet_posterior": "posterior",
}


def _print_table(settings, results):
    """One Markdown row per setting: mean and standard deviation over seeds."""
    columns = {k: v for k, v in _COLUMNS.items() if any(k in r for r in results)}
    print("| setting | beyond limits | " + " | ".join(columns.values()) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for setting in settings:
        rows = [r for r in results if r["setting"] == setting]
        name = ", ".join(f"{k} {v:g}" for k, v in setting.items()) or "as configured"
        cells = [name, f"{sum(bool(r['diverged']) for r in rows)} of {len(rows)}"]
        for field in columns:
            values = [r.get(field, np.nan) for r in rows]
            cells.append(f"{np.mean(values):.3g} ± {np.std(values):.2g}")
        print("| " + " | ".join(cells) + " |")


def parse_setting(text: str) -> dict[str, float]:
    """Reads a --setting.

    Example:
      >>> parse_setting("energy_lr=1e-3,gradient_penalty=0")
      {'energy_lr': 0.001, 'gradient_penalty': 0.0}
    """
    setting = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name not in TRACED:
            raise ConfigError(f"--setting: unknown {name!r}; known: {TRACED}")
        try:
            setting[name] = float(value)
        except ValueError:
            raise ConfigError(f"--setting: {item!r} is not FIELD=NUMBER") from None
    return setting


def _define_flags():
    """Called by the program alone: two may not define the same flags."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where to write.", required=True)
    flags.DEFINE_integer("seeds", 20, "Seeds 0 .. N-1 of every setting.")
    flags.DEFINE_float("length", 3.0, "Times learning.num_steps.")
    flags.DEFINE_multi_string(
        "setting", [""], "FIELD=VALUE[,FIELD=VALUE ...] of learning; one row each."
    )


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=command_line.parse)
