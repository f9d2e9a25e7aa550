import json
import shutil
import types

import jax
import numpy as np
import pytest

import jebm
from experiments.evaluation import classifier, evaluate, frechet
from experiments.runtime import parallel
from tests.experiments.evaluation.test_classifier import NAMES
from tests.experiments.runs import CONFIG, contents, run, run_main

DISTANCES = {
    "frechet",
    "frechet_long_chain",
    "frechet_posterior",
    "frechet_real",
    "frechet_untilted",
}
OF_THE_ENERGY = {
    "energy_gap_nats",
    "frechet_long_chain",
    "frechet_untilted",
    "prior_acceptance",
    "prior_stiffness",
    "prior_rhat",
    "prior_rhat_features",
}  # chains of a few steps have no ESS
OF_THE_POSTERIOR = {
    name.replace("prior", "posterior")
    for name in OF_THE_ENERGY
    if name.startswith("prior")
}


@pytest.fixture
def copied_run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def numbers(file):
    """What eval.json says but for what a clock decides."""
    found = json.loads(file.read_text())
    assert 0 < found.pop("seconds") < 600
    return found


def test_eval_json_holds_finite_numbers_by_name_and_what_they_are_of(
    trained_run, test_config
):
    found = numbers(trained_run / "eval.json")
    facts = classifier.load("digits")[1]
    about = {
        "step": 8,
        "seed": 0,
        "data": "digits",
        "prior": "ebm",
        "protocol": "classifier",
        "features": "32 features of digits.npz",
        "features_sha256": facts["sha256"],
        "num_samples": 40,
        "num_reference": 360,
        "prior_draws": 64 * 8,  # the second half of 16 steps
        "posterior_draws": 4 * 8,  # of one image
        "training_images": 8 * 20,
        "training_hardware": parallel.hardware(),
        "hardware": parallel.hardware(),
    }
    assert {name: found.pop(name) for name in about} == about
    assert 0 < found.pop("training_seconds") < 600
    assert set(found) == DISTANCES | OF_THE_ENERGY | OF_THE_POSTERIOR
    assert all(type(value) is float for value in found.values())
    assert np.isfinite(list(found.values())).all()
    assert all(found[name] > 0 for name in DISTANCES)
    # The samples of eight steps are far from digits; digits are not.
    assert found["frechet_real"] < 0.1 * found["frechet"]
    assert 0 < found["posterior_acceptance"] < 1
    # The energies have hardly moved from 0: the stiffness is that of N(0, I).
    steps = test_config.chains
    flat = steps.prior.step_size**2 / 4
    assert found["prior_stiffness"] == pytest.approx(flat, rel=0.1)
    assert found["posterior_stiffness"] > steps.posterior.step_size**2 / 4


def test_evaluating_again_gives_the_same_numbers_and_other_seeds_and_chains_others(
    copied_run, trained_run, capsys
):
    mode = (CONFIG, f"--workdir={copied_run}", "--mode=eval")
    first = numbers(trained_run / "eval.json")
    (copied_run / "eval.json").unlink()
    run_main(*mode)
    assert numbers(copied_run / "eval.json") == first
    printed = capsys.readouterr().out
    assert f"Evaluating {copied_run} at step 8." in printed
    assert f"wrote {copied_run / 'eval.json'}" in printed
    for name in DISTANCES:
        assert f"{name:30}{first[name]:.4g}" in printed

    before = contents(copied_run)
    run_main(*mode, "--config.seed=1", "--config.chains.prior.num_steps=5")
    after = contents(copied_run)
    name = "eval_chains.prior.num_steps=5,seed=1.json"
    assert set(after) == {*before, name}
    assert {k for k in before if after[k] != before[k]} == {"report.html"}
    other = numbers(copied_run / name)
    assert other["seed"] == 1
    for field in DISTANCES - {"frechet_real"}:
        assert other[field] != first[field]
    assert other["frechet_real"] == first["frechet_real"]  # no noise of the run


