import doctest
import math
import re
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import pytest

import jebm
from experiments import options
from experiments.errors import Diverged
from experiments.rundir.metrics import read_metrics
from experiments.runtime import parallel
from experiments.training import learner, monitor
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from jebm.learning import Limits, losses
from jebm.model import trainable
from tests.experiments.runs import (
    CONFIG,
    build_model,
    create_state,
    flip_bytes,
    metrics,
    rolled_back_fields,
    run,
    run_main,
    start_main,
    state_digests,
)
from tests.models import random_params

LIMITS = Limits(
    energy_gap_nats=50.0,
    prior_grad_norm=1e3,
    posterior_grad_norm=1e5,
    prior_eps_square=10.0,
)
AT_THE_LIMITS = LIMITS._asdict()


def test_values_within_the_limits_are_sound():
    assert monitor.violations(AT_THE_LIMITS, LIMITS) is None
    assert monitor.violations({"energy_gap_nats": -50.0}, LIMITS) is None
    assert monitor.violations({"loss_nats": 1e30, "rollbacks": 4}, LIMITS) is None
    assert monitor.violations({}, LIMITS) is None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", Limits._fields)
def test_value_beyond_its_limit_is_named_with_it(name, sign):
    limit = AT_THE_LIMITS[name]
    values = AT_THE_LIMITS | {name: sign * 1.5 * limit}
    message = f"{name} of {values[name]:.4g} beyond {limit:g}"
    assert monitor.violations(values, LIMITS) == message
    assert monitor.violations(values, LIMITS._replace(**{name: math.inf})) is None
    twice = {k: 2 * v for k, v in AT_THE_LIMITS.items()}
    assert monitor.violations(twice, LIMITS).count(";") == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss_nats", "prior_grad_norm"])
def test_value_that_is_not_finite_is_never_allowed(name, value):
    limits = Limits(*[math.inf] * len(Limits._fields))
    values = {name: value, "energy_gap_nats": 1e30}
    assert monitor.violations(values, limits) == f"{name} not finite"


