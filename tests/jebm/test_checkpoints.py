import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import checkpoints
from tests.models import random_params, small_model

SPEC = {"image_shape": [2, 2, 1], "backbone": {"latent_dims": [3, 2]}}
MODEL = jebm.build(SPEC)


def items(step):
    return {
        "ema": random_params(MODEL, seed=step),
        "train_state": {"step": jnp.int32(step), "moments": [jnp.ones(3) * step]},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    (path / "model.json").write_text(json.dumps(SPEC))
    with checkpoints.manager(path, keep=2) as manager:
        for step in (1, 2, 3):
            checkpoints.write(manager, step, items(step))
    return path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def data_files(path, step, item):
    """The files that hold the arrays of one item."""
    found = list((path / "checkpoints" / str(step) / item).rglob("d/*"))
    assert found
    return found


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


def test_restores_every_bit_of_the_newest(run):
    assert checkpoints.steps(run) == [2, 3]  # keep=2
    step, restored = checkpoints.restore(run, items(0))
    assert step == 3
    assert_same(restored, items(3))


def test_restores_the_step_asked_for(run):
    step, restored = checkpoints.restore(run, items(0), step=2)
    assert step == 2
    assert_same(restored, items(2))


def test_load_gives_model_and_averaged_parameters(run):
    model, params = jebm.load(run)
    assert model == MODEL
    assert isinstance(params, jebm.Params)
    assert_same(params, items(3)["ema"])
    assert_same(jebm.load(run, step=2)[1], items(2)["ema"])
    assert jebm.sample(jax.random.key(0), model, params, 2).x.shape == (2, 2, 2, 1)


def test_load_takes_the_former_name_of_a_space(run):
    chains = {"prior": {"space": "eps_released"}}
    (run / "model.json").write_text(json.dumps(SPEC | {"chains": chains}))
    model, _ = jebm.load(run)
    assert model.chains.prior.space == "eps_no_jacobian"
    assert jebm.to_spec(model)["chains"]["prior"]["space"] == "eps_no_jacobian"


@pytest.mark.parametrize("item", ["ema", "train_state"])
def test_any_damaged_array_file_is_noticed_and_the_one_before_is_read(run, item):
    flip(max(data_files(run, 3, item), key=lambda p: p.stat().st_size))
    with pytest.warns(UserWarning, match=r"checkpoints/3 is corrupt.*the one before"):
        step, restored = checkpoints.restore(run, items(0))
    assert step == 2
    assert_same(restored, items(2))


@pytest.mark.parametrize("damage", ["truncate", "delete", "digests"])
def test_truncated_missing_and_unlisted_data_are_noticed(run, damage):
    if damage == "digests":
        (run / "checkpoints/3/digests/metadata").write_text("{}")
    for file in data_files(run, 3, "ema") if damage != "digests" else []:
        if damage == "truncate":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        else:
            file.unlink()
    with pytest.warns(UserWarning, match="checkpoints/3 is corrupt"):
        assert checkpoints.restore(run, items(0))[0] == 2


def test_arrays_of_another_model_are_not_called_corrupt(run):
    asked = items(0)
    asked["ema"] = {"other": asked["ema"]}
    words = r"3 is of another model or version, or damaged: its ema has no \[.*other"
    with pytest.raises(checkpoints.CorruptCheckpointError, match=words):
        checkpoints.restore(run, asked, 3)


def test_a_damaged_name_among_the_digests_may_be_another_version(run):
    path = run / "checkpoints/3/digests/metadata"
    path.write_text(path.read_text().replace("Dense_0", "Dense_7", 1))
    with pytest.warns(UserWarning, match=r"3 is of .*or damaged: .*Dense_0.*Dense_7"):
        assert checkpoints.restore(run, items(0))[0] == 2


def test_arrays_of_other_shapes_than_the_model_has_are_refused(run):
    asked = items(0)
    path, leaf = sorted(checkpoints._by_path(asked["ema"]).items())[0]
    wider = jax.tree.map(lambda a: np.zeros((*a.shape, 2), a.dtype), asked["ema"])
    shapes = f"{leaf.shape}, expected {(*leaf.shape, 2)}"
    words = re.escape(f"of other settings: {path} of its ema has shape {shapes}")
    with pytest.raises(checkpoints.CorruptCheckpointError, match=words):
        checkpoints.restore(run, asked | {"ema": wider}, 3)


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_a_digest_of_other_values_is_a_mismatch_named_by_leaf(run):
    # What the array store would not notice: sound files, other numbers.
    path = run / "checkpoints/3/digests/metadata"
    digests = json.loads(path.read_text())
    leaf = sorted(digests["ema"])[0]
    digests["ema"][leaf] = "0" * 64
    path.write_text(json.dumps(digests))
    with pytest.raises(checkpoints.CorruptCheckpointError) as error:
        checkpoints.restore(run, items(0), step=3)
    assert "digest mismatch in ema" in str(error.value) and leaf in str(error.value)


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_all_damaged_is_an_error_and_nothing_is_deleted(run):
    for step in (2, 3):
        flip(max(data_files(run, step, "ema"), key=lambda p: p.stat().st_size))
    with pytest.raises(checkpoints.CorruptCheckpointError, match=r"3 is .*2 is "):
        jebm.load(run)
    assert checkpoints.steps(run) == [2, 3]


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_a_template_of_another_shape_does_not_pass(run):
    other = {"ema": random_params(small_model((3, 2), image_shape=(2, 2, 1)))}
    with pytest.raises(checkpoints.CorruptCheckpointError):
        checkpoints.restore(run, other)


def test_missing_runs_steps_and_checkpoints_are_told_apart(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        jebm.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"step 7 .* found steps \[2, 3\]"):
        jebm.load(run, step=7)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* steps \[\]"):
        jebm.load(run)


def test_set_aside_after_moves_later_steps_and_deletes_nothing(run):
    before = {p.name: p.read_bytes() for p in data_files(run, 3, "ema")}
    checkpoints.set_aside_after(run, 2)
    assert checkpoints.steps(run) == [2]
    moved = run / "checkpoints_set_aside" / "3"
    after = {p.name: p.read_bytes() for p in (moved / "ema").rglob("d/*")}
    assert before == after


def test_an_error_that_says_nothing_about_the_file_is_not_taken_for_damage(
    run, monkeypatch
):
    def refuse(*args):
        raise PermissionError("no")

    monkeypatch.setattr(checkpoints, "_read", refuse)
    with pytest.raises(PermissionError):
        checkpoints.restore(run, items(0))


def test_reading_writes_nothing(run):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    jebm.load(run)
    after = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert before == after


def test_what_is_saved_is_loaded(tmp_path):
    for step in (0, 5):
        jebm.save(tmp_path, MODEL, random_params(MODEL, seed=step), step)
    model, params = jebm.load(tmp_path)
    assert model == MODEL
    assert_same(params, random_params(MODEL, seed=5))
    assert_same(jebm.load(tmp_path, step=0)[1], random_params(MODEL, seed=0))


def test_float64_is_saved_as_float32(tmp_path, x64):
    params = jax.tree.map(np.float64, random_params(MODEL))
    jebm.save(tmp_path, MODEL, params)
    loaded = jebm.load(tmp_path)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype("float32")}
    assert_same(loaded, jax.tree.map(np.float32, params))


