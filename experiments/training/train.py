"""Trains a run: steps, checkpoints, rescues, pictures, figures, evaluation."""

import contextlib
import math
import pathlib
import shutil

import jax
import numpy as np
from clu import parameter_overview
from tqdm import tqdm

import jebm
from experiments import pictures
from experiments.data import datasets
from experiments.data.batches import prefetched, training_batches
from experiments.drawing import figures
from experiments.drawing.samples import write_samples
from experiments.drawing.training import training_curves
from experiments.errors import ConfigError, Diverged
from experiments.evaluation import classifier, evaluate
from experiments.models import build_model
from experiments.rundir import report
from experiments.rundir.files import lock, naming
from experiments.rundir.metrics import Metrics, add_hardware, read_metrics
from experiments.rundir.settings import check_settings, write_settings
from experiments.runs import check_log
from experiments.runtime import parallel, stop
from experiments.training import learner, monitor, steps, two_stage
from experiments.training.checks import check_learning
from experiments.training.state import checkpoint_items, restore
from jebm import checkpoints

_NUM_DIAGNOSED = 16  # images whose chains are examined


_STIFF = 0.5


def train(config, path: pathlib.Path) -> None:
    """Trains the run in `path`, from its newest checkpoint if it has one.

    Of several processes the first alone reads and writes `path`.

    Raises:
      stop.Stopped: when asked to by SIGTERM or SIGINT; what was learned is saved.
    """
    first_process = parallel.is_first()
    with (
        stop.Requests() as asked,
        naming(path),
        contextlib.ExitStack() as held,
    ):
        with parallel.together():
            check_learning(config)
            check_log(config)
            evaluate.check_eval(config)  # not only when training is over
            splits = datasets.load(**config.data)
            # Refuses a split too small for a batch while nothing has been done yet.
            training_batches(config, splits["train"].images, config.seed)
            image_shape = splits["train"].images.shape[1:]
            model = build_model(config, image_shape)
            if first_process:
                check_settings(path, config, "train")

        backbone = None
        if config.learning.method == "two_stage":
            backbone = two_stage.load_backbone(config, path, model, train)
        with parallel.together():
            state = create_state(config, model, backbone)
            _print_overview(model, state.learner.params)
            if first_process:
                held.enter_context(lock(path))
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
                write_settings(path, config, jebm.to_spec(model))
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
                    add_hardware(path, parallel.hardware())
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
    batches = training_batches(
        config,
        splits["train"].images,
        config.seed,
        jax.process_index(),
        jax.process_count(),
    )

    def place(images):
        return parallel.place(parallel.split(images, num_here), devices)

    step_fn = parallel.pmap(learner.make_train_step(config.learning, model), devices)
    diagnose_fn = parallel.pmap(learner.make_diagnose(model), devices, donate=False)
    columns = shutil.get_terminal_size((120, 24)).columns  # some terminals tell 0
    silent = None if first_process else True
    progress = tqdm(
        initial=step, total=last, unit="step", disable=silent, ncols=columns
    )
    replicated = learner.distribute(state, devices)
    warned, alone = set(), jax.process_count() == 1

    with asked.saving(), contextlib.ExitStack() as files, progress:
        if first_process:
            manager = files.enter_context(checkpoints.manager(path, config.log.keep))
            metrics = Metrics(path, step, int(guarded.rescues))
            files.enter_context(contextlib.closing(metrics))

        def due(interval):
            return step % interval == 0 or step == last

        while step < last:
            feed = prefetched(batches.dataset(step, last), place)
            files.enter_context(contextlib.closing(feed))
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
                wrong = monitor.verdict(values, config.guard)
                stopping, save = parallel.agree(asked, due(config.log.checkpoint_every))
                if save or stopping:
                    saved = checkpoint_items(learner.collect(replicated))
                    wrong = wrong or monitor.verdict(_sums(saved), config.guard)
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
            feed.close()  # training goes back, and so do its batches
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
            replicated = learner.distribute(state, devices)
            step, guarded = int(state.learner.step), state.guard
            progress.n = step


def draw(config, path, model, params, split, step) -> None:
    """Pictures and the page of a run that goes on."""
    write_samples(config, path / "samples", model, params, split, step)
    curves = training_curves(read_metrics(path), path / "figures")
    pictures.mark(config, [curves])
    report.write(path)


def _rescue(config, path, fresh, model, step, wrong, guarded):
    """The state to go on from, with one more rescue counted, and what to say of it.

    That is the last good checkpoint's, or `fresh`, that before the first step.

    Checkpoints after the last good one are set aside, also where training ends here:
    what is left is good.
    """
    rescues = int(guarded.rescues)
    good = monitor.last_good(
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
    guarded = monitor.GuardState(np.int32(rescues), np.int32(back))
    slower = learner.scale_energy_updates(state.learner, 0.5**rescues)
    return learner.TrainState(slower, guarded), (
        f"Rescue {rescues} of at most {most}: {wrong}, by step {step}. Back to step "
        f"{back} with half the energy learning rate, "
        f"{config.learning.energy_lr * 0.5**rescues:.3g}."
    )


def create_state(config, model: jebm.Model, backbone=None) -> learner.TrainState:
    """The state before the first step, on one device; `backbone` if that is frozen."""
    key = jax.random.key(config.seed)
    return learner.create_state(key, config.learning, model, backbone)


def _sums(items):
    """The sum of each item of a checkpoint: finite where all that it holds is."""
    return {
        f"checkpoint's {name}": float(
            sum(np.sum(leaf, dtype=np.float64) for leaf in jax.tree.leaves(item))
        )
        for name, item in items.items()
    }


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
