"""Trains a run: steps, checkpoints, rescues, pictures, figures, evaluation."""

import contextlib
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from tqdm import tqdm

import jebm
from experiments import (
    classifier,
    datasets,
    evaluate,
    figures,
    guard,
    learning,
    parallel,
    pictures,
    report,
    steps,
    stop,
    two_stage,
    workdir,
)
from experiments.command_line import ConfigError, Diverged
from experiments.prefetch import Prefetch
from experiments.sample import (
    build_model,
    check_log,
    restore_aloud,
    write_samples,
)
from jebm import checkpoints
from jebm.kernels import ENCODED
from jebm.learning import LearnerState
from jebm.names import unknown_name_message

_NUM_DIAGNOSED = 16  # images whose chains are examined
_STIFF = 0.5


def check_learning(config) -> None:
    """Refuses settings of learning that cannot work, naming the field."""
    fields = config.learning
    methods = ("mle", "variational", "two_stage")
    if fields.method not in methods:
        raise ConfigError(
            unknown_name_message("learning.method", fields.method, methods)
        )
    if fields.optimizer not in learning.OPTIMIZERS:
        raise ConfigError(
            unknown_name_message(
                "learning.optimizer", fields.optimizer, learning.OPTIMIZERS
            )
        )
    chain = config.chains.posterior
    variational = fields.method == "variational"
    encoded = fields.method != "mle"
    if (chain.start != "encoder") if encoded else (chain.start in ENCODED):
        raise ConfigError(
            f"learning.method {fields.method!r} needs "
            f"{'' if encoded else 'another '}chains.posterior.start "
            f"{'' if encoded else 'than '}'encoder', got {chain.start!r}"
        )
    needs_encoder = {"kl_warmup_steps": 0, "kl_balance": False, "spectral_penalty": 0.0}
    for name, off in needs_encoder.items():
        if not variational and fields[name] != off:
            raise ConfigError(
                f"learning.{name} is of learning.method 'variational', got "
                f"{fields[name]} with {fields.method!r}"
            )
    if fields.nce_steps and fields.method != "two_stage":
        raise ConfigError(
            "learning.nce_steps is of learning.method 'two_stage', got "
            f"{fields.nce_steps} with {fields.method!r}"
        )
    for name in ("kl_balance", "spectral_penalty_start"):
        if fields[name] and not fields.kl_warmup_steps:
            raise ConfigError(
                f"learning.{name} works in the warm-up of the divergence, got "
                f"{fields[name]} with learning.kl_warmup_steps=0"
            )
    if not (encoded or chain.num_steps):
        raise ConfigError(
            "learning.method 'mle' needs steps of the posterior chain, got "
            "chains.posterior.num_steps=0"
        )
    devices = len(parallel.devices())
    if fields.batch_size < 1 or fields.batch_size % devices:
        raise ConfigError(
            f"learning.batch_size must be a positive multiple of the {devices} "
            f"devices, got {fields.batch_size}"
        )
    if fields.persistent_chains < 0 or fields.persistent_chains % fields.batch_size:
        raise ConfigError(
            "learning.persistent_chains must be 0 or a multiple of the batch_size of "
            f"{fields.batch_size}, got {fields.persistent_chains}"
        )
    for name, low, high in (
        ("num_steps", 1, math.inf),
        ("backbone_lr", 0, math.inf),
        ("energy_lr", 0, math.inf),
        ("final_lr_fraction", 0, 1),
        ("warmup_steps", 0, fields.num_steps - 1),
        ("adam_b1", 0, 1),
        ("adam_b2", 0, 1),
        ("adam_eps", 0, math.inf),
        ("weight_decay", 0, math.inf),
        ("energy_weight_decay", 0, math.inf),
        ("clip_norm", 0, math.inf),
        ("ema_decay", 0, 1),
        ("energy_penalty", 0, math.inf),
        ("energy_spectral_bound", 0, math.inf),
        ("gradient_penalty", 0, math.inf),
        ("energy_share", 0, 1),
        ("kl_warmup_steps", 0, math.inf),
        ("spectral_penalty", 0, math.inf),
        ("spectral_penalty_start", 0, math.inf),
        ("restart_fraction", 0, 1),
        ("persistent_steps", 1, math.inf),
        ("nce_steps", 0, math.inf),
    ):
        _check_range(config, "learning", name, low, high)
    for name in ("max_rescues", *guard.LIMITS):
        _check_range(config, "guard", name, 0, math.inf)


