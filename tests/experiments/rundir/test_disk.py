import contextlib
import shutil
import subprocess
import sys

import pytest

from experiments.errors import ConfigError
from experiments.rundir.files import lock
from jebm import checkpoints
from tests.experiments.runs import (
    CONFIG,
    contents,
    metrics,
    run,
    run_main,
    state_digests,
)


@contextlib.contextmanager
def mounted(path, size):
    """A file system of `size` at `path`."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system: {error}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def error_of(*arguments):
    """The one-line error that a command line ends in."""
    with pytest.raises(SystemExit) as stopped:
        run_main(CONFIG, *arguments)
    assert stopped.value.code.startswith("error: ")
    assert "\n" not in stopped.value.code
    return stopped.value.code


@pytest.mark.slow
def test_full_disk_ends_in_one_sentence_and_the_run_goes_on_when_there_is_room(
    trained_run, tmp_path, test_config
):
    options = ["--config.log.sample_every=8"]  # until then, checkpoint 4 alone
    with mounted(tmp_path / "small", "300k") as small:
        path = small / "run"
        message = error_of(f"--workdir={path}", *options)
        assert "No space left" in message and str(path) in message
        assert checkpoints.steps(path) == [4]
        subprocess.run(["mount", "-o", "remount,size=50m", str(small)], check=True)
        run_main(CONFIG, f"--workdir={path}", *options)
        assert state_digests(test_config, path, 8) == state_digests(
            test_config, trained_run, 8
        )
        assert metrics(path) == metrics(trained_run)


def test_directory_that_cannot_be_written_is_refused(tmp_path, trained_run):
    with mounted(tmp_path / "mine", "50m") as mine:
        shutil.copytree(trained_run, mine / "run")
        before = contents(mine)
        subprocess.run(["mount", "-o", "remount,ro", str(mine)], check=True)
        for name in ("run", "other"):
            message = error_of(f"--workdir={mine / name}")
            assert f"workdir {mine / name} cannot be written" in message
        assert contents(mine) == before


@pytest.mark.slow
def test_second_run_in_a_directory_is_refused_while_the_first_goes_on(
    tmp_path, test_config, trained_run
):
    path = shutil.copytree(trained_run, tmp_path / "run")
    test_config.learning.num_steps = 12
    with lock(path):
        before = contents(path)
        with pytest.raises(ConfigError, match=f"another process trains in {path}"):
            run(test_config, path)
        assert contents(path) == before
    run(test_config, path)
    assert checkpoints.steps(path)[-1] == 12


def test_process_that_dies_does_not_hold_a_directory(tmp_path):
    held = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'a'); "
        "fcntl.flock(file, fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", held, tmp_path / "lock"])
    assert process.returncode == -9
    with lock(tmp_path):
        pass
