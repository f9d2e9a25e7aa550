import doctest
import math
import re
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import pytest

from experiments.errors import Diverged
from experiments.rundir.metrics import read_metrics
from experiments.runtime import parallel
from experiments.training import learner, monitor, train
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from jebm.learning import losses
from jebm.model import trainable
from tests.experiments.runs import (
    CONFIG,
    flip_bytes,
    metrics,
    rescued_fields,
    run,
    run_main,
    start_main,
    state_digests,
)
from tests.models import random_params

LIMITS = {
    "energy_gap_nats": 50.0,
    "prior_grad_norm": 1e3,
    "posterior_grad_norm": 1e5,
    "prior_eps_square": 10.0,
}


def test_values_within_the_limits_are_sound():
    assert monitor.verdict(LIMITS, LIMITS) is None
    assert monitor.verdict({"energy_gap_nats": -50.0}, LIMITS) is None
    assert monitor.verdict({"loss_nats": 1e30, "rescues": 4}, LIMITS) is None
    assert monitor.verdict({}, LIMITS) is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", monitor.LIMITS)
def test_value_beyond_its_limit_is_named_with_it(name, sign):
    values = LIMITS | {name: sign * 1.5 * LIMITS[name]}
    said = f"{name} of {values[name]:.4g} beyond {LIMITS[name]:g}"
    assert monitor.verdict(values, LIMITS) == said
    assert monitor.verdict(values, LIMITS | {name: math.inf}) is None
    assert (
        monitor.verdict({k: 2 * v for k, v in LIMITS.items()}, LIMITS).count(";") == 3
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss_nats", "prior_grad_norm"])
def test_value_that_is_not_finite_is_never_allowed(name, value):
    limits = dict.fromkeys(LIMITS, math.inf)
    values = {name: value, "energy_gap_nats": 1e30}
    assert monitor.verdict(values, limits) == f"{name} not finite"


@pytest.mark.parametrize(
    ("steps", "step", "good"),
    [
        ([], 2, 0),
        ([4], 6, 0),
        ([4], 8, 0),  # the interval that ended with the verdict is not sound
        ([4], 10, 4),
        ([4, 8], 10, 4),
        ([4, 8], 12, 4),
        ([4, 8], 14, 8),
        ([4, 8, 12], 13, 8),
        ([8], 10, 0),
    ],
)
def test_last_good_checkpoint_was_followed_by_a_whole_interval(steps, step, good):
    assert monitor.last_good(steps, step, interval=4) == good


@pytest.mark.parametrize(
    ("steps", "step", "good"),
    [
        ([4, 8], 9, 4),
        ([4, 8, 12], 16, 4),  # 12 has not proved itself
        ([4, 8, 12], 17, 12),
        ([4], 9, 4),  # 8 turned out to be damaged
        ([8], 9, 0),
    ],
)
def test_rescue_without_headway_goes_one_checkpoint_further_back(steps, step, good):
    assert monitor.last_good(steps, step, interval=4, good=8) == good


def test_examples_of_the_docstrings():
    assert doctest.testmod(monitor).failed == 0


@jax.numpy_dtype_promotion("standard")  # which optax needs
@pytest.mark.parametrize("rescues", [1, 3])
def test_each_rescue_halves_the_steps_of_the_energies_alone(test_config, rescues):
    model = train.build_model(test_config, (8, 8, 1))
    state = train.create_state(test_config, model)
    optimizer = learner.create_optimizer(test_config.learning)
    grads = trainable(random_params(model), frozen=False)
    fresh, rescued = (
        optimizer.update(
            grads, learner.scale_energy_updates(state.learner, 0.5**count).opt_state
        )[0]
        for count in (0, rescues)
    )
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(fresh.energy))
    expected = fresh._replace(
        energy=jax.tree.map(lambda u: u * 0.5**rescues, fresh.energy)
    )
    jax.tree.map(np.testing.assert_array_equal, rescued, expected)


def runaway(config, **fields):
    """Sets what makes the pair of energy and sampler run away within a few steps."""
    config.learning.update(num_steps=24, energy_lr=3.0, gradient_penalty=0.0)
    config.log.update(sample_every=24, diagnose_every=24)
    config.monitor.update(fields)
    return config


RUNAWAY = [
    "--config.learning.num_steps=24",
    "--config.learning.energy_lr=3.0",
    "--config.learning.gradient_penalty=0.0",
    "--config.log.sample_every=24",
    "--config.log.diagnose_every=24",
]