def _check_range(config, group, name, low, high):
    if not low <= config[group][name] <= high:
        raise ConfigError(
            f"{group}.{name} must lie in [{low}, {high}], got {config[group][name]}"
        )


def train(config, path: pathlib.Path) -> None:
    """Trains the run in `path`, from its newest checkpoint if it has one.

    Of several processes the first alone reads and writes `path`.

    Raises:
      stop.Stopped: when asked to by SIGTERM or SIGINT; what was learned is saved.
    """
    first_process = parallel.is_first()
    with (
        stop.Requests() as asked,
        workdir.naming(path),
        contextlib.ExitStack() as held,
    ):
        with parallel.together():
            check_learning(config)
            check_log(config)
            evaluate.check_eval(config)  # not only when training is over
            splits = datasets.load(**config.data)
            # Refuses a split too small for a batch while nothing has been done yet.
            datasets.training_batches(config, splits["train"].images, config.seed)
            image_shape = splits["train"].images.shape[1:]
            model = build_model(config, image_shape)
            if first_process:
                workdir.check_settings(path, config, "train")

        backbone = None
        if config.learning.method == "two_stage":
            backbone = two_stage.load_backbone(config, path, model, train)
        with parallel.together():
            state = create_state(config, model, backbone)
            _print_overview(model, state.learner.params)
            if first_process:
                held.enter_context(workdir.lock(path))
                state = restore(path, state)
        state = parallel.share(state)
        first, last = int(state.learner.step), config.learning.num_steps
        if first:
            print(f"Resuming {path} from step {first}.")
        if first > last:
            raise ConfigError(
                f"{path} has been trained for {first} steps already, more than the "
                f"learning.num_steps of {last}"
            )
        with parallel.together():
            if first_process:
                workdir.write_settings(path, config, jebm.to_spec(model))
        if first == last:
            print(f"{path} is trained already, for {first} steps.")
        else:
            if model.energy is not None:
                print(
                    "E+, E-: energy of posterior and prior samples; sound runs keep "
                    "them within a few nats of each other."
                )
            with parallel.together():
                if first_process:
                    workdir.add_hardware(path, parallel.hardware())
            run_steps(config, path, model, state, splits, backbone, asked)
        if not first_process:
            return
        figures.figures(config, path)
        known = classifier.known()
        if config.eval.protocol != "classifier" or config.data.name in known:
            evaluate.evaluate(config, path)
        else:
            print(f"Not evaluated: data set {config.data.name!r} has no classifier.")
        print(f"Look at {path / 'report.html'}")


