"""The comparison of kernels, and the laws of those that are in it alone."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import langevin
from jebm.hierarchy import log_standard_normal
from tools.speed import contenders, kernels

TESTED = {
    "trajectory": lambda: contenders.trajectory(3, 0.7),
    "HMC": lambda: contenders.trajectory(3),
    "crank_nicolson": contenders.crank_nicolson,
    "slice_underdamped": lambda: contenders.slice_underdamped(0.7),
    "microcanonical": lambda: contenders.microcanonical(3),
}


def tilted(eps):
    """N(0, 1) tilted to N(2/5, 1/5) in each of two coordinates."""
    return log_standard_normal((eps[0][None],))[0] - jnp.sum(
        2 * eps[0] ** 2 - 2 * eps[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_tested_kernels_have_the_law_of_the_density(name):
    num, step_size = 8_000, 0.5
    if name == "microcanonical":
        pytest.importorskip("blackjax")
        step_size = 0.7
    kernel = TESTED[name]()

    def chain(key):
        state, info = langevin.run(
            key, (jnp.zeros(2),), tilted, num_steps=40, step_size=step_size,
            kernel=kernel,
        )  # fmt: skip
        return state.position[0], info.acceptance_rate

    eps, rate = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), num))
    assert 0.3 < rate.mean() < 0.99
    error = np.sqrt(1 / (2 * num))
    assert abs(eps.mean() - 0.4) < 4 * np.sqrt(0.2) * error
    assert abs(eps.var() / 0.2 - 1) < 4 * np.sqrt(2) * error


@pytest.mark.slow
def test_command_prints_a_row_for_each_kernel(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kernels, "BUDGETS", (10, 20))
    monkeypatch.setattr(kernels, "CHAINS", 4)
    monkeypatch.setattr(kernels, "GRADIENTS", 400)
    few = {
        name: kernels.KERNELS[name]._replace(trials=kernels.KERNELS[name].trials[:2])
        for name in ("MALA", "underdamped", "HMC")
    }
    monkeypatch.setattr(kernels, "KERNELS", few)
    file = tmp_path / "kernels.json"
    arguments = ["--pretrained=digits", "--seeds=2", "--draws=100", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["kernels", *arguments])
    kernels.main()
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {n}" for n in few]
    rows = json.loads(file.read_text())
    for row in rows.values():
        assert kernels.of_features(row) == max(map(kernels.of_features, row["all"]))
        assert np.shape(row["frechet"]) == (2, 2) and np.all(
            np.array(row["frechet"]) > 0
        )
        assert 0 < row["seconds"] < 10 and 0 < row["acceptance"] <= 1
