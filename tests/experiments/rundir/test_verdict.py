import doctest

import pytest

from experiments.rundir import verdict
from experiments.rundir.evaluations import Evaluation

SOUND = {
    "frechet": 2.0,
    "frechet_untilted": 10.0,
    "frechet_posterior": 1.0,
    "frechet_long_chain": 2.1,
    "frechet_exact": 2.2,
}
LINES = [{"step": step, "energy_gap_nats": 1.0} for step in range(20)]


SETTINGS = {
    "chains": {"prior": {"name": "mala"}},
    "learning": {"persistent_chains": 100},
}


def found(lines=LINES, variant="", settings=SETTINGS, **changed):
    evaluation = Evaluation(variant, SOUND | changed, [])
    return verdict.findings(lines, [evaluation], settings)


def test_a_sound_run_needs_no_advice():
    assert [f.good for f in found()] == [True] * 3
    assert not any(f.advice for f in found())


@pytest.mark.parametrize(
    ("changed", "text", "advice"),
    [
        ({"frechet": 7.0, "frechet_long_chain": 7.0}, "33% of the way", "for longer"),
        ({"frechet": 11.0, "frechet_long_chain": 11.0}, "does not help", "for longer"),
        ({"frechet_long_chain": 3.0}, "draws farther away", "for longer"),
        ({"frechet_long_chain": 1.5}, "draws nearer", "num_steps"),
        ({"frechet_exact": 3.0}, "density itself is farther", "persistent_steps"),
    ],
)
def test_what_is_wrong_is_told_with_what_to_change(changed, text, advice):
    (bad,) = (f for f in found(**changed) if not f.good)
    assert text in bad.text
    assert advice in bad.advice


@pytest.mark.parametrize("values", [{"frechet_long_chain": 3}, {"frechet_exact": 3}])
@pytest.mark.parametrize(
    ("chain", "persistent", "advised"),
    [
        ("langevin", 0, "learning.persistent_chains and tested steps"),
        ("langevin", 100, "tested steps"),
        ("underdamped", 0, "learning.persistent_chains"),
        ("underdamped", 100, None),
    ],
)
def test_what_a_run_has_already_is_not_advised(values, chain, persistent, advised):
    settings = {
        "chains": {"prior": {"name": chain}},
        "learning": {"persistent_chains": persistent},
    }
    (bad,) = (f for f in found(settings=settings, **values) if not f.good)
    assert bad.advice.startswith(f"Train with {advised}" if advised else "Train for")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ([{"rollback": "step 8: ..."}], "went back once"),
        ([{"step": 30, "energy_gap_nats": 40.0}] * 3, "40 nats apart"),
    ],
)
def test_training_that_diverged_or_has_a_wide_gap_is_told(more, text):
    (bad,) = (f for f in found(LINES + more) if not f.good)
    assert text in bad.text
    assert bad.advice


@pytest.mark.parametrize(("auprc", "good"), [(0.95, True), (0.5, False)])
def test_detection_is_judged_by_the_way_from_chance_to_one(auprc, good):
    values = {"auprc": auprc, "auroc": 0.9, "prevalence": 0.35, "heldout_class": 4}
    (found,) = verdict.findings([], [Evaluation("", values, [])], SETTINGS)
    assert found.good is good
    assert f"AUPRC of {auprc:.3f} (chance: 0.350)" in found.text


def test_a_gap_that_is_not_finite_is_passed_over():
    lines = [*LINES, {"step": 30, "energy_gap_nats": None}]
    assert [f.good for f in found(lines)] == [True] * 3
    assert verdict.findings(lines[-1:], [], SETTINGS) == []


def test_what_was_not_measured_is_not_judged():
    assert verdict.findings([], [], {}) == []
    assert verdict.findings([{"step": 1, "loss_nats": 2.0}], [], {}) == []
    (training,) = found(variant="seed 3")  # of other chains: not the run's own
    assert training.text.startswith("Training never diverged")
    assert len(found(frechet_posterior=20.0)) == 2  # no floor to compare with


def test_examples_of_the_docstrings():
    assert doctest.testmod(verdict).failed == 0