def test_tempered_sampler_is_judged_beside_the_chain_where_it_is_asked_for(
    copied_run, trained_run
):
    mode = (CONFIG, f"--workdir={copied_run}", "--mode=eval")
    run_main(*mode, "--config.eval.num_temperatures=3")
    found = numbers(copied_run / "eval.json")
    plain = numbers(trained_run / "eval.json")
    added = {"frechet_tempered", "tempered_exchange"}
    added |= {"tempered_rhat", "tempered_rhat_features"}
    assert set(found) - set(plain) == {*added, "tempered_draws"}
    assert {name: found[name] for name in plain} == plain
    assert found["frechet_tempered"] not in (found["frechet"], found["frechet_real"])
    # The energies have hardly moved from 0: all exchanges but few are accepted.
    assert 0.9 < found["tempered_exchange"] <= 1
    # One rung in three is drawn anew at every step.
    assert found["tempered_rhat"] < plain["prior_rhat"]
    page = (copied_run / "report.html").read_text()
    assert "samples by the tempered sampler, as long as the chain" in page
    assert "<td>tempered chain</td>" in page


def test_numbers_of_a_chain_that_diverges_are_left_out_aloud(copied_run, capsys):
    mode = (CONFIG, f"--workdir={copied_run}", "--mode=eval")
    run_main(*mode, "--config.chains.prior.step_size=1000.0")
    found = numbers(copied_run / "eval_chains.prior.step_size=1000.0.json")
    assert "frechet_long_chain" not in found
    line = f"  {'frechet_long_chain':30}not finite, left out"
    assert line in capsys.readouterr().out.splitlines()
    values = [value for value in found.values() if type(value) is float]
    assert len(values) > 5
    assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("eval.protocol=fid", ["eval.protocol", "'fid'", "'classifier'"]),
        ("eval.num_samples=1", ["eval.num_samples", "at least 2", "1"]),
        ("eval.batch_size=0", ["eval.batch_size", "at least 1", "0"]),
        ("eval.num_temperatures=1", ["eval.num_temperatures", "0 or at least 2", "1"]),
        ("data.name=cifar10", ["'cifar10' has no classifier", *NAMES]),
        ("learning.batch_size=40", ["learning.batch_size", "20 there, 40 here"]),
    ],
)
def test_evaluation_that_cannot_be_is_refused(copied_run, trained_run, override, words):
    with pytest.raises(SystemExit) as stopped:
        run_main(
            CONFIG, f"--workdir={copied_run}", "--mode=eval", f"--config.{override}"
        )
    message = stopped.value.code
    assert message.startswith("error: ")
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert contents(copied_run) == contents(trained_run)


def test_training_on_data_without_a_classifier_says_that_it_is_not_evaluated(
    copied_run, test_config, monkeypatch, capsys
):
    told = "Not evaluated: data set 'digits' has no classifier."
    run(test_config, copied_run)
    assert told not in capsys.readouterr().out
    assert classifier.known() == NAMES
    monkeypatch.setattr(classifier, "known", list)
    run(test_config, copied_run)
    assert told in capsys.readouterr().out


def test_gaussian_twin_is_evaluated_without_what_is_of_the_energy(
    tmp_path, test_config
):
    test_config.prior = "gaussian"
    test_config.learning.num_steps = 2
    run(test_config, tmp_path / "run")
    evaluate.evaluate(test_config, tmp_path / "run")
    found = numbers(tmp_path / "run" / "eval.json")
    assert found["prior"] == "gaussian"
    expected = (DISTANCES - OF_THE_ENERGY) | OF_THE_POSTERIOR | {"training_seconds"}
    assert {name for name in found if type(found[name]) is float} == expected
    assert not OF_THE_ENERGY & found.keys()


class Fakes:
    """A model whose samples, latents and energies are made up of held-out images.

    Latents are the images themselves. Samples past `num` are of padding and absurd.
    """

    def __init__(self, monkeypatch, heldout, num):
        self.heldout, self.num, self.drawn = heldout / np.float32(255), num, {}
        self.encoded = []
        monkeypatch.setattr(jebm, "sample", self.sample)
        monkeypatch.setattr(jebm, "posterior_sample", self.posterior_sample)
        monkeypatch.setattr(jebm, "energy", lambda m, p, z: z[0].mean((1, 2, 3)))
        monkeypatch.setattr(frechet, "_decode", lambda model, params, z: z[0])
        self.model = types.SimpleNamespace(
            energy=object(),
            chains=types.SimpleNamespace(prior=jebm.Langevin(num_steps=7)),
        )

    def sample(self, key, model, params, num, *, prior="ebm", num_steps=7):
        """Held-out images; 0.2 brighter at 28 steps, half as bright without energy."""
        batches = self.drawn.setdefault((prior, num_steps), [])
        index = len(batches) * num + np.arange(num)
        batches.append(jax.random.key_data(key))
        x = self.heldout[index % len(self.heldout)]
        x = {("ebm", 7): x, ("ebm", 28): x + 0.2, ("gaussian", 7): x / 2}[
            prior, num_steps
        ]
        x = np.where((index < self.num)[:, None, None, None], x, np.float32(1e6))
        return jebm.Samples(x, (x,))

    def posterior_sample(self, key, model, params, x):
        self.encoded.append(x)
        return (x,)

    def distances(self, batch_size, features=lambda images: images.reshape(-1, 64)):
        options = types.SimpleNamespace(
            num_samples=self.num, batch_size=batch_size, num_temperatures=0
        )
        images = np.round(255 * self.heldout).astype(np.uint8)
        return frechet.distances(
            jax.random.key(0), self.model, {}, images, features, options
        )


