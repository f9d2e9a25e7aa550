"""Energies learned apart and added, on a run of a minute."""

import sys

import numpy as np
import pytest

from experiments.evaluation import classifier
from experiments.runtime.files import read_json
from tools.priors import compose


@pytest.mark.slow
def test_command_learns_three_energies_and_samples_their_sum(
    encoded_run, small, tmp_path, monkeypatch, capsys
):
    arguments = [
        f"--backbone={encoded_run.path}", f"--workdir={tmp_path}", "--minutes=0.01",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["compose", *arguments])
    monkeypatch.setattr(compose, "_NUM_SAMPLES", 100)
    compose.main()
    assert "compose.md" in capsys.readouterr().out
    found = read_json(tmp_path / "compose.json")
    assert found.keys() == compose._TITLES.keys()
    for shares in found.values():
        assert 0 <= shares["both"] <= min(shares["class"], shares["ink"]) <= 1
    lines = (tmp_path / "compose.md").read_text().splitlines()
    assert len(lines) == 4 + len(found)
    assert (tmp_path / "compose.png").stat().st_size > 1000


def test_labels_are_those_of_the_classifier():
    predict = classifier.labels("digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[:200, ..., None] / 16).astype(np.float32)
    assert (predict(images) == digits.target[:200]).mean() > 0.95
