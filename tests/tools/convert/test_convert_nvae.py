import argparse
import copy
import json
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jebm
from experiments.errors import ConfigError
from tests.jebm.test_hostile import FUZZ, values
from tools.convert import nvae as convert_nvae
from tools.verify import nvae as verify_nvae

ARGS = verify_nvae.FIXTURE
FIXTURE = pathlib.Path(__file__).parent / "nvae_fixture.npz"


class State(dict):
    """A state dict that is no page long in a report."""

    def __repr__(self):
        return f"{len(self)} tensors"


@pytest.fixture(scope="module")
def small():
    """A model, and a state dict with random values."""
    model = jebm.build(convert_nvae.model_spec(ARGS, None))
    return model, State(verify_nvae.random_state(model, 0, "float64"))


@pytest.mark.slow
def test_numbers_are_those_of_the_official_modules(small, x64):
    model, state = small
    params = convert_nvae.convert(model, state)
    found = verify_nvae.thinned(
        verify_nvae.ours(model, params, *verify_nvae.given(model, 0, "float64"))
    )
    with np.load(FIXTURE) as expected:
        assert sorted(expected) == sorted(found)
        for name in found:
            error = verify_nvae.relative([found[name]], [expected[name]])
            assert error < 1e-9, name


@pytest.mark.slow
def test_comparison_sees_a_tensor_that_differs(small, x64):
    model, state = small
    inputs = verify_nvae.given(model, 0, "float64")
    before = verify_nvae.ours(model, convert_nvae.convert(model, state), *inputs)
    for name in (
        "nf_cells.0.cell2.mu.conv_0.bias",
        "enc_tower.1.conv.weight",
        "dec_tower.2._ops.0.conv.4.bn.running_var",
        "image_conditional.1.bias",
    ):
        changed = state | {name: state[name] + 0.1}
        after = verify_nvae.ours(model, convert_nvae.convert(model, changed), *inputs)
        assert any(verify_nvae.relative(after[k], before[k]) > 1e-6 for k in before), (
            name
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch_instance": "res_elu"}, "arch_instance is 'res_elu'"),
        ({"dataset": "stacked_mnist"}, "dataset is 'stacked_mnist'"),
        ({"num_postprocess_blocks": 2}, "num_postprocess_blocks is 2"),
        ({"num_latent_scales": 1, "num_groups_per_scale": 1}, "single group"),
        ({"depth_of_field": 3}, r"unknown settings \['depth_of_field'\]"),
    ],
)
def test_args_of_other_networks_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        convert_nvae.model_spec(ARGS | changes, None)


def test_missing_args_and_a_scale_without_a_gaussian_are_refused():
    args = {k: v for k, v in ARGS.items() if k != "use_se"}
    with pytest.raises(ConfigError, match="do not hold 'use_se'"):
        convert_nvae.model_spec(args, None)
    with pytest.raises(ConfigError, match="Gaussian decoder"):
        convert_nvae.model_spec(ARGS, -2.0)


def test_args_of_the_published_checkpoints_are_read():
    groups = {
        name: convert_nvae.model_spec(verify_nvae._ARGS | args, None)["backbone"]
        for name, args in verify_nvae.SETTINGS.items()
    }
    assert [tuple(b["groups"]) for b in groups.values()] == [
        (30,), (20, 10, 5), (16, 8, 4, 4, 4), (5, 5, 5), (10, 5), (2, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("stem.weight"), r"1 missing \['stem.weight'\]"),
        (lambda s: s.update(other=np.zeros(1)), r"1 unknown \['other'\]"),
        (
            lambda s: s.update({"stem.bias": np.full(2, np.nan)}),
            "stem.bias holds values that are not finite",
        ),
        (
            lambda s: s.update({"stem.bias": np.zeros(3)}),
            r"stem.bias has shape \(3,\) after .*, and its args need \(2,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(small, change, message):
    model, state = small
    state = dict(state)
    change(state)
    with pytest.raises(ConfigError, match=message):
        convert_nvae.convert(model, state)


@settings(FUZZ, max_examples=300)
@given(st.dictionaries(st.sampled_from(sorted(ARGS)), values, min_size=1, max_size=2))
def test_any_args_are_a_model_or_refused_in_one_line(changes):
    try:
        jebm.build(convert_nvae.model_spec(ARGS | changes, None))
    except ValueError as error:  # which a ConfigError is
        assert str(error).strip()
        assert "\n" not in str(error)


def damaged(array, value):
    array = array.copy()
    array.reshape(-1)[0] = value
    return array


tampered = st.sampled_from(
    [
        lambda array: damaged(array, np.nan),
        lambda array: np.stack([array, array]),
        lambda array: array.reshape(-1)[:-1],
        lambda array: array.astype(str),
        lambda array: array.astype(object),
        lambda array: None,
    ]
)


@settings(FUZZ, max_examples=60)
@given(st.data())
def test_any_tensor_that_was_tampered_with_is_refused(small, data):
    model, state = small
    state = copy.copy(state)
    name = data.draw(st.sampled_from(sorted(state)))
    state[name] = data.draw(tampered)(state[name])
    with pytest.raises(ConfigError, match="the checkpoint's"):
        convert_nvae.convert(model, state)


def test_checkpoint_becomes_a_directory_that_loads(small, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="checkpoints are PyTorch's")
    model, state = small
    file = tmp_path / "checkpoint.pt"
    args = argparse.Namespace(**ARGS, epochs=400, save="somewhere")
    tensors = {k: torch.from_numpy(v).float() for k, v in state.items()}
    tensors["dec_tower.0.num_batches_tracked"] = torch.tensor(3)
    torch.save({"args": args, "state_dict": tensors, "epoch": 1}, file)
    convert_nvae.main([str(file), str(tmp_path / "out")])
    assert "wrote" in capsys.readouterr().out
    loaded, params = jebm.load(tmp_path / "out")
    assert loaded == model
    expected = convert_nvae.convert(model, state)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32)),
        params,
        expected,
    )
    told = json.loads((tmp_path / "out/nvae_args.json").read_text())
    assert told["epochs"] == "400"
    with pytest.raises(SystemExit, match="is not empty"):
        convert_nvae.main([str(file), str(tmp_path / "out")])


class Evil:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("evil"),))


def test_files_that_are_no_checkpoints_are_refused_and_run_nothing(
    tmp_path, monkeypatch
):
    torch = pytest.importorskip("torch", reason="checkpoints are PyTorch's")
    monkeypatch.chdir(tmp_path)
    torch.save({"args": Evil(), "state_dict": {}}, tmp_path / "evil.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, message in (
        ("evil.pt", "not a checkpoint of tensors"),
        ("other.pt", "must hold 'args' and 'state_dict'"),
        ("text.pt", "not a checkpoint of tensors"),
        ("none.pt", "there is no file"),
    ):
        with pytest.raises(SystemExit, match=message):
            convert_nvae.main([name, "out"])
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "out").exists()
