"""Several processes on one machine, joined by jax.distributed over localhost."""

import os
import re
import shutil
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import options
from experiments.configs import test
from experiments.data import datasets
from experiments.data.batches import Batches
from experiments.errors import ConfigError, ProcessFailed
from experiments.rundir.metrics import read_metrics
from experiments.runtime import parallel
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from tests.experiments.runs import (
    build_model,
    create_state,
    metrics,
    rolled_back_fields,
    state_digests,
)
from tests.experiments.runtime.test_parallel import step_on
from tests.experiments.training.test_monitor import poisoned_pmap
from tests.models import random_params
from tools.verify import processes

STEPS = 16
OPTIONS = [
    f"--config.learning.num_steps={STEPS}",
    # So that a rollback, which halves it, is no change.
    "--config.learning.energy_lr=0.",
    f"--config.log.sample_every={STEPS}",
    f"--config.log.diagnose_every={STEPS}",
    "--config.log.keep=4",
]


def config_of_options():
    config = test.get_config()
    config.learning.update(num_steps=STEPS, energy_lr=0.0)
    config.log.update(sample_every=STEPS, diagnose_every=STEPS, keep=4)
    return config


def flags_of(num, port):
    """What tells each of `num` processes where it belongs; nothing to a single one."""
    if num == 1:
        return [[]]
    common = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num}"]
    return [[*common, f"--process_id={i}"] for i in range(num)]


@pytest.fixture
def free_port():
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def start_run(path, num, port, *options, function=processes.command, devices=1):
    return [
        processes.start(
            function,
            f"--workdir={path}",
            *OPTIONS,
            *flags,
            *options,
            log=path.parent / f"{path.name}.{i}.log",
            jax_num_cpu_devices=devices,
        )
        for i, flags in enumerate(flags_of(num, port))
    ]


def join(started, timeout=200):
    deadline = time.monotonic() + timeout
    for process in started:
        process.join(max(0, deadline - time.monotonic()))
    return [process.exitcode for process in started]


