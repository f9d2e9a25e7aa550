import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments.errors import ConfigError
from tools.headline import pack, weights


@pytest.fixture(scope="module")
def digits():
    return jebm.load_pretrained("digits")


@pytest.fixture
def run(digits, tmp_path):
    """What the directory of a run holds, as far as it is packed."""
    model, params = digits
    path = tmp_path / "run"
    jebm.save(path, model, params, 40)
    for name, size in {
        "config.json": 10, "eval.json": 20, "eval_ood.json": 30, "metrics.jsonl": 40,
        "report.html": 50, "samples/ebm_0000020.png": 60, "samples/ebm_0000040.png": 70,
        "samples/gaussian_0000040.png": 80, "figures/training.png": 90,
        "events.out": 100, "samples/seed=3/ebm_0000040.png": 110,
    }.items():  # fmt: skip
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x" * size)
    return path


def test_parameters_come_back_with_three_digits_and_their_types(digits, tmp_path):
    model, params = digits
    weights.write(tmp_path, model, params, 40)
    again, found = weights.read(tmp_path)
    assert again == model
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for ours, theirs in zip(
        jax.tree.leaves(params), jax.tree.leaves(found), strict=True
    ):
        assert ours.dtype == theirs.dtype == jnp.float32
        np.testing.assert_allclose(theirs, ours, rtol=2**-8)
        np.testing.assert_array_equal(theirs, ours.astype(jnp.bfloat16).astype("f4"))
    num = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (tmp_path / "weights.npz").stat().st_size < 2.1 * num
    x = jebm.sample(jax.random.key(0), again, found, 4, num_steps=2).x
    assert jnp.isfinite(x).all()


def test_what_is_no_float_is_kept_as_it_is(digits, tmp_path):
    model, params = digits
    counted = params._replace(
        backbone=dict(params.backbone) | {"count": jnp.asarray([70_000], jnp.int32)}
    )
    weights.write(tmp_path, model, counted, 0)
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as arrays:
        assert arrays["backbone/count"].tolist() == [70_000]
        kernels = [name for name in arrays if name.endswith("kernel")]
        assert {arrays[name].dtype for name in kernels} == {np.dtype("uint16")}


def test_damaged_weights_are_told(digits, tmp_path):
    weights.write(tmp_path, *digits, 40)
    file = tmp_path / "weights.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(ConfigError, match=r"weights\.npz is damaged"):
        weights.read(tmp_path)


def test_the_worthy_is_packed_and_what_it_is_told(run, tmp_path):
    kept = tmp_path / "kept"
    contents = pack.pack(run, kept, {"jax": "1"})
    assert contents == json.loads((kept / "contents.json").read_text())
    assert (contents["step"], contents["left_out"]) == (40, {})
    names = {file.name for file in kept.iterdir()} - {"contents.json"}
    assert names == contents["bytes"].keys() == {
        "config.json", "hardware.json", "eval.json", "eval_ood.json", "metrics.jsonl",
        "weights.json", "weights.npz", "ebm_0000040.png", "gaussian_0000040.png",
        "training.png", "report.html",
    }  # fmt: skip
    assert {n: (kept / n).stat().st_size for n in names} == contents["bytes"]
    assert json.loads((kept / "hardware.json").read_text()) == {"jax": "1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "run"]


def test_what_does_not_fit_is_left_out_the_least_worthy_first(run, tmp_path):
    kept = tmp_path / "kept"
    (run / "report.html").write_bytes(b"x" * 10_000_000)
    contents = pack.pack(run, kept, {}, limit=5_000_000)
    assert contents["left_out"] == {"report.html": 10_000_000}
    contents = pack.pack(run, kept, {}, limit=100_000)  # anew: the weights are larger
    assert {"weights.json", "weights.npz", "report.html"} == set(contents["left_out"])
    assert not (kept / "weights.npz").exists() and (kept / "training.png").exists()
    assert sum(file.stat().st_size for file in kept.iterdir()) < 100_000


def test_a_folder_of_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="kept is no folder of packed results"):
        pack.pack(run, tmp_path / "kept", {})
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["mine.txt"]