@pytest.mark.parametrize(
    ("steps", "step", "good"),
    [
        ([], 2, 0),
        ([4], 6, 0),
        ([4], 8, 0),  # the interval that ended beyond the limits is not sound
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
def test_rollback_without_headway_goes_one_checkpoint_further_back(steps, step, good):
    assert monitor.last_good(steps, step, interval=4, good=8) == good


def test_examples_of_the_docstrings():
    assert doctest.testmod(monitor).failed == 0


@pytest.mark.slow
@jax.numpy_dtype_promotion("standard")  # which optax needs
@pytest.mark.parametrize("rollbacks", [1, 3])
def test_each_rollback_halves_the_steps_of_the_energies_alone(test_config, rollbacks):
    model = build_model(test_config)
    state = create_state(test_config, model)
    optimizer = learner.create_optimizer(options.read(test_config).learning)
    grads = trainable(random_params(model), frozen=False)
    fresh, rolled_back = (
        optimizer.update(
            grads, learner.scale_energy_updates(state.learner, 0.5**count).opt_state
        )[0]
        for count in (0, rollbacks)
    )
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(fresh.energy))
    expected = fresh._replace(
        energy=jax.tree.map(lambda u: u * 0.5**rollbacks, fresh.energy)
    )
    jax.tree.map(np.testing.assert_array_equal, rolled_back, expected)


def runaway(config, **fields):
    """Sets what makes the pair of energy and sampler run away within a few steps."""
    config.chains.prior.name = "langevin"  # tested steps do not run away
    config.learning.update(num_steps=24, energy_lr=3.0, gradient_penalty=0.0)
    config.learning.update(target_acceptance=0.0, reinit_probability=0.5)
    config.log.update(sample_every=24, diagnose_every=24)
    config.monitor.update(fields)
    return config


RUNAWAY = [
    "--config.chains.prior.name=langevin",
    "--config.learning.target_acceptance=0",
    "--config.learning.reinit_probability=0.5",
    "--config.learning.num_steps=24",
    "--config.learning.energy_lr=3.0",
    "--config.learning.gradient_penalty=0.0",
    "--config.log.sample_every=24",
    "--config.log.diagnose_every=24",
]


def check_rollbacks(path, said, most):
    """The rollbacks of a run: numbered, at half the rate each, in metrics and page."""
    told = [line for line in metrics(path) if "rollback" in line]
    page = (path / "report.html").read_text()
    assert said.splitlines() == [line["rollback"] for line in told]
    for count, line in enumerate(told, 1):
        assert line["rollbacks"] == count
        assert re.fullmatch(
            rf"Rollback {count} of at most {most}: .* beyond .*, by step \d+\. Back to "
            rf"step {line['step']} with half the energy learning rate, "
            rf"{3 * 0.5**count:.3g}\.",
            line["rollback"],
        )
        assert line["rollback"] in page
    return len(told)


def check_history(path, last):
    """Steps rise to the last one, as do the rollbacks that each was taken after."""
    lines = [line for line in metrics(path) if "rollback" not in line]
    assert [line["step"] for line in lines] == list(range(2, last + 1, 2))
    counts = [line["rollbacks"] for line in lines]
    assert counts == sorted(counts)
    return lines


def rollbacks_of(config, path, step):
    """The number of rollbacks in the checkpoint of a step."""
    state = create_state(config, build_model(config))
    items = checkpoints.restore(path, checkpoint_items(state), step)[1]
    return int(items["train_state"]["guard"].rescues)


def rollback_lines(out):
    return "\n".join(re.findall(r"^Rollback .*$", out, re.M))


@pytest.mark.slow
def test_runaway_is_rolled_back_until_the_energies_learn_slowly_enough(
    tmp_path, test_config, capsys
):
    path = tmp_path / "run"
    loss = mock.Mock(side_effect=losses.maximum_likelihood_loss)
    config = runaway(test_config, max_rollbacks=14)
    run(config, path, maximum_likelihood_loss=loss)
    rollbacks = check_rollbacks(path, rollback_lines(capsys.readouterr().out), most=14)
    assert rollbacks >= 2
    lines = check_history(path, last=24)
    assert lines[-1]["rollbacks"] == rollbacks
    for line in lines:
        assert monitor.violations(line, LIMITS) is None
    assert checkpoints.steps(path)[-1] == 24
    assert rollbacks_of(test_config, path, 24) == rollbacks
    assert loss.call_count == 1  # no rollback compiles anew


def test_runaway_that_goes_on_ends_in_one_line_with_the_good_checkpoints(
    tmp_path, test_config, capsys
):
    path = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run_main(
            CONFIG, f"--workdir={path}", *RUNAWAY, "--config.monitor.max_rollbacks=3"
        )
    out = capsys.readouterr().out
    assert check_rollbacks(path, rollback_lines(out), most=3) == 3
    message = stopped.value.code
    said = re.fullmatch(
        r"error: training diverged by step (\d+): .* beyond .*, after 3 rollbacks\. In "
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
        if "rollback" not in line and line["step"] <= good:
            assert monitor.violations(line, LIMITS) is None


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
    """A run whose energies stay 0, whatever the number of rollbacks."""
    path = tmp_path_factory.mktemp("spared") / "run"
    run(still(), path)
    return path


def still():
    from experiments.configs import test

    config = test.get_config()
    config.learning.update(num_steps=16, energy_lr=0.0)
    config.log.update(sample_every=16, diagnose_every=16, keep=4)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "found", "words"),
    [
        (11, 12, "grad_norm, .*loss_nats.* not finite"),  # one step later, by metrics
        (12, 12, "checkpoint's train_state not finite"),  # the metrics are of before
    ],
)
def test_nan_that_comes_once_leaves_no_trace_but_its_rollback(
    tmp_path, monkeypatch, spared, capsys, step, found, words
):
    monkeypatch.setattr(parallel, "pmap", poisoned_pmap(step))
    path, config = tmp_path / "run", still()
    run(config, path)
    said = rollback_lines(capsys.readouterr().out)
    pattern = (
        rf"Rollback 1 of at most 5: .*({words}), by step {found}\. Back to step 4 "
    )
    assert re.match(pattern, said)
    told = [line for line in metrics(path) if "rollback" in line]
    assert told == [{"step": 4, "rollbacks": 1, "rollback": said}]

    # Going back restored all that a step depends on: the same bits as if unharmed.
    struck, unharmed = (state_digests(config, run, 16) for run in (path, spared))
    assert {k for k in struck if struck[k] != unharmed[k]} == rolled_back_fields(struck)
    assert rollbacks_of(config, path, 16) == 1
    lines = check_history(path, last=16)
    assert [line.pop("rollbacks") for line in lines] == [0, 0, *[1] * 6]
    assert lines == [
        {k: v for k, v in line.items() if k != "rollbacks"} for line in metrics(spared)
    ]
    assert [file.name for file in (path / "checkpoints_set_aside").iterdir()] == ["8"]