@pytest.fixture
def heldout():
    return np.random.default_rng(0).integers(0, 128, (30, 8, 8, 1)).astype(np.uint8)


@pytest.mark.parametrize("batch_size", [30, 20, 7])
def test_distances_of_images_that_are_known_are_the_closed_form(
    monkeypatch, heldout, batch_size
):
    fakes = Fakes(monkeypatch, heldout, num=30)
    found = fakes.distances(batch_size)
    assert set(found) == DISTANCES | {"energy_gap_nats"}
    # Samples that are the held-out images, in batches the last of which is padded.
    assert found["frechet"] < 1e-6
    assert found["frechet_posterior"] < 1e-6
    assert abs(found["energy_gap_nats"]) < 1e-6
    # A shift of 0.2 of 64 pixels; half of every pixel, mean and deviation.
    assert found["frechet_long_chain"] == pytest.approx(64 * 0.2**2, rel=1e-5)
    x = (heldout / 255).reshape(30, 64)
    half = ((x.mean(0) / 2) ** 2).sum() + x.var(0, ddof=1).sum() / 4
    assert found["frechet_untilted"] == pytest.approx(half, rel=1e-5)


def test_batches_of_samples_have_keys_of_their_own_but_the_same_for_every_chain(
    monkeypatch, heldout
):
    fakes = Fakes(monkeypatch, heldout, num=30)
    fakes.distances(batch_size=7)
    drawn = [np.stack(keys).tolist() for keys in fakes.drawn.values()]
    assert len(drawn) == 3
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(np.unique(drawn[0], axis=0)) == 5


@pytest.mark.parametrize(("num", "times"), [(10, 1), (30, 1), (65, 3)])
def test_images_of_the_posterior_are_spread_over_the_split(
    monkeypatch, heldout, num, times
):
    fakes = Fakes(monkeypatch, heldout, num)
    fakes.distances(batch_size=5)
    encoded = np.concatenate(fakes.encoded)
    assert encoded.shape == (num, 8, 8, 1)
    apart = np.abs(fakes.heldout[:, None] - encoded).max((2, 3, 4))
    used = apart.argmin(0)
    assert apart.min(0).max() < 1e-6
    counts = np.bincount(used, minlength=30)
    assert counts.max() == times
    assert (np.flatnonzero(counts) == np.arange(0, 30, max(1, 30 // num))).all()


def test_energy_gap_is_that_of_prior_samples_minus_posterior_samples(
    monkeypatch, heldout
):
    fakes = Fakes(monkeypatch, heldout, num=30)
    monkeypatch.setattr(
        jebm, "posterior_sample", lambda key, model, params, x: (x - 0.25,)
    )
    gap = fakes.distances(batch_size=20)["energy_gap_nats"]
    assert gap == pytest.approx(0.25, rel=1e-5)


def test_real_images_are_halved_at_random_and_each_is_used_once(monkeypatch, heldout):
    halves, statistics = [], frechet.feature_statistics

    def recording(features):
        halves.append(sorted(features[:, 0].tolist()))
        return statistics(features)

    monkeypatch.setattr(frechet, "feature_statistics", recording)
    real = np.stack([np.arange(30.0), np.arange(30.0) % 7], axis=1)
    distances = [frechet._of_halves(real, seed) for seed in range(10)]
    pairs = list(zip(halves[::2], halves[1::2], strict=True))
    assert len(pairs) == 10
    assert all(sorted(a + b) == real[:, 0].tolist() for a, b in pairs)
    assert all(len(a) == len(b) == 15 for a, b in pairs)
    assert len({tuple(a) for a, _ in pairs}) == 10
    assert min(distances) > 0
    assert frechet._of_halves(np.ones((30, 2)), 0) == 0