def test_saving_overwrites_nothing(tmp_path):
    params = random_params(MODEL)
    jebm.save(tmp_path, MODEL, params)
    with pytest.raises(FileExistsError, match="holds step 0 already"):
        jebm.save(tmp_path, MODEL, params)
    other = jebm.build(SPEC | {"energy": None})
    with pytest.raises(FileExistsError, match="holds another model"):
        jebm.save(tmp_path, other, params._replace(energy=None), 1)
    with pytest.raises(ValueError, match="params"):
        jebm.save(tmp_path / "other", other, params)
    assert not (tmp_path / "other").exists()
    assert checkpoints.steps(tmp_path) == [0]


def test_model_in_bfloat16_is_loaded_as_it_was_saved(tmp_path):
    model = jebm.build({"image_shape": (8, 8, 1)})
    model = jebm.with_compute_dtype(model, "bfloat16")
    jebm.save(tmp_path, model, jebm.init(jax.random.key(0), model))
    loaded, params = jebm.load(tmp_path)
    assert loaded == model and loaded.backbone.compute_dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("step", "message"), [(3, "above those"), (-1, "step must be")]
)
def test_a_step_that_cannot_be_saved_is_refused(tmp_path, step, message):
    params = random_params(MODEL)
    jebm.save(tmp_path, MODEL, params, 5)
    with pytest.raises(ValueError, match=message):
        jebm.save(tmp_path, MODEL, params, step)
    assert checkpoints.steps(tmp_path) == [5]