def check_rescues(path, said, most):
    """The rescues of a run: numbered, at half the rate each, in metrics and report."""
    told = [line for line in metrics(path) if "rescue" in line]
    page = (path / "report.html").read_text()
    assert said.splitlines() == [line["rescue"] for line in told]
    for count, line in enumerate(told, 1):
        assert line["rescues"] == count
        assert re.fullmatch(
            rf"Rescue {count} of at most {most}: .* beyond .*, by step \d+\. Back to "
            rf"step {line['step']} with half the energy learning rate, "
            rf"{3 * 0.5**count:.3g}\.",
            line["rescue"],
        )
        assert line["rescue"] in page
    return len(told)


def check_history(path, last):
    """Steps rise to the last one, as do the rescues that each was taken after."""
    lines = [line for line in metrics(path) if "rescue" not in line]
    assert [line["step"] for line in lines] == list(range(2, last + 1, 2))
    counts = [line["rescues"] for line in lines]
    assert counts == sorted(counts)
    return lines


def rescues_of(config, path, step):
    """The number of rescues in the checkpoint of a step."""
    state = train.create_state(config, train.build_model(config, (8, 8, 1)))
    items = checkpoints.restore(path, checkpoint_items(state), step)[1]
    return int(items["train_state"]["guard"].rescues)


def rescue_lines(out):
    return "\n".join(re.findall(r"^Rescue .*$", out, re.M))


def test_runaway_is_rescued_until_the_energies_learn_slowly_enough(
    tmp_path, test_config, capsys
):
    path = tmp_path / "run"
    loss = mock.Mock(side_effect=losses.maximum_likelihood_loss)
    config = runaway(test_config, max_rollbacks=14)
    run(config, path, maximum_likelihood_loss=loss)
    rescues = check_rescues(path, rescue_lines(capsys.readouterr().out), most=14)
    assert rescues >= 2
    lines = check_history(path, last=24)
    assert lines[-1]["rescues"] == rescues
    for line in lines:
        assert monitor.verdict(line, test_config.monitor) is None
    assert checkpoints.steps(path)[-1] == 24
    assert rescues_of(test_config, path, 24) == rescues
    assert loss.call_count == 1  # no rescue compiles anew


def test_runaway_that_goes_on_ends_in_one_line_with_the_good_checkpoints(
    tmp_path, test_config, capsys
):
    path = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run_main(
            CONFIG, f"--workdir={path}", *RUNAWAY, "--config.monitor.max_rollbacks=3"
        )
    out = capsys.readouterr().out
    assert check_rescues(path, rescue_lines(out), most=3) == 3
    message = stopped.value.code
    said = re.fullmatch(
        r"error: training diverged by step (\d+): .* beyond .*, after 3 rescues\. In "
        rf"{re.escape(str(path))} checkpoint (\d+) is sound\. Try a smaller "
        r"learning\.energy_lr .*",
        message,
    )
    assert said, message
    end, good = map(int, said.groups())
    left = checkpoints.steps(path)
    assert left[-1] == good < end - 4
    aside = {int(file.name) for file in (path / "checkpoints_set_aside").iterdir()}
    assert max(aside) > good
    digests = state_digests(runaway(test_config), path, good)  # it can be read
    assert len(digests) > 40
    for line in metrics(path):
        if "rescue" not in line and line["step"] <= good:
            assert monitor.verdict(line, test_config.monitor) is None


def poisoned_pmap(step, then=lambda: None):
    """`parallel.pmap` whose training step, once, leaves NaN parameters at `step`."""
    pmap, struck = parallel.pmap, []

    def patched(function, devices, donate=True):
        mapped = pmap(function, devices, donate)
        if not donate:  # it is for diagnosis
            return mapped

        def call(key, state, images):
            state, values = mapped(key, state, images)
            if not struck and int(np.asarray(state.learner.step)[0]) == step:
                struck.append(step)
                then()
                nan = jax.tree.map(
                    lambda x: x * np.float32("nan"), state.learner.params
                )
                learner = state.learner.replace(params=nan)
                state = state.replace(learner=learner)
            return state, values

        return call

    return patched


@pytest.fixture(scope="module")
def spared(tmp_path_factory):
    """A run whose energies stay 0, whatever the number of rescues."""
    path = tmp_path_factory.mktemp("spared") / "run"
    run(still(), path)
    return path


def still():
    from experiments.configs import test

    config = test.get_config()
    config.learning.update(num_steps=16, energy_lr=0.0)
    config.log.update(sample_every=16, diagnose_every=16, keep=4)
    return config


