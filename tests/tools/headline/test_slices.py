import signal
import sys
import threading

import pytest

from experiments.errors import ConfigError
from experiments.runtime.files import write_json
from tools.headline import slices

# Counts its starts in the file it is given, and what stopped it; saves as asked.
_TRAINS = """
import pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
def stop(number, frame):
    log.open("a").write("saved\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
log.open("a").write("started\\n")
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


def command(path, seconds, code=0):
    log = str(path / "log")
    return [sys.executable, "-S", "-c", _TRAINS, log, str(seconds), str(code)]


def lines(path):
    return (path / "log").read_text().split()


def test_a_training_that_ends_by_itself_is_done_and_its_time_counted(tmp_path):
    assert slices.train(command(tmp_path, 0), tmp_path, 100, 100)
    assert lines(tmp_path) == ["started"]
    assert 0 < slices.seconds_taken(tmp_path) < 100


@pytest.mark.slow  # by waiting
def test_slices_follow_each_other_until_the_time_is_up(tmp_path):
    write_json(tmp_path / "clock.json", {"training_seconds": 90.0})
    assert slices.train(command(tmp_path, 100), tmp_path, 94.0, 2.0)
    assert lines(tmp_path) == 2 * ["started", "saved"]
    assert 94.0 <= slices.seconds_taken(tmp_path) < 190.0


@pytest.mark.slow
def test_a_call_of_so_many_slices_says_that_there_is_more(tmp_path):
    assert not slices.train(command(tmp_path, 100), tmp_path, 100.0, 2.0, most=1)
    assert lines(tmp_path) == ["started", "saved"]


def test_where_the_time_is_up_nothing_is_started(tmp_path):
    write_json(tmp_path / "clock.json", {"training_seconds": 90.0})
    assert slices.train(command(tmp_path, 100), tmp_path, 60.0, 2.0)
    assert not (tmp_path / "log").exists()


def test_an_error_of_training_is_told_and_its_time_counted(tmp_path):
    with pytest.raises(ConfigError, match="training ended with exit code 3"):
        slices.train(command(tmp_path, 0, 3), tmp_path, 100, 100)
    assert slices.seconds_taken(tmp_path) > 0


@pytest.mark.slow
def test_an_interrupt_saves_the_run_and_its_time(tmp_path):
    timer = threading.Timer(2.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        slices.train(command(tmp_path, 100), tmp_path, 100, 100)
    assert lines(tmp_path) == ["started", "saved"]
    assert slices.seconds_taken(tmp_path) > 1