def run_steps(config, path, model, state, splits, backbone, asked) -> None:
    """Takes the steps that `state` has not seen; logs, saves and draws on the way.

    Raises:
      Diverged: where the guard gives up; the last good checkpoint is then the newest.
      stop.Stopped: when it was `asked` to stop and has saved: after the step in hand,
        or where several processes agree, at the next multiple of `log.every`.
    """
    devices, first_process = parallel.devices(), parallel.is_first()
    num_here = parallel.num_here(devices)
    step, last = int(state.learner.step), config.learning.num_steps
    guarded = state.guard
    key = jax.random.key(config.seed)
    batches = datasets.training_batches(
        config,
        splits["train"].images,
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )
    feed = Prefetch(
        lambda step: parallel.place(parallel.split(batches(step), num_here), devices)
    )
    step_fn = parallel.pmap(learning.make_train_step(config.learning, model), devices)
    diagnose_fn = parallel.pmap(learning.make_diagnose(model), devices, donate=False)
    columns = shutil.get_terminal_size((120, 24)).columns  # some terminals tell 0
    silent = None if first_process else True
    progress = tqdm(
        initial=step, total=last, unit="step", disable=silent, ncols=columns
    )
    replicated = learning.distribute(state, devices)
    warned, alone = set(), jax.process_count() == 1

    with asked.saving(), contextlib.ExitStack() as files, progress:
        files.enter_context(contextlib.closing(feed))
        if first_process:
            manager = files.enter_context(checkpoints.manager(path, config.log.keep))
            metrics = workdir.Metrics(path, step, int(guarded.rescues))
            files.enter_context(contextlib.closing(metrics))

        def due(interval):
            return step % interval == 0 or step == last

        while step < last:
            loop = steps.intervals(
                step_fn, key, replicated, feed, progress, first=step, last=last,
                every=config.log.every, stop=lambda: bool(asked and alone),
            )  # fmt: skip
            for step, replicated, values, images, rate in loop:
                values = {name: float(value) for name, value in values.items()}
                if rate is not None:
                    values["images_per_second"] = rate * config.learning.batch_size
                if due(config.log.diagnose_every):
                    few = images[:, : max(1, _NUM_DIAGNOSED // len(devices))]
                    found = steps.means([diagnose_fn(key, replicated, few)])
                    values |= {name: float(value) for name, value in found.items()}
                    _warn_of_stiffness(progress, step, values, warned)
                if model.energy is not None:
                    values["rescues"] = int(guarded.rescues)
                _show(progress, step, values)
                wrong = guard.verdict(values, config.guard)
                stopping, save = parallel.agree(asked, due(config.log.checkpoint_every))
                if save or stopping:
                    saved = checkpoint_items(learning.collect(replicated))
                    wrong = wrong or guard.verdict(_sums(saved), config.guard)
                [any_wrong] = parallel.agree(wrong)
                if any_wrong:
                    break
                with parallel.together():
                    if first_process:
                        metrics.write(step, values)
                        if save or stopping:
                            checkpoints.save(manager, step, saved)
                        if due(config.log.sample_every):
                            params = parallel.unreplicate(replicated.learner.ema)
                            draw(config, path, model, params, splits["test"], step)
                if stopping:
                    raise stop.Stopped(
                        f"Stopped at step {step}, which is saved in {path}: the same "
                        "command goes on from there."
                    )
            else:
                return
            wrong = wrong or "another process has found values beyond the limits"
            state = create_state(config, model, backbone)
            with parallel.together():
                if first_process:
                    metrics.write(step, values)
                    state, said = _rescue(
                        config, path, state, model, step, wrong, guarded
                    )
                    progress.write(said)
                    back, rescues = state.learner.step, state.guard.rescues
                    metrics.rewind(int(back), int(rescues), said)
                    manager.reload()
                    report.write(path)
            state = parallel.share(state)
            replicated = learning.distribute(state, devices)
            step, guarded = int(state.learner.step), state.guard
            progress.n = step


def draw(config, path, model, params, split, step) -> None:
    """Pictures and the page of a run that goes on."""
    write_samples(config, path / "samples", model, params, split, step)
    curves = figures.training_curves(workdir.read_metrics(path), path / "figures")
    pictures.mark(config, [curves])
    report.write(path)


def _rescue(config, path, fresh, model, step, wrong, guarded):
    """The state to go on from, with one more rescue counted, and what to say of it.

    That is the last good checkpoint's, or `fresh`, that before the first step.

    Checkpoints after the last good one are set aside, also where training ends here:
    what is left is good.
    """
    rescues = int(guarded.rescues)
    good = guard.last_good(
        checkpoints.steps(path), step, config.log.checkpoint_every, int(guarded.good)
    )
    checkpoints.set_aside_after(path, good)
    most = config.guard.max_rescues
    if model.energy is None or rescues == most:
        report.write(path)
        left = f"checkpoint {good} is sound" if good else "no checkpoint is left"
        raise Diverged(
            f"training diverged by step {step}: {wrong}, after {rescues} rescues. In "
            f"{path} {left}. Try a smaller learning.energy_lr or chains.*.step_size, "
            "or a larger learning.gradient_penalty, in another --workdir"
        )
    state = restore(path, fresh)
    rescues += 1
    back = int(state.learner.step)
    guarded = guard.GuardState(np.int32(rescues), np.int32(back))
    slower = learning.scale_energy_updates(state.learner, 0.5**rescues)
    return learning.TrainState(slower, guarded), (
        f"Rescue {rescues} of at most {most}: {wrong}, by step {step}. Back to step "
        f"{back} with half the energy learning rate, "
        f"{config.learning.energy_lr * 0.5**rescues:.3g}."
    )


def create_state(config, model: jebm.Model, backbone=None) -> learning.TrainState:
    """The state before the first step, on one device; `backbone` if that is frozen."""
    key = jax.random.key(config.seed)
    return learning.create_state(key, config.learning, model, backbone)


def restore(path, state: learning.TrainState) -> learning.TrainState:
    """The newest sound checkpoint; `state` itself where there is none."""
    if not checkpoints.steps(path):
        return state
    _check_age(path)
    step, items = restore_aloud(path, checkpoint_items(state))
    checkpoints.set_aside_after(path, step)
    saved = dict(items["train_state"])
    guarded = saved.pop("guard")
    return learning.TrainState(LearnerState(**saved, ema=items["ema"]), guarded)


def _check_age(path):
    """Refuses a run whose training state is that of a version before the learners."""
    file = path / "model.json"
    spec = workdir.read_json(file) if file.is_file() else {}
    if "chains" in spec and "name" not in spec["chains"].get("prior", {}):
        raise ConfigError(
            f"{path} was begun by an older version, and training cannot resume from "
            "its state. It can still be sampled, evaluated and used as a backbone; to "
            "train further, start anew in another --workdir"
        )


def _sums(items):
    """The sum of each item of a checkpoint: finite where all that it holds is."""
    return {
        f"checkpoint's {name}": float(
            sum(np.sum(leaf, dtype=np.float64) for leaf in jax.tree.leaves(item))
        )
        for name, item in items.items()
    }


def checkpoint_items(state: learning.TrainState) -> dict[str, Any]:
    """What is saved of a state, by item of `jebm.checkpoints`."""
    learner = dict(vars(state.learner))
    return {"ema": learner.pop("ema"), "train_state": learner | {"guard": state.guard}}


_SHOWN = {
    "loss_nats": "loss",
    "log_likelihood_nats": "log p(x|z)",
    "energy_positive_nats": "E+",
    "energy_negative_nats": "E-",
    "images_per_second": "images/s",
}


def _short(value):
    """Three digits of it, and all those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _show(progress, step, values):
    shown = {label: values[name] for name, label in _SHOWN.items() if name in values}
    text = ", ".join(f"{label} {_short(value)}" for label, value in shown.items())
    progress.set_postfix_str(text)
    if progress.disable:  # not a terminal
        print(f"step {step}/{progress.total}: {text}", flush=True)


def _warn_of_stiffness(progress, step, values, warned):
    """Says once per chain that its step size nears what the density allows."""
    for chain in ("prior", "posterior"):
        stiffness = values.get(f"{chain}_stiffness", 0.0)
        if stiffness > _STIFF and chain not in warned:
            warned.add(chain)
            progress.write(
                f"warning: at step {step} the {chain} chain has a stiffness of "
                f"{stiffness:.2f} (s^2/4 times the largest curvature); it is unstable "
                f"from 1 on. A smaller chains.{chain}.step_size is safer."
            )


def _print_overview(model, params):
    shapes = model.backbone.latent_shapes
    print(f"image {model.image_shape}, {len(shapes)} layers of latents, top first:")
    for i in reversed(range(len(shapes))):
        above = "N(0, I)" if i == len(shapes) - 1 else f"p(z_{i + 1} | above)"
        energy = "" if model.energy is None else f" exp(f_{i + 1}(z_{i + 1}))"
        print(f"  z_{i + 1}  {shapes[i]!s:12} {above}{energy}")
    print(f"{sum(map(math.prod, shapes))} latent units in all")
    if len(jax.tree.leaves(params)) > 200:  # more than anyone reads
        counts = {
            f"{part}/{name}": sum(a.size for a in jax.tree.leaves(leaves))
            for part, variables in params._asdict().items()
            for name, leaves in variables.get("params", {}).items()
        }
        width = max(map(len, counts))
        print("\n".join(f"  {n:{width}} {count:>12,}" for n, count in counts.items()))
        print(f"{sum(counts.values()):,} parameters")
        return
    print(
        parameter_overview.get_parameter_overview(params._asdict(), include_stats=False)
    )