@pytest.mark.parametrize(
    ("step", "found", "words"),
    [
        (11, 12, "grad_norm, .*loss_nats.* not finite"),  # one step later, by metrics
        (12, 12, "checkpoint's train_state not finite"),  # the metrics are of before
    ],
)
def test_nan_that_comes_once_leaves_no_trace_but_its_rescue(
    tmp_path, monkeypatch, spared, capsys, step, found, words
):
    monkeypatch.setattr(parallel, "pmap", poisoned_pmap(step))
    path, config = tmp_path / "run", still()
    run(config, path)
    said = rescue_lines(capsys.readouterr().out)
    pattern = rf"Rescue 1 of at most 5: .*({words}), by step {found}\. Back to step 4 "
    assert re.match(pattern, said)
    told = [line for line in metrics(path) if "rescue" in line]
    assert told == [{"step": 4, "rescues": 1, "rescue": said}]

    # Going back restored all that a step depends on: the same bits as if unharmed.
    struck, unharmed = (state_digests(config, run, 16) for run in (path, spared))
    assert {k for k in struck if struck[k] != unharmed[k]} == rescued_fields(struck)
    assert rescues_of(config, path, 16) == 1
    lines = check_history(path, last=16)
    assert [line.pop("rescues") for line in lines] == [0, 0, *[1] * 6]
    assert lines == [
        {k: v for k, v in line.items() if k != "rescues"} for line in metrics(spared)
    ]
    assert [file.name for file in (path / "checkpoints_set_aside").iterdir()] == ["8"]


def test_rescue_passes_over_a_damaged_checkpoint_aloud(
    tmp_path, monkeypatch, spared, capsys
):
    path, config = shutil.copytree(spared, tmp_path / "run"), still()
    checkpoints.set_aside_after(path, 8)
    shutil.rmtree(path / "checkpoints_set_aside")

    def damage():
        flip_bytes(path, 8, "train_state")

    monkeypatch.setattr(parallel, "pmap", poisoned_pmap(13, then=damage))
    run(config, path)
    out = capsys.readouterr().out
    assert re.search(r"^warning: checkpoint .*/checkpoints/8 is corrupt", out, re.M)
    assert re.search(r"^Rescue 1 .*by step 14\. Back to step 4 ", out, re.M)
    assert checkpoints.steps(path) == [4, 8, 12, 16]
    struck, unharmed = (state_digests(config, run, 16) for run in (path, spared))
    assert {k for k in struck if struck[k] != unharmed[k]} == rescued_fields(struck)


def test_gaussian_twin_that_diverges_ends_at_once(tmp_path, test_config, capsys):
    test_config.prior = "gaussian"
    test_config.learning.backbone_lr = 1e30
    wrong = r"diverged by step 2: .*loss_nats.* not finite, after 0 rescues"
    with pytest.raises(Diverged, match=wrong):
        run(test_config, tmp_path / "run")
    assert rescue_lines(capsys.readouterr().out) == ""
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2]


# Ends the process that a rescue has taken back to a checkpoint: when it has been
# announced, but metrics.jsonl is still that of before; or at the first checkpoint
# after it, the first to hold the number of rescues.
KILLED = """
import os, signal
from experiments import workdir
from jebm import checkpoints

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def rewind(self, step, rescues, rescue=None, *, rewind=workdir.Metrics.rewind):
    rescued.append(rescue is not None and step > 0)
    if rescued[-1] and WHEN == "announced":
        die()
    rewind(self, step, rescues, rescue)

def save(manager, step, items, *, save=checkpoints.save):
    save(manager, step, items)
    if any(rescued) and WHEN == "saved":
        die()

rescued = []
workdir.Metrics.rewind, checkpoints.save = rewind, save
"""


def test_run_killed_in_a_rescue_continues_as_if_nothing_had_happened(
    tmp_path, test_config
):
    config = runaway(test_config, max_rollbacks=14)
    options = [*RUNAWAY, "--config.monitor.max_rollbacks=14"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(path, when=None):
        fault = "" if when is None else f"WHEN = {when!r}\n{KILLED}"
        return start_main(f"--workdir={path}", *options, figures=False, fault=fault)

    reference = start(whole)
    for when in ("announced", "saved"):
        process = start(killed, when)
        output = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
    *_, told = (line for line in read_metrics(killed) if "rescue" in line)
    assert checkpoints.steps(killed)[-1] == told["step"] + 4
    assert rescues_of(config, killed, told["step"] + 4) == told["rescues"]

    for process in (start(killed), reference):
        output = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert metrics(killed) == metrics(whole)
    assert len(check_history(whole, last=24)) == 12
    assert state_digests(config, killed, 24) == state_digests(config, whole, 24)
