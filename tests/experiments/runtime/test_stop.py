import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments import options
from experiments.rundir.metrics import read_metrics
from experiments.runtime.stop import Requests, Stopped
from experiments.training import train
from jebm import checkpoints
from tests.experiments.runs import metrics, state_digests
from tools.verify import processes

STEPS = 300
OPTIONS = [
    f"--config.learning.num_steps={STEPS}",
    f"--config.log.sample_every={STEPS}",
    f"--config.log.diagnose_every={STEPS}",
    f"--config.log.checkpoint_every={STEPS}",
]


@pytest.fixture
def handlers():
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in signals]
    yield
    assert [signal.getsignal(number) for number in signals] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_request_waits_where_there_is_something_to_save(handlers, number, capfd):
    with Requests() as asked:
        assert not asked
        with pytest.raises(Stopped, match="the same command"), asked.saving():
            signal.raise_signal(number)
            assert asked
            assert "once more stops at once" in capfd.readouterr().err
            with pytest.raises(Stopped, match=number.name):
                signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_request_where_nothing_is_to_be_saved_stops_at_once(handlers, number):
    with Requests() as asked:
        with asked.saving():
            pass
        with pytest.raises(Stopped, match=number.name):
            signal.raise_signal(number)


class Swallows:
    """What a destructor raises, Python prints and forgets."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_request_that_gets_lost_is_repeated(handlers):
    with Requests():
        Swallows()
        with pytest.raises(Stopped, match="SIGTERM"):
            time.sleep(10)
        with pytest.raises(Stopped, match="SIGTERM"):  # if that was lost as well
            time.sleep(10)
    time.sleep(1.5)  # and then no more


def test_stop_is_not_taken_for_an_error():
    assert not issubclass(Stopped, Exception)


def test_thread_hears_nothing(handlers):
    heard = []

    def work():
        with Requests() as asked, asked.saving():
            heard.append(bool(asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [False]


def start(path, *options):
    log = path.parent / f"{path.name}.log"
    return processes.start(
        processes.command, f"--workdir={path}", *OPTIONS, *options, log=log
    )


def wait_for_step(path, process, step):
    deadline = time.monotonic() + 100
    while not any(line["step"] >= step for line in read_metrics(path)):
        assert process.exitcode is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stops."""
    path = tmp_path_factory.mktemp("whole") / "run"
    process = start(path)
    process.join(200)
    assert process.exitcode == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_that_is_asked_to_stop_saves_and_ends_with_the_bits_of_one_that_is_not(
    whole, tmp_path, test_config, number
):
    stopped = tmp_path / "stopped"
    process = start(stopped)
    wait_for_step(stopped, process, 10)
    os.kill(process.pid, number)
    process.join(100)
    assert process.exitcode == 0
    [step] = checkpoints.steps(stopped)
    assert 10 <= step < STEPS
    said = (tmp_path / "stopped.log").read_text()
    assert f"Stopped at step {step}, which is saved in {stopped}: the same" in said
    # Every step is in one line, though the last one is of a shorter interval.
    assert metrics(stopped)[-1]["step"] == step

    process = start(stopped)
    process.join(100)
    assert process.exitcode == 0
    said = (tmp_path / "stopped.log").read_text()
    assert f"Resuming {stopped} from step {step}." in said
    assert state_digests(test_config, stopped, STEPS) == state_digests(
        test_config, whole, STEPS
    )
    lines = {line["step"]: line for line in metrics(stopped)}
    early = [line for line in metrics(whole) if line["step"] < step]
    assert early == [lines[line["step"]] for line in early]


def test_stop_before_the_first_step_leaves_nothing_half_done(
    tmp_path, test_config, monkeypatch
):
    def build(*arguments):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train, "build_model", build)
    with pytest.raises(Stopped, match="SIGTERM"):
        train.train(options.read(test_config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


_BUSY = """
import jax, jax.numpy as jnp
from experiments.runtime import stop
@jax.jit
def long(x):
    return jax.lax.fori_loop(0, 3000, lambda i, x: jnp.tanh(x @ x), x)
x = jnp.ones((300, 300))
long(x).block_until_ready()
late = [long(x) for _ in range(20)]
print("busy", flush=True)
stop.leave(stop.Stopped("Stopped by SIGTERM."))
"""


@pytest.mark.slow
def test_program_leaves_at_once_while_it_computes():
    """What runs in threads of XLA is not waited for, and nothing is taken from it."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _BUSY],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "busy\nStopped by SIGTERM.\n")
    assert "egmentation" not in done.stderr
