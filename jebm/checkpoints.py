"""Checkpoints of a run: written atomically, verified leaf by leaf when read.

    WORKDIR/model.json                      what `jebm.build` takes
    WORKDIR/checkpoints/STEP/ema            Params, the averaged ones, for sampling
    WORKDIR/checkpoints/STEP/train_state    everything else that training resumes from
    WORKDIR/checkpoints/STEP/digests        sha256 of every leaf of the items above

The array store restores flipped bits without noticing, hence the digests. If a
checkpoint cannot be read or does not match, a warning says so and the one before it is
read.
"""

import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import warnings
from typing import Any

import jax
import numpy as np

from jebm import checks
from jebm.files import written_whole
from jebm.model import Model, Params, init
from jebm.spec import build, to_spec

PyTree = Any


class CorruptCheckpointError(Exception):
    """Every checkpoint asked for is unreadable, damaged or of another model."""


class _OtherArrays(Exception):
    """A checkpoint holds arrays of other names or shapes than those asked for."""


def manager(workdir: str | pathlib.Path, keep: int):
    """Opens `workdir/checkpoints` for writing: an orbax CheckpointManager to close.

    It deletes what a killed process has left of a checkpoint. Only one of several
    processes may write, and it waits for no other.

    Args:
      workdir: directory of a run.
      keep: how many of the latest checkpoints to keep.
    """
    import orbax.checkpoint as ocp  # slow to import, and not needed to sample

    directory = _directory(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        enable_async_checkpointing=False,
        create=False,
        cleanup_tmp_directories=True,
        multiprocessing_options=_alone(),
    )
    return ocp.CheckpointManager(directory, options=options, item_handlers=_handlers())


def write(manager, step: int, items: dict[str, PyTree]) -> None:
    """Writes one checkpoint; `step` must not exist yet.

    Args:
      manager: from `manager`.
      step: number of finished training steps.
      items: "ema" and "train_state", and it may be "walkers": pytrees of arrays.

    Raises:
      ValueError: if there is a later step.
      OSError: if the disk does not take it, being full for instance; what is there of
        it is deleted.
    """
    import orbax.checkpoint as ocp

    items = jax.tree.map(np.asarray, items)
    args = ocp.args.Composite(
        **{k: ocp.args.StandardSave(v) for k, v in items.items()},
        digests=ocp.args.JsonSave({k: digests(v) for k, v in items.items()}),
    )
    log = logging.getLogger("absl")
    level = log.level
    # Threads print traces of what is raised here, some of them after it.
    log.setLevel(logging.CRITICAL)
    try:
        saved = manager.save(step, args=args)
    except Exception as error:
        # The array store tells the system's error in its text alone.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        if number is None:
            log.setLevel(level)
            raise
        path = pathlib.Path(manager.directory) / str(step)
        for partial in path.parent.glob(f"{step}.*tmp*"):
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(number, os.strerror(number), str(path)) from error
    log.setLevel(level)
    if not saved:  # by orbax's choice
        raise ValueError(f"step must be above those of {manager.directory}, got {step}")


def set_aside_after(workdir: str | pathlib.Path, step: int) -> None:
    """Moves checkpoints later than `step` to `workdir/checkpoints_set_aside`.

    Training does so when it goes back behind a damaged checkpoint, whose step it will
    write again: what cannot be read today may be readable tomorrow. If two are set
    aside at one step, the later one is kept.
    """
    for later in steps(workdir):
        if later > step:
            target = pathlib.Path(workdir) / "checkpoints_set_aside" / str(later)
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            (_directory(workdir) / str(later)).rename(target)


def steps(workdir: str | pathlib.Path) -> list[int]:
    """Returns the steps of the finished checkpoints of a run, in order."""
    import orbax.checkpoint as ocp

    directory = _directory(workdir)
    return sorted(ocp.utils.checkpoint_steps(directory)) if directory.is_dir() else []


def restore(
    workdir: str | pathlib.Path, templates: dict[str, PyTree], step: int | None = None
) -> tuple[int, dict[str, PyTree]]:
    """Reads the newest sound checkpoint, or that of `step`; writes nothing.

    Args:
      workdir: directory of a run.
      templates: which items to read, as pytrees of anything with shape and dtype.
      step: the one step to read; None for the newest that is sound.

    Returns:
      The step, and the items with NumPy leaves. A warning names each checkpoint that
      was skipped.

    Raises:
      FileNotFoundError: if there is no checkpoint, or none of `step`.
      CorruptCheckpointError: if none that may be read is sound.
    """
    directory, available = _directory(workdir), steps(workdir)
    if not available or (step is not None and step not in available):
        wanted = "" if step is None else f" of step {step}"
        raise FileNotFoundError(
            f"no checkpoint{wanted} in {directory}; found steps {available}"
        )
    reasons = []
    candidates = available[::-1] if step is None else [step]
    for candidate in candidates:
        try:
            return candidate, _read(directory / str(candidate), templates)
        except (MemoryError, PermissionError):
            raise  # says nothing about the file
        except _OtherArrays as error:
            reason = str(error)
        except Exception as error:  # many kinds: whatever a damaged file provokes
            lines = str(error).strip().splitlines() or [""]
            reason = f"is corrupt ({type(error).__name__}: {lines[0][:200]})"
        reasons.append(f"checkpoint {directory / str(candidate)} {reason}")
        if candidate != candidates[-1]:
            warnings.warn(f"{reasons[-1]}; trying the one before", stacklevel=2)
    raise CorruptCheckpointError("; ".join(reasons))


