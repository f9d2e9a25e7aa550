"""Frechet distances of samples that are known."""

import types

import jax
import numpy as np
import pytest

import jebm
from experiments.data.loaders import Split
from experiments.evaluation import frechet, sample_sets
from tests.experiments.evaluation.saved import run_of
from tests.experiments.evaluation.test_evaluate import DISTANCES


def splits_of(heldout):
    """Training images, of which a perfect prior's samples are, are brighter."""
    labels = np.zeros(len(heldout), int)
    return {"test": Split(heldout, labels), "train": Split(heldout + 64, labels)}


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
        monkeypatch.setattr(sample_sets, "_decode", lambda model, params, z: z[0])
        self.model = types.SimpleNamespace(
            energy=object(),
            chains=types.SimpleNamespace(
                prior=jebm.Langevin(num_steps=7), posterior=jebm.Langevin(num_steps=7)
            ),
        )

    def sample(self, key, model, params, num, *, prior="ebm", num_steps=7, kernel=None):
        """Held-out images; 0.2 brighter at 28 steps, half as bright without energy."""
        if kernel is not None:  # of the exact law, 0.1 brighter
            assert kernel == jebm.MALA(70, self.model.chains.prior.step_size / 2)
            num_steps = kernel.num_steps
        batches = self.drawn.setdefault((prior, num_steps), [])
        index = len(batches) * num + np.arange(num)
        batches.append(jax.random.key_data(key))
        x = self.heldout[index % len(self.heldout)]
        x = {
            ("ebm", 7): x,
            ("ebm", 28): x + 0.2,
            ("ebm", 70): x + 0.1,
            ("gaussian", 7): x / 2,
        }[prior, num_steps]
        x = np.where((index < self.num)[:, None, None, None], x, np.float32(1e6))
        return jebm.Samples(x, (x,))

    def posterior_sample(self, key, model, params, x):
        self.encoded.append(x)
        return (x,)

    def distances(self, batch_size, features=lambda images: images.reshape(-1, 64)):
        images = np.round(255 * self.heldout).astype(np.uint8)
        options = {"eval.num_samples": self.num, "eval.batch_size": batch_size}
        run = run_of(self.model, {}, splits_of(images), **options)
        return frechet.distances(jax.random.key(0), run, features)


@pytest.fixture
def heldout():
    return np.random.default_rng(0).integers(0, 128, (30, 8, 8, 1)).astype(np.uint8)


@pytest.mark.parametrize("batch_size", [30, 20, 7])
def test_distances_of_images_that_are_known_are_the_closed_form(
    monkeypatch, heldout, batch_size
):
    fakes = Fakes(monkeypatch, heldout, num=30)
    numbers = fakes.distances(batch_size)
    assert set(numbers) == DISTANCES | {"energy_gap_nats"}
    # Samples that are the held-out images, in batches the last of which is padded.
    assert numbers["frechet"] < 1e-6
    assert numbers["frechet_posterior"] < 1e-6
    assert numbers["frechet_perfect"] == pytest.approx(64 * (64 / 255) ** 2, rel=1e-5)
    assert abs(numbers["energy_gap_nats"]) < 1e-6
    # A shift of 0.2 of 64 pixels; half of every pixel, mean and deviation.
    assert numbers["frechet_exact"] == pytest.approx(64 * 0.1**2, rel=1e-5)
    assert numbers["frechet_long_chain"] == pytest.approx(64 * 0.2**2, rel=1e-5)
    x = (heldout / 255).reshape(30, 64)
    half = ((x.mean(0) / 2) ** 2).sum() + x.var(0, ddof=1).sum() / 4
    assert numbers["frechet_untilted"] == pytest.approx(half, rel=1e-5)


def test_batches_of_samples_have_keys_of_their_own_but_the_same_for_every_chain(
    monkeypatch, heldout
):
    fakes = Fakes(monkeypatch, heldout, num=30)
    fakes.distances(batch_size=7)
    drawn = [np.stack(keys).tolist() for keys in fakes.drawn.values()]
    assert len(drawn) == 4
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert len(np.unique(drawn[0], axis=0)) == 5


@pytest.mark.parametrize(("num", "times"), [(10, 1), (30, 1), (65, 3)])
def test_images_of_the_posterior_are_spread_over_the_split(
    monkeypatch, heldout, num, times
):
    fakes = Fakes(monkeypatch, heldout, num)
    fakes.distances(batch_size=5)
    encoded = np.concatenate(fakes.encoded)
    assert encoded.shape == (2 * num, 8, 8, 1)
    encoded = encoded[:num]  # then come those of training
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
