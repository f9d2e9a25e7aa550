import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import jebm
from experiments import pictures, runs
from experiments.drawing import samples
from experiments.drawing.samples import Samples
from experiments.errors import ConfigError
from experiments.streams import Stream
from tests.experiments.drawing.made_up import grey

NAMES = ("gaussian", "ebm", "reconstruction")


def names_in(folder):
    return {file.name for file in folder.iterdir()}


def test_samples_and_reconstructions_are_those_of_the_library(run):
    key = jax.random.key(0)
    key_prior, key_posterior = jax.random.split(key)
    computed = samples.compute(key, run)
    model, params = run.model, run.params
    tilted = jebm.sample(key_prior, model, params, 16).x
    untilted = jebm.sample(key_prior, model, params, 16, prior="gaussian").x
    np.testing.assert_array_equal(computed.ebm, tilted)
    np.testing.assert_array_equal(computed.gaussian, untilted)
    originals = np.float32(run.heldout[:8]) / 255
    again = jebm.reconstruct(key_posterior, model, params, originals)
    np.testing.assert_allclose(computed.reconstruction[0::2], originals, atol=1e-6)
    np.testing.assert_allclose(computed.reconstruction[1::2], again, atol=1e-4)


def test_model_without_energy_has_samples_of_its_own_prior_only(make_run, tmp_path):
    gaussian = make_run(prior="gaussian")
    assert samples.compute(jax.random.key(0), gaussian).ebm is None
    samples.write_samples(gaussian, tmp_path)
    assert names_in(tmp_path) == {"gaussian_0000008.png", "reconstruction_0000008.png"}


def test_grids_are_drawn_of_each_kind():
    drawn = samples.draw(Samples(grey(4), None, grey(16)))
    assert list(drawn) == ["gaussian", "reconstruction"]
    for name, num in (("gaussian", 4), ("reconstruction", 16)):
        expected = np.asarray(pictures.grid(grey(num)))
        np.testing.assert_array_equal(np.asarray(drawn[name]), expected)


@pytest.mark.parametrize("pairs", [1, 2, 3, 5, 8])
def test_few_pairs_stay_in_one_row(pairs):
    drawn = samples.draw(Samples(grey(4), None, grey(2 * pairs)))["reconstruction"]
    columns = {1: 2, 2: 2, 3: 4, 5: 4, 8: 4}[pairs]
    expected = pictures.grid(grey(2 * pairs), columns)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


def test_without_images_the_priors_are_sampled_and_it_says_why(fresh_run, capsys):
    def missing():
        raise ConfigError("data.data_dir photos is not a folder")

    blind = dataclasses.replace(fresh_run, splits=runs.Later(missing))
    files = samples.write_samples(blind)
    assert [file.name[:4] for file in files] == ["gaus", "ebm_"]
    for ours, seen in zip(files, samples.write_samples(fresh_run), strict=False):
        assert ours.read_bytes() == seen.read_bytes()
    words = "No reconstructions: data.data_dir photos is not a folder."
    assert words in capsys.readouterr().out


def test_files_are_named_by_step_and_noise_depends_on_the_seed_alone(fresh_run):
    first = samples.write_samples(fresh_run)
    later = samples.write_samples(dataclasses.replace(fresh_run, step=123))
    folder = fresh_run.path / "samples"
    assert first == [folder / f"{name}_0000008.png" for name in NAMES]
    assert later == [folder / f"{name}_0000123.png" for name in NAMES]
    for a, b in zip(first, later, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_samples_of_another_seed_lie_apart_and_differ(fresh_run):
    other = dataclasses.replace(
        fresh_run, experiment=dataclasses.replace(fresh_run.experiment, seed=1)
    )
    files = zip(
        samples.write_samples(fresh_run), samples.write_samples(other), strict=True
    )
    for own, varied in files:
        assert varied == own.parent / "seed=1" / own.name
        assert varied.read_bytes() != own.read_bytes()


def test_progress_is_samples_and_curves(fresh_run):
    samples.draw_progress(fresh_run)
    path = fresh_run.path
    assert names_in(path / "samples") == {f"{name}_0000008.png" for name in NAMES}
    assert names_in(path / "figures") == {"training.png"}


def test_mode_sample_says_what_it_wrote(fresh_run, monkeypatch, capsys):
    monkeypatch.setattr(samples, "open_run", lambda *arguments, **named: fresh_run)
    path = fresh_run.path
    samples.sample(fresh_run.experiment, path)
    expected = [f"wrote {path / 'samples' / f'{name}_0000008.png'}" for name in NAMES]
    assert capsys.readouterr().out.splitlines() == expected
    assert (path / "report.html").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_made_up_data_are_titled(name, made_up_run):
    with Image.open(made_up_run.path / "samples" / f"{name}_0000008.png") as picture:
        top = np.asarray(picture.convert("RGB"))[:30].reshape(-1, 3)
    assert (top == (220, 20, 60)).all(axis=-1).any()


def test_samples_of_real_data_are_the_grids_alone(fresh_run):
    files = samples.write_samples(fresh_run)
    drawn = samples.draw(samples.compute(fresh_run.key(Stream.PICTURES), fresh_run))
    for file, grid in zip(files, drawn.values(), strict=True):
        with Image.open(file) as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid))


@pytest.fixture(scope="module")
def made_up_run(make_run):
    """A run on made-up data with its samples."""
    run = make_run(**{"data.name": "fake"})
    samples.write_samples(run)
    return run
