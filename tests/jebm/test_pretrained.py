import hashlib
import json
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import pretrained
from tests.experiments.evaluation.saved import save_run
from tools.convert import pretrained as convert

FOLDER = resources.files(pretrained)


@pytest.mark.parametrize("name", pretrained.names())
def test_every_file_is_the_one_that_its_json_describes(name):
    about = json.loads((FOLDER / f"{name}.json").read_text())
    data = (FOLDER / f"{name}.npz").read_bytes()
    assert about["file"] == f"{name}.npz"
    assert hashlib.sha256(data).hexdigest() == about["sha256"]
    assert len(data) < 1_000_000
    measured = about["measured"]
    # Energies of tested steps: chains of any length, and the exact law, are alike.
    for other in ("frechet_exact", "frechet_long_chain"):
        assert measured[other] < 1.3 * measured["frechet"]
    assert measured["frechet"] < measured["frechet_untilted"] / 3


@pytest.mark.parametrize("name", pretrained.names())
def test_every_model_samples_reconstructs_and_scores(name):
    model, params = jebm.load_pretrained(name)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x, z = jebm.sample(jax.random.key(0), model, params, 50)
    noise = jax.random.uniform(jax.random.key(1), x.shape)
    images, others = (
        jebm.scores.score(jax.random.key(2), model, params, images, num_samples=2)
        for images in (x, noise)
    )
    assert images.min() > others.max()
    copies = jebm.reconstruct(jax.random.key(3), model, params, x)
    assert jnp.abs(copies - x).mean() < 0.1
    # In the mean the chain ends where the energies are low.
    untilted = jebm.sample(jax.random.key(0), model, params, 50, prior="gaussian")
    low, high = (jebm.energy(model, params, z).mean() for z in (z, untilted.latents))
    assert low < high - 1


def test_a_run_is_written_as_float16_and_read_as_float32(tmp_path, monkeypatch):
    path = save_run(tmp_path / "run")
    (path / "eval.json").write_text(json.dumps({"frechet": 1.5, "other": 2}))
    convert.export(path, "mine", tmp_path)
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    model, params = jebm.load_pretrained("mine")
    theirs, whole = jebm.load(path)
    assert model == theirs
    jax.tree.map(
        lambda ours, all_bits: np.testing.assert_array_equal(
            ours, np.asarray(all_bits, np.float16).astype(np.float32)
        ),
        params,
        whole,
    )
    assert json.loads((tmp_path / "mine.json").read_text())["measured"] == {
        "frechet": 1.5
    }


def test_a_parameter_that_float16_cannot_hold_is_refused(tmp_path, capsys):
    path = save_run(tmp_path / "run", scale=1e7)
    (path / "eval.json").write_text("{}")
    with pytest.raises(SystemExit, match="too large for float16"):
        convert.main([str(path), "mine", f"--out={tmp_path / 'out'}"])


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    path = save_run(tmp_path / "run")
    (path / "eval.json").write_text("{}")
    convert.export(path, "mine", tmp_path)
    file = tmp_path / "mine.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        jebm.load_pretrained("mine")