def _read(path, templates):
    import orbax.checkpoint as ocp

    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), templates)
    handler = ocp.CompositeCheckpointHandler(**_handlers())
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
        only_digests = ocp.args.Composite(digests=ocp.args.JsonRestore())
        there = reader.restore(path, args=only_digests)["digests"]
        _check_names(templates, there)
        items = {k: ocp.args.StandardRestore(v) for k, v in zeros.items()}
        restored = reader.restore(path, args=ocp.args.Composite(**items))
    for name in templates:
        expected, got = there[name], digests(restored[name])
        wrong = sorted(k for k in expected if expected[k] != got[k])
        if wrong:
            raise CorruptCheckpointError(f"digest mismatch in {name} at {wrong}")
        _check_shapes(name, templates[name], restored[name])
    return {name: restored[name] for name in templates}


def _check_names(templates, there):
    """Refuses arrays of other names than the digests have."""
    for item, template in templates.items():
        asked = _by_path(template).keys()
        missing, unknown = asked - there[item].keys(), there[item].keys() - asked
        if missing or unknown:
            raise _OtherArrays(
                f"is of another model or version, or damaged: its {item} has no "
                f"{sorted(missing)[:3]}, and has {sorted(unknown)[:3]}"
            )


def _check_shapes(item, template, restored):
    """Refuses arrays of other shapes, which the array store would return."""
    found = _by_path(restored)
    for path, asked in _by_path(template).items():
        if np.shape(found[path]) != np.shape(asked):
            raise _OtherArrays(
                f"is of other settings: {path} of its {item} has shape "
                f"{np.shape(found[path])}, expected {np.shape(asked)}"
            )


def _directory(workdir):
    return pathlib.Path(workdir).absolute() / "checkpoints"


def _handlers():
    import orbax.checkpoint as ocp

    alone = {"multiprocessing_options": _alone()}
    return {
        "ema": ocp.StandardCheckpointHandler(**alone),
        "train_state": ocp.StandardCheckpointHandler(**alone),
        "walkers": ocp.StandardCheckpointHandler(**alone),
        "digests": ocp.JsonCheckpointHandler(**alone),
    }


def _alone():
    """Lets this process read and write without waiting for the others."""
    import orbax.checkpoint as ocp

    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(index, {index}, f"process{index}")


def digests(tree: PyTree) -> dict[str, str]:
    """Computes sha256 of every leaf's dtype, shape and bytes, by its path.

    Example:
      >>> list(digests({"w": np.zeros(3)}))
      ["['w']"]
    """

    def digest(leaf):
        leaf = np.ascontiguousarray(leaf)
        head = f"{leaf.dtype}{leaf.shape}".encode()
        return hashlib.sha256(head + leaf.tobytes()).hexdigest()

    return {path: digest(leaf) for path, leaf in _by_path(tree).items()}


def _by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def save(
    workdir: str | pathlib.Path, model: Model, params: Params, step: int = 0
) -> None:
    """Saves a model and its parameters, for `load`.

    Args:
      workdir: a directory, which is made if it is not there. It may hold other steps of
        the same model.
      model: the model. A backbone, energy or likelihood of yours is found again by its
        module and name, so define it in a module that can be imported.
      params: its parameters; the file has float32.
      step: the number of the checkpoint, above those that are there.

    Raises:
      FileExistsError: if the directory holds this step, or another model.
      ValueError: if the parameters do not fit the model, a part of it has no name, or
        the directory holds a later step.

    Example:
      >>> import tempfile, jebm
      >>> model, params = jebm.load_pretrained("digits")
      >>> workdir = tempfile.mkdtemp()
      >>> save(workdir, model, params)
      >>> jebm.load(workdir)[0] == model
      True
    """
    checks.instance("model", model, Model)
    checks.params(model, params)
    checks.integer("step", step)
    spec, path = to_spec(model), pathlib.Path(workdir) / "model.json"
    if path.is_file() and build(json.loads(path.read_text())) != build(spec):
        raise FileExistsError(f"{workdir} holds another model: choose another workdir")
    if step in (there := steps(workdir)):
        raise FileExistsError(f"{workdir} holds step {step} already")
    with manager(workdir, keep=len(there) + 1) as opened:
        write(opened, step, {"ema": jax.tree.map(_single, params)})
    with written_whole(path) as partial:  # last: now it can be loaded
        partial.write_text(json.dumps(spec, indent=2) + "\n")


def _single(leaf):
    """Returns a floating-point leaf in float32, and any other as it is."""
    leaf = np.asarray(leaf)
    floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    return leaf.astype(np.float32) if floating else leaf


def load(workdir: str | pathlib.Path, step: int | None = None) -> tuple[Model, Params]:
    """Loads what `save` or a finished or running experiment has written.

    Of an experiment these are the averaged parameters, and chains whose steps adapt
    have those of the newest checkpoint.

    Args:
      workdir: directory of a run.
      step: the checkpoint to read; None for the newest that is sound.

    Returns:
      The model and its parameters.

    Raises:
      FileNotFoundError: if `workdir` holds no run, or no checkpoint of `step`.
      ValueError: if its model.json describes no model.
      CorruptCheckpointError: if no checkpoint that may be read is sound.

    Example:
      >>> load("/no/such/run")
      Traceback (most recent call last):
        ...
      FileNotFoundError: no run in /no/such/run: it has no model.json
    """
    path = pathlib.Path(workdir) / "model.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run in {workdir}: it has no model.json")
    try:
        model = build(json.loads(path.read_text()))
        # Runs are of float32, whatever the default is here.
        template = jax.eval_shape(
            lambda key: init(key, model, np.float32), jax.random.key(0)
        )
    except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes no model: {error}") from error
    _, items = restore(workdir, {"ema": template}, step)
    return model, jax.tree.map(jax.numpy.asarray, items["ema"])
