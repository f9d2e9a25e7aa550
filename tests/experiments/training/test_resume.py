import dataclasses
import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

import jebm
from experiments.errors import ConfigError, Diverged
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from jebm.checkpoints import CorruptCheckpointError
from jebm.learning import losses
from tests.experiments.runs import (
    CONFIG,
    build_model,
    contents,
    create_state,
    data_files,
    flip_bytes,
    metrics,
    run,
    run_main,
    start_main,
    state_digests,
)


@pytest.fixture
def copied_run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def truncate(path, step, item):
    for file in data_files(path, step, item):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose_arrays(path, step, item):
    for file in data_files(path, step, item):
        file.unlink()


def lose_digests(path, step, item):
    shutil.rmtree(path / "checkpoints" / str(step) / "digests")


@pytest.mark.slow
def test_killed_run_continues_as_if_nothing_had_happened(tmp_path, test_config):
    options = [
        "--config.learning.num_steps=100",
        "--config.log.every=1",
        "--config.log.sample_every=100",
    ]
    # When to save may change: the killed run saves all along, which takes seconds, the
    # other two at the end.
    often = ["--config.log.checkpoint_every=1", "--config.log.keep=100"]
    rarely = ["--config.log.checkpoint_every=100"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    process = start_main(f"--workdir={killed}", *options, *often, figures=False)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoints" / "5").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    last = checkpoints.steps(killed)[-1]
    assert 4 <= last < 100

    finished = [
        start_main(f"--workdir={path}", *options, *rarely, figures=False)
        for path in (killed, whole)
    ]
    outputs = [process.communicate(timeout=300) for process in finished]
    assert [process.returncode for process in finished] == [0, 0], outputs
    assert f"Resuming {killed} from step {last}." in outputs[0][0]
    assert "Resuming" not in outputs[1][0]
    assert state_digests(test_config, killed, 100) == state_digests(
        test_config, whole, 100
    )
    assert [line["step"] for line in metrics(whole)] == list(range(1, 101))
    assert metrics(killed) == metrics(whole)


@pytest.mark.parametrize("damage", [flip_bytes, truncate, lose_arrays, lose_digests])
@pytest.mark.parametrize("item", ["ema", "train_state"])
def test_damaged_checkpoint_is_passed_over_aloud(copied_run, test_config, damage, item):
    damage(copied_run, 8, item)
    state = create_state(test_config, build_model(test_config))
    with pytest.warns(UserWarning, match=r"checkpoints/8 is corrupt"):
        step, _ = checkpoints.restore(copied_run, checkpoint_items(state))
    assert step == 4


@pytest.mark.slow
def test_run_with_a_damaged_newest_checkpoint_goes_back_and_ends_with_the_same_bits(
    copied_run, trained_run, test_config, capsys
):
    flip_bytes(copied_run, 8, "train_state")
    run(test_config, copied_run)
    out = capsys.readouterr().out
    assert re.search(r"^warning: checkpoint .*/checkpoints/8 is corrupt", out, re.M)
    assert f"Resuming {copied_run} from step 4." in out
    assert checkpoints.steps(copied_run) == [4, 8]
    assert state_digests(test_config, copied_run, 8) == state_digests(
        test_config, trained_run, 8
    )
    assert metrics(copied_run) == metrics(trained_run)


@pytest.mark.parametrize("damage", [flip_bytes, lose_arrays])
def test_run_without_a_sound_checkpoint_is_refused_and_left_as_it_is(
    copied_run, test_config, damage
):
    damage(copied_run, 4, "ema")
    damage(copied_run, 8, "train_state")
    before = contents(copied_run)
    test_config.learning.num_steps = 12
    with pytest.raises(CorruptCheckpointError) as raised:
        run(test_config, copied_run)
    for step in (4, 8):
        assert str(copied_run / "checkpoints" / str(step)) in str(raised.value)
    assert contents(copied_run) == before


def test_run_of_an_older_version_is_told_by_what_it_can_still_do(
    copied_run, trained_run, test_config
):
    """Its model.json names no kernels; it loads, and cannot be trained on."""
    spec = json.loads((copied_run / "model.json").read_text())
    for chain in spec["chains"].values():
        del chain["name"]
        chain.pop("friction", None)  # of kernels that were not there
    (copied_run / "model.json").write_text(json.dumps(spec))
    test_config.learning.num_steps = 16
    before = contents(copied_run)
    with pytest.raises(ConfigError, match=r"an older version began .* start again"):
        run(test_config, copied_run)
    assert contents(copied_run) == before
    (model, params), (_, same) = jebm.load(copied_run), jebm.load(trained_run)
    assert checkpoints.digests(params) == checkpoints.digests(same)
    there = jebm.load(trained_run)[0]
    learned = there.chains.prior.step_size
    untested = dataclasses.replace(there.chains, prior=jebm.Langevin(4, learned))
    assert model == dataclasses.replace(there, chains=untested)


def test_only_averaged_parameters_are_needed_to_load(copied_run, trained_run):
    flip_bytes(copied_run, 8, "train_state")
    loaded, sound = jebm.load(copied_run)[1], jebm.load(trained_run)[1]
    assert checkpoints.digests(loaded) == checkpoints.digests(sound)


def test_finished_run_is_left_as_it_is(copied_run, trained_run, test_config, capsys):
    run(test_config, copied_run)
    assert "trained already, for 8 steps" in capsys.readouterr().out
    assert contents(copied_run) == contents(trained_run)


def nan_loss(*arguments, loss=losses.maximum_likelihood_loss):
    return jax.tree.map(lambda x: x * np.float32("nan"), loss(*arguments))


@pytest.mark.slow
def test_nan_ends_a_run_by_name_and_keeps_its_good_checkpoint(
    copied_run, trained_run, test_config
):
    test_config.learning.num_steps = 16
    test_config.monitor.max_rollbacks = 0
    wrong = r"diverged by step 10: .*\bloss_nats\b.* not finite, after 0 rollbacks"
    with pytest.raises(Diverged, match=wrong) as raised:
        run(test_config, copied_run, maximum_likelihood_loss=nan_loss)
    assert f"{copied_run} checkpoint 4 is sound" in str(raised.value)
    # That of step 8 was not followed by a sound interval of four steps.
    assert checkpoints.steps(copied_run) == [4]
    for left, step in (("checkpoints", "4"), ("checkpoints_set_aside", "8")):
        sound = contents(trained_run / "checkpoints" / step)
        assert contents(copied_run / left / step) == sound


@pytest.mark.slow
def test_diverging_command_ends_in_one_line_and_without_a_checkpoint(tmp_path, capsys):
    path = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run_main(CONFIG, f"--workdir={path}", "--config.learning.backbone_lr=1e30")
    message = stopped.value.code
    wrong = r"error: training diverged by step 2: .*\bloss_nats\b.* not finite, "
    assert re.match(wrong + r"after 5 rollbacks.* no checkpoint is left", message)
    assert "\n" not in message
    out = capsys.readouterr().out
    assert re.findall(r"^Rollback (\d+) of at most 5: ", out, re.M) == list("12345")
    assert checkpoints.steps(path) == []


def test_fewer_steps_than_trained_are_refused_and_nothing_is_written(
    copied_run, trained_run, test_config
):
    test_config.learning.num_steps = 4
    with pytest.raises(ConfigError, match="trained for 8 steps already"):
        run(test_config, copied_run)
    assert contents(copied_run) == contents(trained_run)
