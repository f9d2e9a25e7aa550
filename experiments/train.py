"""Maximum-likelihood training, and sampling of a trained run."""

import contextlib
import enum
import math
import pathlib
import shutil
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import parameter_overview
from flax import struct
from flax.training import train_state
from tqdm import tqdm

import jebm
from experiments import datasets, figures, parallel, pictures, report, workdir
from experiments.command_line import ConfigError, Diverged
from jebm import checkpoints, objectives
from jebm.langevin import global_norm
from jebm.sampling import example_keys, run_chains


class Role(enum.IntEnum):
    """What noise is for: folded into the seed's key, so that no two roles share it."""

    INIT = 0
    POSTERIOR = 1
    PRIOR = 2
    PICTURES = 3
    FIGURES = 4


class TrainState(train_state.TrainState):
    """Step, parameters and optimiser state (of Flax), and the averaged parameters."""

    ema: jebm.Params = struct.field(kw_only=True)


def model_spec(config, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """What `jebm.build` takes, from a configuration and the data's image shape."""
    plain = workdir.plain(config)
    spec = {k: plain[k] for k in ("backbone", "energy", "likelihood", "chains")}
    if config.prior == "gaussian":
        spec["energy"] = None
    return {"image_shape": list(image_shape), **spec}


def build_model(config, image_shape: tuple[int, ...]) -> jebm.Model:
    """Builds the model; what `jebm.build` refuses is the user's mistake."""
    if config.prior not in ("ebm", "gaussian"):
        raise ConfigError(f"unknown prior {config.prior!r}; known: ['ebm', 'gaussian']")
    try:
        model = jebm.build(model_spec(config, image_shape))
        params = jax.eval_shape(jebm.init, jax.random.key(0), model)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if others := (params.backbone.keys() | params.energy.keys()) - {"params"}:
        raise ConfigError(f"training does not support variables of kind {others}")
    return model


def check_learning(config) -> None:
    """Refuses settings of learning that cannot work, naming the field."""
    learning = config.learning
    if jax.process_count() > 1:
        raise ConfigError("training on several processes is not supported")
    if learning.method != "mle":
        raise ConfigError(
            f"unknown learning.method {learning.method!r}; known: ['mle']"
        )
    devices = jax.local_device_count()
    if learning.batch_size < 1 or learning.batch_size % devices:
        raise ConfigError(
            f"learning.batch_size must be a positive multiple of the {devices} "
            f"devices, got {learning.batch_size}"
        )
    for name, low, high in (
        ("num_steps", 1, math.inf),
        ("backbone_lr", 0, math.inf),
        ("energy_lr", 0, math.inf),
        ("final_lr_fraction", 0, 1),
        ("adam_b1", 0, 1),
        ("adam_b2", 0, 1),
        ("clip_norm", 0, math.inf),
        ("ema_decay", 0, 1),
        ("energy_penalty", 0, math.inf),
        ("gradient_penalty", 0, math.inf),
    ):
        if not low <= learning[name] <= high:
            raise ConfigError(
                f"learning.{name} must lie in [{low}, {high}], got {learning[name]}"
            )


def check_log(config) -> None:
    """Refuses a seed and settings of log that cannot work, naming the field."""
    log = config.log
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed must lie in [0, 2**32), got {config.seed}")
    # With two checkpoints kept, one damaged or just being deleted leaves another.
    least = {"every": 1, "checkpoint_every": 1, "sample_every": 1, "keep": 2}
    for name, low in least.items():
        if log[name] < low:
            raise ConfigError(f"log.{name} must be at least {low}, got {log[name]}")
    for name in ("checkpoint_every", "sample_every"):
        if log[name] % log.every:
            raise ConfigError(
                f"log.{name} must be a multiple of log.every, so that what is saved "
                f"and drawn has been checked, got {log[name]} and {log.every}"
            )
    root = math.isqrt(max(log.num_samples, 0))
    if root**2 != log.num_samples or root % 2 or not root:
        raise ConfigError(
            f"log.num_samples must be an even square, got {log.num_samples}"
        )


def create_optimizer(learning) -> optax.GradientTransformation:
    """Adam for the generator and for the energies, each with its own rate."""

    def adam(learning_rate):
        schedule = optax.cosine_decay_schedule(
            learning_rate, learning.num_steps, learning.final_lr_fraction
        )
        return optax.chain(
            optax.clip_by_global_norm(learning.clip_norm),
            optax.adam(schedule, learning.adam_b1, learning.adam_b2),
        )

    optimizers = {
        "backbone": adam(learning.backbone_lr),
        "energy": adam(learning.energy_lr),
    }
    return optax.multi_transform(
        optimizers, jebm.Params(backbone="backbone", energy="energy")
    )


def create_state(config, model: jebm.Model) -> TrainState:
    """The state before the first step, on one device."""
    key = jax.random.fold_in(jax.random.key(config.seed), Role.INIT)
    params = jebm.init(key, model)
    state = TrainState.create(
        apply_fn=None, params=params, tx=create_optimizer(config.learning), ema=params
    )
    # Flax starts at a Python integer, which is no template for a checkpoint.
    return state.replace(step=jnp.zeros((), jnp.int32))


def make_train_step(config, model: jebm.Model):
    """Returns `step(state, images) -> (state, metrics)`, to be run by `parallel.pmap`.

    Noise is keyed by (seed, role, step, index in the global batch): it is the same on
    any number of devices.
    """
    learning = config.learning
    base_key = jax.random.key(config.seed)

    def train_step(state, images):
        x = datasets.to_unit(images)
        x = x.astype(jax.tree.leaves(state.params)[0].dtype)
        index = parallel.example_index(x.shape[0])

        def keys(role):
            key = jax.random.fold_in(base_key, role)
            return example_keys(jax.random.fold_in(key, state.step), index)

        positive, info = run_chains(
            keys(Role.POSTERIOR), model, state.params, model.chains.posterior, x=x
        )
        metrics = {"posterior_grad_norm": info.grad_norm}
        negative = None
        if model.energy is not None:
            negative, info = run_chains(
                keys(Role.PRIOR), model, state.params, model.chains.prior
            )
            metrics["prior_grad_norm"] = info.grad_norm

        grads, terms = jax.grad(objective, argnums=1, has_aux=True)(
            model, state.params, x, positive, negative, learning
        )
        metrics = jax.tree.map(jnp.mean, metrics | terms)
        grads, metrics = parallel.mean((grads, metrics))
        state = state.apply_gradients(grads=grads)
        # Short runs should not average in the initial parameters.
        decay = jnp.minimum(learning.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(
            lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
            state.ema,
            state.params,
        )
        metrics["grad_norm"] = global_norm(grads)
        return state.replace(ema=ema), metrics

    return train_step


def objective(model, params, x, positive, negative, learning):
    """The surrogate loss of `jebm.objectives`, averaged, with its penalties.

    `negative` is None for the Gaussian twin, whose prior has no negative phase.
    Returns the loss and a dict of terms, in nats.
    """
    plus = objectives.positive_terms(model, params, x, positive)
    loss = plus.loss().mean()
    terms = {
        "log_likelihood_nats": plus.log_likelihood,
        "log_prior_positive_nats": plus.log_prior,
    }
    if negative is not None:
        minus = objectives.negative_terms(model, params, negative)
        loss += minus.loss().mean()
        loss += learning.energy_penalty * (plus.energy**2).mean()
        loss += learning.energy_penalty * (minus.energy**2).mean()
        if learning.gradient_penalty:
            penalty = objectives.energy_gradient_penalty(model, params, negative)
            loss += learning.gradient_penalty * penalty.mean()
        terms |= {
            "log_prior_negative_nats": minus.log_prior,
            "energy_positive_nats": plus.energy,
            "energy_negative_nats": minus.energy,
            "energy_gap_nats": minus.energy.mean() - plus.energy.mean(),
        }
    return loss, terms | {"loss_nats": loss}


def train(config, path: pathlib.Path) -> None:
    """Trains the run in `path`, from its newest checkpoint if it has one."""
    check_learning(config)
    check_log(config)
    splits = datasets.load(config.data.name, config.data.data_dir, config.data.labels)
    image_shape = splits["train"].images.shape[1:]
    model = build_model(config, image_shape)
    workdir.check_settings(path, config, "train")

    state = create_state(config, model)
    _print_overview(model, state.params)
    state = _restore(path, state)
    first, last = int(state.step), config.learning.num_steps
    if first > last:
        raise ConfigError(
            f"{path} has been trained for {first} steps already, more than the "
            f"learning.num_steps of {last}"
        )
    workdir.write_settings(path, config, model_spec(config, image_shape))
    if first == last:
        print(f"{path} is trained already, for {first} steps.")
    else:
        if model.energy is not None:
            print(
                "E+, E-: energy of posterior and prior samples in nats, to stay close."
            )
        run_steps(config, path, model, state, splits)
    figures.figures(config, path)
    print(f"Look at {path / 'report.html'}")


def run_steps(config, path, model, state, splits) -> None:
    """Takes the steps that `state` has not seen; logs, saves and draws on the way."""
    devices = jax.local_devices()
    first, last = int(state.step), config.learning.num_steps
    batches = datasets.Batches(
        splits["train"].images, config.learning.batch_size, config.seed
    )
    step_fn = parallel.pmap(make_train_step(config, model), devices)
    metrics = workdir.Metrics(path, first)
    columns = shutil.get_terminal_size((120, 24)).columns  # some terminals tell 0
    progress = tqdm(initial=first, total=last, unit="step", disable=None, ncols=columns)
    replicated = parallel.replicate(state, devices)
    pending, clock = [], _Clock()
    with (
        checkpoints.manager(path, config.log.keep) as manager,
        contextlib.closing(metrics),
        progress,
    ):
        progress.set_description("compiling")
        for step in range(first + 1, last + 1):
            images = parallel.shard(batches(step - 1), len(devices))
            replicated, values = step_fn(replicated, images)
            pending.append(values)
            clock.add(config.learning.batch_size)
            progress.update()
            if step == first + 1:  # it compiled
                jax.block_until_ready(values)
                progress.set_description("training")
                progress.unpause()
                clock.restart()
            if step % config.log.every == 0 or step == last:
                values = _mean_metrics(pending) | clock.rate()
                pending = []
                metrics.write(step, values)
                _show(progress, step, values)
                _check_finite(step, values, path)
            if step % config.log.checkpoint_every == 0 or step == last:
                items = _items(parallel.unreplicate(replicated))
                _check_finite(step, _finite_leaves(items), path)
                checkpoints.save(manager, step, items)
            if step % config.log.sample_every == 0 or step == last:
                params = parallel.unreplicate(replicated).ema
                folder = path / "samples"
                write_samples(config, folder, model, params, splits["test"], step)
                report.write(path)
            if not pending:  # saving and drawing is not training
                progress.unpause()
                clock.restart()


def sample(config, path: pathlib.Path) -> None:
    """Draws pictures from the run in `path`; chains and seed may be overridden."""
    model, params, step, splits = open_run(config, path)
    folder = path / "samples" / workdir.variant(path, config)
    for file in write_samples(config, folder, model, params, splits["test"], step):
        print(f"wrote {file}")
    report.write(path)
    print(f"Look at {path / 'report.html'}")


def open_run(config, path: pathlib.Path):
    """Model, averaged parameters, their step, and data of the run in `path`."""
    check_log(config)
    workdir.check_settings(path, config, "read")
    splits = datasets.load(config.data.name, config.data.data_dir, config.data.labels)
    model = build_model(config, splits["test"].images.shape[1:])
    template = jax.eval_shape(jebm.init, jax.random.key(0), model)
    step, items = _restore_aloud(path, {"ema": template})
    return model, items["ema"], step, splits


def write_samples(config, folder, model, params, split, step) -> list[pathlib.Path]:
    """Writes grids of samples and of reconstructions beside their originals.

    The noise depends on the seed alone: pictures of different steps compare, and the
    chains of the tilted prior start from the pictures of the Gaussian one.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), Role.PICTURES)
    key_prior, key_posterior = jax.random.split(key)
    num = config.log.num_samples
    grids = {"gaussian": jebm.sample(key_prior, model, params, num, prior="gaussian").x}
    if model.energy is not None:
        grids["ebm"] = jebm.sample(key_prior, model, params, num).x
    originals = datasets.to_unit(split.images[: num // 2])
    grids["reconstruction"] = pictures.beside(
        originals, jebm.reconstruct(key_posterior, model, params, originals)
    )
    files = []
    for name, images in grids.items():
        files.append(folder / f"{name}_{step:07d}.png")
        pictures.save_grid(files[-1], images)
    return files


def _restore(path, state):
    if not checkpoints.steps(path):
        return state
    step, items = _restore_aloud(path, _items(state))
    print(f"Resuming {path} from step {step}.")
    checkpoints.set_aside_after(path, step)
    return state.replace(**items["train_state"], ema=items["ema"])


def _restore_aloud(path, templates):
    """`checkpoints.restore`, its warnings printed as sentences."""
    with warnings.catch_warnings(record=True) as passed_over:
        warnings.simplefilter("always", UserWarning)
        restored = checkpoints.restore(path, templates)
    for warning in passed_over:
        print(f"warning: {warning.message}")
    return restored


def _finite_leaves(items):
    """The sum of each parameter, by path: finite where the parameter is."""
    leaves = jax.tree_util.tree_leaves_with_path(items)
    return {jax.tree_util.keystr(path): float(np.sum(leaf)) for path, leaf in leaves}


def _items(state):
    return {
        "ema": state.ema,
        "train_state": {
            "step": state.step,
            "params": state.params,
            "opt_state": state.opt_state,
        },
    }


class _Clock:
    """Speed of training alone; read it when the device has finished."""

    def __init__(self):
        self.restart()

    def restart(self):
        self._started, self._images = time.perf_counter(), 0

    def add(self, images):
        self._images += images

    def rate(self):
        if not self._images:
            return {}
        return {
            "images_per_second": self._images / (time.perf_counter() - self._started)
        }


def _mean_metrics(pending):
    pending = parallel.unreplicate(pending)
    return {
        name: float(np.mean([values[name] for values in pending]))
        for name in pending[0]
    }


_SHOWN = {
    "loss_nats": "loss",
    "log_likelihood_nats": "log p(x|z)",
    "energy_positive_nats": "E+",
    "energy_negative_nats": "E-",
    "images_per_second": "images/s",
}


def _show(progress, step, values):
    shown = {label: values[name] for name, label in _SHOWN.items() if name in values}
    text = ", ".join(f"{label} {value:.1f}" for label, value in shown.items())
    progress.set_postfix_str(text)
    if progress.disable:  # not a terminal
        print(f"step {step}/{progress.total}: {text}", flush=True)


def _check_finite(step, values, path):
    wrong = sorted(name for name, value in values.items() if not math.isfinite(value))
    if wrong:
        raise Diverged(
            f"training diverged by step {step}: {wrong} not finite. The last good "
            f"checkpoints in {path} are {checkpoints.steps(path)}; try a smaller "
            "learning.energy_lr or chains.*.step_size, in another --workdir"
        )


def _print_overview(model, params):
    shapes = model.backbone.latent_shapes
    print(f"image {model.image_shape}, {len(shapes)} layers of latents, top first:")
    for i in reversed(range(len(shapes))):
        above = "N(0, I)" if i == len(shapes) - 1 else f"p(z_{i + 1} | above)"
        energy = "" if model.energy is None else f" exp(f_{i + 1}(z_{i + 1}))"
        print(f"  z_{i + 1}  {shapes[i]!s:12} {above}{energy}")
    print(f"{sum(map(math.prod, shapes))} latent units in all")
    print(
        parameter_overview.get_parameter_overview(params._asdict(), include_stats=False)
    )
