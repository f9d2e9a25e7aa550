"""The side-by-side of priors, on a run of a minute."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments.runtime.files import read_json
from tests.experiments.runs import ROOT
from tools.priors import learn, page, settings


def command(*arguments):
    process = subprocess.run(
        [sys.executable, "-m", "tools.priors", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return process.returncode, process.stdout + process.stderr


@pytest.mark.slow
def test_rows_are_measured_once_and_the_pages_show_them(bench_of, tmp_path):
    bench = bench_of(tmp_path)
    for name in ("gaussian", "flow"):
        bench.row(name, 0)
    page.write(tmp_path, bench.floor, "About.")
    flow = read_json(tmp_path / "flow" / "seed0" / "measured.json")
    gaussian = read_json(tmp_path / "gaussian" / "seed0" / "measured.json")
    assert gaussian["parameters"] == 0
    assert gaussian["log_z"] == 0
    assert flow["learned"]["updates"] > 0
    assert np.isfinite([flow["frechet"], flow["nats"], flow["auprc"]]).all()
    text = (tmp_path / "priors.md").read_text()
    assert text.startswith("About. Floor")
    assert {line.split(" | ")[0] for line in text.splitlines()[4:]} == {
        "| flow", "| gaussian",
    }  # fmt: skip
    assert "data:image/png" in (tmp_path / "priors.html").read_text()
    written = (tmp_path / "flow" / "seed0" / "measured.json").stat().st_mtime_ns
    bench.row("flow", 0)
    assert (tmp_path / "flow/seed0/measured.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_killed_learning_ends_with_the_same_bits(bench_of, tmp_path, monkeypatch):
    bench = bench_of(tmp_path)
    prior = settings.prior("flow", bench.frozen)
    given = {"seed": 0, "seconds": 0.5, "batch_size": 50}

    def end(path):
        law, facts = learn.learn(
            "flow", prior, bench.frozen, bench.data, path=path, **given
        )
        return law.state, facts

    for name in ("whole", "killed"):  # as many updates as each other
        (tmp_path / name).mkdir()
        plan = {"prior": "flow", "seed": 0, "num_steps": 12, "update_s": 0.01}
        (tmp_path / name / "plan.json").write_text(json.dumps(plan))
    whole, facts = end(tmp_path / "whole")
    assert facts["updates"] == 12
    monkeypatch.setattr(learn, "_SAVE_EVERY", 0.0)

    class Killed(Exception):
        pass

    saves = []
    save = learn._save

    def killing(manager, path, step, state, spent):
        save(manager, path, step, state, spent)
        saves.append(step)
        if step == 5:
            raise Killed

    monkeypatch.setattr(learn, "_save", killing)
    with pytest.raises(Killed):
        end(tmp_path / "killed")
    killed, _ = end(tmp_path / "killed")
    assert saves[:6] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(_leaves(whole), _leaves(killed), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(state):
    import jax

    return jax.tree.leaves(state)


@pytest.mark.slow
def test_command_says_what_is_wrong(tmp_path):
    code, text = command(f"--backbone={tmp_path}", f"--workdir={tmp_path / 'out'}")
    assert code == 1
    assert text.strip().splitlines()[-1].startswith("error:")
    code, text = command(
        f"--backbone={tmp_path}", f"--workdir={tmp_path}", "--priors=flux"
    )
    assert code == 2
    assert "no prior 'flux'; known: joint, gaussian" in text
    code, text = command(
        f"--backbone={tmp_path}", f"--workdir={tmp_path}", "--minutes=0"
    )
    assert "must be a positive number, got '0'" in text


def test_mean_and_spread_of_seeds_are_told():
    runs = [{"frechet": 1.0}, {"frechet": 2.0}, {"lacks": "x"}]
    assert page._spread(runs[:2], "frechet", 2) == "1.50 ± 0.71"
    assert page._spread(runs[:1], "frechet", 1) == "1.0"
    assert page._spread([{}], "frechet", 1) == ""
