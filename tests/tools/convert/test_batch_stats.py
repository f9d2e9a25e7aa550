import json

import jax
import numpy as np
import pytest

import jebm
from tools.convert import batch_stats
from tools.convert import nvae as convert_nvae
from tools.verify import nvae as verify_nvae

MOMENTUM = 0.95  # of the running averages, per batch


def write(path, stats):
    """A small NVAE whose running averages are all `stats`."""
    spec = convert_nvae.model_spec(verify_nvae.FIXTURE, None)
    model = jebm.build(spec)
    state = verify_nvae.random_state(model, 0, "float32")
    params = convert_nvae.convert(model, state)
    averages = jax.tree.map(lambda a: a * 0 + stats, params.backbone["batch_stats"])
    params = params._replace(backbone=params.backbone | {"batch_stats": averages})
    jebm.save(path, jebm.build(spec), params)
    return params


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two runs whose averages alone differ, and each after three batches."""
    path = tmp_path_factory.mktemp("stats")
    before, after = [], []
    for stats in (1.0, 5.0):
        before.append(write(path / f"{stats}", stats))
        arguments = [str(path / f"{stats}"), str(path / f"{stats}-new")]
        batch_stats.main(
            [*arguments, "--num_batches=3", "--batch_size=4", "--temperature=0.7"]
        )
        after.append(jebm.load(path / f"{stats}-new")[1])
    return path, before, after


@pytest.mark.slow
def test_old_averages_fade_and_encoder_and_parameters_stay(three):
    _, before, after = three
    for b, a in zip(before, after, strict=True):
        jax.tree.map(
            np.testing.assert_array_equal, b.backbone["params"], a.backbone["params"]
        )
    # In training mode a draw does not see the averages, so both runs got the same
    # batches, and what is left of their difference, 4, is what momentum keeps.
    moved = 0
    flat = jax.tree_util.tree_leaves_with_path(after[0].backbone["batch_stats"])
    for (path, first), second in zip(
        flat, jax.tree.leaves(after[1].backbone["batch_stats"]), strict=True
    ):
        name = jax.tree_util.keystr(path)
        left = np.unique(np.round((second - first) / 4, 4))
        assert left.size == 1, name
        if left != 1:
            np.testing.assert_allclose(left, MOMENTUM**3, atol=2e-4, err_msg=name)
            moved += 1
    assert 0 < moved < len(flat)


@pytest.mark.slow
def test_averages_become_those_of_the_images_it_draws(three):
    path, _, after = three
    told = json.loads((path / "1.0-new/batch_stats.json").read_text())
    assert (told["num_batches"], told["temperature"]) == (3, 0.7)
    batch_stats.main([str(path / "1.0"), str(path / "long"), "--num_batches=80"])
    model, params = jebm.load(path / "long")
    # What one large batch moves the averages by tells its own statistics.
    moved = batch_stats.update(jax.random.key(9), model, params, 256, 1.0)
    old, new, few = (
        np.concatenate([a.ravel() for a in jax.tree.leaves(p.backbone["batch_stats"])])
        for p in (params, moved, after[0])
    )
    batch = (new - MOMENTUM * old) / (1 - MOMENTUM)
    drawn = old != new
    error = ((old - batch)[drawn] ** 2).mean()
    assert error < 0.1 * ((few - batch)[drawn] ** 2).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_batches=0"], "--num_batches must be positive, got 0"),
        (["--temperature=-1"], "--temperature must be positive, got -1.0"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(three, arguments, message):
    path = three[0]
    with pytest.raises(SystemExit, match=message):
        batch_stats.main([str(path / "1.0"), str(path / "no"), *arguments])
    assert not (path / "no").exists()
    with pytest.raises(SystemExit, match="is not empty"):
        batch_stats.main([str(path / "1.0"), str(path / "1.0-new")])


def test_backbone_without_statistics_is_refused(tmp_path):
    spec = {"image_shape": (4, 4, 1), "backbone": {"latent_dims": (2, 2)}}
    model = jebm.build(spec)
    jebm.save(tmp_path / "run", model, jebm.init(jax.random.key(0), model))
    with pytest.raises(SystemExit, match="has no batch statistics"):
        batch_stats.main([str(tmp_path / "run"), str(tmp_path / "out")])