def logs(path, num):
    return [(path.parent / f"{path.name}.{i}.log").read_text() for i in range(num)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run of two processes, of a device each; not to be changed."""
    path = tmp_path_factory.mktemp("pair") / "run"
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    assert join(start_run(path, 2, port)) == [0, 0], logs(path, 2)
    return path


def write_gradients(folder, counts, place):
    """Saves what a step of gradient descent makes of the parameters, and its metrics.

    On the first of the devices there are, as many as each of `counts` says.
    """
    parallel.initialize(*place)
    config = gradient_config()
    model = build_model(config)
    params = random_params(model, scale=0.5, dtype=jnp.float64)
    index, number = jax.process_index(), jax.process_count()
    share = {"process_index": index, "process_count": number}
    batch = Batches(images(), 24, 0, **share)(3)
    with parallel.ending_together():
        for count in counts:
            devices = parallel.devices()[:count]
            state, values = step_on(devices, config, params, batch)
            leaves = jax.tree.leaves(
                (state.learner.params, state.learner.persistent, values)
            )
            np.savez(folder / f"{number}_{count}_{index}.npz", *leaves)


def gradient_config():
    config = test.get_config()
    config.learning.update(
        batch_size=24, persistent_chains=48, gradient_penalty=0.1, num_steps=4
    )
    return config


def images():
    return datasets.load(options.read(test.get_config()).data)["train"].images


@pytest.mark.slow
def test_gradients_pool_and_metrics_are_those_of_any_devices_and_processes(tmp_path):
    started = []
    counts = {1: (1, 2, 4, 8), 2: (2,), 4: (4,)}  # devices, by number of processes
    for num, devices in counts.items():
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{chosen.getsockname()[1]}"
        for i in range(num):
            place = (None, None, None) if num == 1 else (address, num, i)
            started.append(
                processes.start(
                    write_gradients,
                    tmp_path,
                    devices,
                    place,
                    log=tmp_path / "log",
                    jax_num_cpu_devices=devices[-1] // num,
                    jax_enable_x64=True,
                )
            )
    assert set(join(started)) == {0}, (tmp_path / "log").read_text()
    files = {file.stem: file for file in tmp_path.glob("*.npz")}
    assert files.keys() == {
        *("1_1_0", "1_2_0", "1_4_0", "1_8_0"),
        *("2_2_0", "2_2_1", "4_4_0", "4_4_1", "4_4_2", "4_4_3"),
    }
    with np.load(files.pop("1_1_0")) as one:
        for file in files.values():
            with np.load(file) as other:
                assert len(other.files) == len(one.files)
                for name in one.files:
                    assert one[name].dtype == np.float64
                    largest = max(1.0, np.abs(one[name]).max())
                    np.testing.assert_allclose(
                        other[name], one[name], rtol=0, atol=1e-10 * largest
                    )
    for num in (2, 4):
        shares = [files[f"{num}_{counts[num][0]}_{i}"].read_bytes() for i in range(num)]
        assert len(set(shares)) == 1


@pytest.mark.slow
def test_run_of_two_processes_is_written_once_and_is_that_of_one(pair, tmp_path):
    assert checkpoints.steps(pair) == [4, 8, 12, 16]
    assert [line["step"] for line in metrics(pair)] == list(range(2, STEPS + 1, 2))
    first, second = logs(pair, 2)
    assert f"Look at {pair / 'report.html'}" in first
    assert "step  2/16" in first and "step" not in second

    # Of four devices, all in one process, from a checkpoint half way.
    path = shutil.copytree(pair, tmp_path / "run")
    checkpoints.set_aside_after(path, 8)
    assert join(start_run(path, 1, None, devices=4)) == [0], logs(path, 1)
    assert f"Resuming {path} from step 8." in logs(path, 1)[0]
    config = config_of_options()
    templates = checkpoint_items(create_state(config, build_model(config)))
    ours, theirs = (checkpoints.restore(run, templates, 16)[1] for run in (path, pair))
    assert ours["train_state"]["persistent"][0].shape == (40, 4)
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)  # of float32, in 8 steps


def poisoned(*arguments):
    """The command line, with parameters that turn NaN at step 11 in process 1 alone."""
    if "--process_id=1" in arguments:
        parallel.pmap = poisoned_pmap(11)
    processes.command(*arguments)


@pytest.mark.slow
def test_nan_in_one_process_takes_all_of_them_back(pair, tmp_path, free_port):
    path = tmp_path / "run"
    started = start_run(path, 2, free_port, function=poisoned)
    assert join(started) == [0, 0], logs(path, 2)
    said = re.findall(r"^Rollback 1 .* not finite, by step 12\. Back to step 4 ",
                      logs(path, 2)[0], re.M)  # fmt: skip
    assert len(said) == 1
    config = config_of_options()
    struck, spared = (state_digests(config, run, STEPS) for run in (path, pair))
    changed = {name for name in spared if struck[name] != spared[name]}
    assert changed == rolled_back_fields(struck)


def wait_for_step(path, step, started):
    deadline = time.monotonic() + 100
    while not any(line["step"] >= step for line in read_metrics(path)):
        assert all(process.exitcode is None for process in started), logs(path, 2)
        assert time.monotonic() < deadline
        time.sleep(0.01)


LONG = "--config.learning.num_steps=100000"


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all_of_them(tmp_path, free_port):
    path = tmp_path / "run"
    started = start_run(path, 2, free_port, LONG)
    wait_for_step(path, 2, started)
    os.kill(started[1].pid, signal.SIGTERM)
    assert join(started) == [0, 0], logs(path, 2)
    step = checkpoints.steps(path)[-1]
    assert f"Stopped at step {step}, which is saved in {path}" in logs(path, 2)[0]
    assert step == read_metrics(path)[-1]["step"]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_process_that_dies_ends_the_other_with_an_error(tmp_path, free_port, victim):
    path = tmp_path / "run"
    started = start_run(path, 2, free_port, LONG)
    wait_for_step(path, 2, started)
    died = time.monotonic()
    started[victim].kill()
    codes = join(started, timeout=90)
    assert time.monotonic() - died < 60
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, None)
    print(codes, time.monotonic() - died, logs(path, 2)[1 - victim][-2000:])


@pytest.mark.slow
def test_error_of_the_first_process_ends_the_other(pair, tmp_path, free_port):
    path = shutil.copytree(pair, tmp_path / "run")
    started = start_run(path, 2, free_port, "--config.backbone.latent_dims=(4,3)")
    assert join(started, timeout=90) == [1, 1]
    first, second = logs(path, 2)
    assert re.search(r"^error: .* backbone\.latent_dims is \[4, 2\] there", first, re.M)
    assert re.search(r"^error: another process has ended with an error", second, re.M)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("there", None, None), "needs --num_processes and --process_id"),
        (("there", 2, 0), "must be HOST:PORT, got 'there'"),
        (("there:1", 2, 2), r"must lie in \[0, 2\), got 2"),
        ((None, 2, None), "go with --coordinator=HOST:PORT"),
        (("auto", None, 1), "go with --coordinator=HOST:PORT"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        parallel.initialize(*given)


def test_single_process_shares_and_agrees_with_itself():
    tree = {"a": np.float32([-0.0, np.nan])}
    assert parallel.share(tree) is tree
    assert parallel.agree(True, 0, None, "wrong") == [True, False, False, True]
    with parallel.together():
        pass
    with pytest.raises(ProcessFailed), parallel.together():
        raise ProcessFailed("here")


SHARED = {
    "float32": np.array([0x80000000, 1, 0x7FC12345, 0xFFC00001], np.uint32).view("f4"),
    "float64": np.array([1 << 63, 1, 0x7FF8_0000_DEAD_BEEF], np.uint64).view("f8"),
    "bfloat16": np.array([0x8000, 1, 0x7FC1], np.uint16).view(jnp.bfloat16),
    "key": np.array([2**32 - 1, 7], np.uint32),
    "step": np.int32(-5),
    "flag": np.array([True, False]),
    "nothing": np.zeros((0, 3), np.float32),
}


def write_shared(folder, place):
    """Saves what the first process has shared, and what all have agreed on."""
    parallel.initialize(*place)
    own = SHARED if parallel.is_first() else jax.tree.map(np.ones_like, SHARED)
    with parallel.ending_together():
        shared = parallel.share(own)
        index, devices = jax.process_index(), parallel.devices()
        agreed = parallel.agree(index == 1, False, True)
        rows = np.arange(8, dtype=np.float32).reshape(4, 2) - 1e-45
        whole = parallel.unshard(parallel.shard(rows, devices))
        bits = {k: np.frombuffer(v.tobytes(), np.uint8) for k, v in shared.items()}
        file = folder / f"{index}.npz"
        np.savez(file, agreed=agreed, whole=whole, rows=rows, **bits)
        assert all(shared[k].dtype == v.dtype for k, v in SHARED.items())
        assert all(shared[k].shape == v.shape for k, v in SHARED.items())


def test_arrays_of_the_first_process_are_shared_bit_for_bit(tmp_path, free_port):
    started = [
        processes.start(
            write_shared,
            tmp_path,
            (f"127.0.0.1:{free_port}", 2, index),
            log=tmp_path / "log",
            jax_num_cpu_devices=2,
            jax_enable_x64=True,
        )
        for index in range(2)
    ]
    assert join(started) == [0, 0], (tmp_path / "log").read_text()
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as held:
            for name, expected in SHARED.items():
                assert held[name].tobytes() == expected.tobytes(), (index, name)
            assert held["agreed"].tolist() == [True, False, True]
            np.testing.assert_array_equal(held["whole"], held["rows"])