def test_rollback_passes_over_a_damaged_checkpoint_aloud(
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
    assert re.search(r"^Rollback 1 .*by step 14\. Back to step 4 ", out, re.M)
    assert checkpoints.steps(path) == [4, 8, 12, 16]
    struck, unharmed = (state_digests(config, run, 16) for run in (path, spared))
    assert {k for k in struck if struck[k] != unharmed[k]} == rolled_back_fields(struck)


def test_what_has_diverged_is_sampled_with_the_step_of_the_good_checkpoint(
    tmp_path, monkeypatch
):
    path, config = tmp_path / "run", still()
    config.monitor.max_rollbacks = 0
    monkeypatch.setattr(parallel, "pmap", poisoned_pmap(11))
    with pytest.raises(Diverged, match="checkpoint 4 is sound"):
        run(config, path)
    state = create_state(config, build_model(config))
    there = checkpoints.restore(path, checkpoint_items(state))[1]["train_state"]
    learned = float(there["step_size"])
    assert learned != pytest.approx(config.chains.prior.step_size, rel=0.02)
    assert jebm.load(path)[0].chains.prior.step_size == pytest.approx(learned, rel=0.01)


def test_gaussian_twin_that_diverges_ends_at_once(tmp_path, test_config, capsys):
    test_config.prior = "gaussian"
    test_config.learning.backbone_lr = 1e30
    wrong = r"diverged by step 2: .*loss_nats.* not finite, after 0 rollbacks"
    with pytest.raises(Diverged, match=wrong):
        run(test_config, tmp_path / "run")
    assert rollback_lines(capsys.readouterr().out) == ""
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2]


# Ends the process that a rollback has taken back to a checkpoint: when it has been
# announced, but metrics.jsonl is still that of before; or at the first checkpoint
# after it, the first to hold the number of rollbacks.
KILLED = """
import os, signal
from experiments.rundir.metrics import Metrics
from jebm import checkpoints

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def rewind(self, step, rollbacks, message=None, *, rewind=Metrics.rewind):
    rolled_back.append(message is not None and step > 0)
    if rolled_back[-1] and WHEN == "announced":
        die()
    rewind(self, step, rollbacks, message)

def write(manager, step, items, *, write=checkpoints.write):
    write(manager, step, items)
    if any(rolled_back) and WHEN == "saved":
        die()

rolled_back = []
Metrics.rewind, checkpoints.write = rewind, write
"""


@pytest.mark.slow
def test_run_killed_in_a_rollback_continues_as_if_nothing_had_happened(
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
    *_, told = (line for line in read_metrics(killed) if "rollback" in line)
    assert checkpoints.steps(killed)[-1] == told["step"] + 4
    assert rollbacks_of(config, killed, told["step"] + 4) == told["rollbacks"]

    for process in (start(killed), reference):
        output = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert metrics(killed) == metrics(whole)
    assert len(check_history(whole, last=24)) == 12
    assert state_digests(config, killed, 24) == state_digests(config, whole, 24)
