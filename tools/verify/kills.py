"""Kills a training again and again, at random moments, and prints what was lost.

    python -m tools.verify.kills --workdir=DIR [--kills=50] [--seed=0]

It trains the tiny configuration in DIR/killed, which saves often. Half of the SIGKILLs
come at a random moment after a start, the other half inside a save. After each kill the
run must be readable and have lost at most two save intervals. At the end it must have
the bits and the metrics of the run in DIR/undisturbed, which nobody kills.
"""

import argparse
import dataclasses
import pathlib
import random
import shutil
import signal
import sys
import time
import warnings

import jax
from tqdm import tqdm

from experiments import options
from experiments.configs import test
from experiments.models import build_model
from experiments.rundir.metrics import read_metrics
from experiments.training import learner
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from tools.arguments import path_argument
from tools.verify import processes

_INTERVAL = 2  # steps between saves


@dataclasses.dataclass
class Found:
    """Counts the kills and what they cost."""

    in_saves: int = 0  # kills that came while a checkpoint was written
    elsewhere: int = 0
    lost: list[int] = dataclasses.field(default_factory=list)  # steps, of each kill
    passed_over: int = 0  # newest checkpoints that could not be read
    same_bits: bool = False

    def add(self, run: pathlib.Path) -> None:
        """Counts a kill, by what it has left in `run`."""
        if _saves(run):
            self.in_saves += 1
        else:
            self.elsewhere += 1
        reached = max([0, *(line["step"] for line in read_metrics(run))])
        step, passed_over = _readable(run)
        self.lost.append(reached - step)
        self.passed_over += passed_over

    @property
    def survived(self) -> bool:
        """Says whether nothing went wrong."""
        return self.same_bits and max(self.lost) <= 2 * _INTERVAL


def kill(path: pathlib.Path, kills: int, seed: int) -> Found:
    """Kills the run in `path/killed`, and compares it with `path/undisturbed`."""
    chance, found = random.Random(seed), Found()
    num_steps = 8 * _INTERVAL * kills
    killed, undisturbed = path / "killed", path / "undisturbed"

    def begin(run, every):
        return processes.start(
            processes.command,
            f"--workdir={run}",
            f"--config.learning.num_steps={num_steps}",
            "--config.log.every=1",
            f"--config.log.sample_every={num_steps}",
            f"--config.log.diagnose_every={num_steps}",
            f"--config.log.checkpoint_every={every}",
            log=path / f"{run.name}.log",
        )

    path.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = begin(undisturbed, num_steps)
    while process.exitcode is None and not read_metrics(undisturbed):
        time.sleep(0.01)
    to_first_step = time.monotonic() - started
    _finish(process)

    with tqdm(total=kills, desc="killing", disable=None) as progress:
        while len(found.lost) < kills:
            process = begin(killed, _INTERVAL)
            if len(found.lost) % 2:
                for _ in range(chance.randint(1, 3)):
                    _wait_for_save(process, killed)
                time.sleep(chance.uniform(0, 0.05))
            else:
                time.sleep(chance.uniform(0, 1.2 * to_first_step))
            process.kill()
            process.join()
            if process.exitcode == 0:  # it came too late
                shutil.rmtree(killed)
                continue
            if process.exitcode != -signal.SIGKILL:
                raise RuntimeError(f"the training ended by itself: see {path}")
            found.add(killed)
            progress.update()
    _finish(begin(killed, num_steps))
    found.same_bits = _bits(killed) == _bits(undisturbed) and (
        _history(killed) == _history(undisturbed)
    )
    return found


def _finish(process):
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the training ended with exit code {process.exitcode}")


def _wait_for_save(process, run):
    """Returns when the next save has begun, or the training has ended."""
    before = _saves(run)
    while process.exitcode is None and not _saves(run) - before:
        time.sleep(0.001)


def _saves(run):
    return {p.name for p in (run / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def _templates():
    experiment = options.read(test.get_config())
    model = build_model(experiment, (8, 8, 1))
    state = learner.create_state(jax.random.key(0), experiment.learning, model)
    return checkpoint_items(state)


def _readable(run):
    """Finds the newest readable step, 0 for the start; counts newer unreadable ones."""
    if not checkpoints.steps(run):
        return 0, 0
    with warnings.catch_warnings(record=True) as passed_over:
        warnings.simplefilter("always", UserWarning)
        step, _ = checkpoints.restore(run, _templates())
    return step, len(passed_over)


def _bits(run):
    return checkpoints.digests(checkpoints.restore(run, _templates())[1])


def _history(run):
    return [
        {k: v for k, v in line.items() if k != "images_per_second"}
        for line in read_metrics(run)
    ]


def _main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=path_argument, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("killed", "undisturbed"):
        shutil.rmtree(given.workdir / name, ignore_errors=True)
    started = time.monotonic()
    found = kill(given.workdir, given.kills, given.seed)
    print(
        f"{given.kills} kills, {found.in_saves} of them inside a save; lost at most "
        f"{max(found.lost)} steps, of {_INTERVAL} between saves; {found.passed_over} "
        f"checkpoints unreadable; the end {'is' if found.same_bits else 'IS NOT'} that "
        f"of the undisturbed run, bit for bit ({time.monotonic() - started:.0f} s)"
    )
    sys.exit(not found.survived)


if __name__ == "__main__":
    _main()
