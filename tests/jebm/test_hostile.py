"""Directories and descriptions that somebody has tampered with, or damaged."""

import copy
import json
import shutil
import sys
import warnings

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jebm
from jebm import checkpoints
from tests.models import random_params

SPEC = {
    "image_shape": [4, 4, 1],
    "backbone": {
        "name": "vector",
        "latent_dims": [3, 2],
        "conditioning": "next",
        "prior_widths": [4],
        "decoder_type": "mlp",
        "decoder_widths": [4],
        "encoder_widths": [4],
        "activation": "tanh",
        "log_scale_bound": 3.0,
    },
    "energy": {"name": "layerwise", "widths": [4], "activation": "gelu"},
    "likelihood": {"name": "gaussian", "scale": 0.15},
    "chains": {
        chain: {"num_steps": 2, "step_size": 0.1, "space": "eps", "start": "normal"}
        for chain in ("prior", "posterior")
    },
}
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def places(node, path=()):
    """The path of everything below `node`."""
    items = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


leaves = (
    st.none()
    | st.booleans()
    | st.integers(max_value=1000)  # a network of that width is no mistake, only large
    | st.floats()
    | st.text(max_size=5)
)
values = (
    leaves
    | st.lists(leaves, max_size=3)
    | st.dictionaries(st.text(max_size=3), leaves, max_size=2)
    | st.lists(st.lists(leaves, max_size=2), max_size=2)
)


@settings(FUZZ, max_examples=200)
@given(st.sampled_from(list(places(SPEC))), values)
def test_any_value_anywhere_builds_a_model_or_is_a_value_error_of_one_line(path, value):
    spec = copy.deepcopy(SPEC)
    node = spec
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    try:
        model = jebm.build(spec)
        jax.eval_shape(jebm.init, jax.random.key(0), model)
    except ValueError as error:
        assert str(error).strip()
        assert "\n" not in str(error)


@settings(FUZZ, max_examples=100)
@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.just(b"{}"))
def test_any_bytes_in_model_json_are_a_value_error_that_names_it(
    tmp_path_factory, data
):
    path = tmp_path_factory.mktemp("run")
    (path / "model.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"model\.json describes no model"):
        jebm.load(path)


@pytest.fixture(scope="module")
def items():
    model = jebm.build(SPEC)
    return [
        {"ema": random_params(model, step), "train_state": {"step": np.int32(step)}}
        for step in range(4)
    ]


@pytest.fixture(scope="module")
def sound(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("sound") / "run"
    with checkpoints.manager(path, keep=2) as manager:
        for step in (2, 3):
            checkpoints.write(manager, step, items[step])
    (path / "model.json").write_text(json.dumps(SPEC))
    return path


_events = []


def _record(event, arguments):
    if _events and event in ("pickle.find_class", "os.system", "subprocess.Popen"):
        _events.append((event, arguments))


@pytest.fixture(scope="module")
def nothing_runs():
    """Fails if anything is unpickled or started meanwhile."""
    sys.addaudithook(_record)  # for good, so it records only now
    _events.append("now")
    yield
    recorded = _events[1:]
    _events.clear()
    assert recorded == []


@st.composite
def damages(draw, data):
    """What may become of a file's bytes."""
    kind = draw(st.sampled_from(["flip", "cut", "garbage", "longer"]))
    if kind == "garbage":
        return draw(st.binary(max_size=50))
    if kind == "longer":
        return data + draw(st.binary(min_size=1, max_size=50))
    if not data:
        return b"x"
    where = draw(st.integers(0, len(data) - 1))
    if kind == "cut":
        return data[:where]
    flipped = data[where] ^ draw(st.integers(1, 255))
    return data[:where] + bytes([flipped]) + data[where + 1 :]


@pytest.mark.slow
@settings(FUZZ, max_examples=150)
@given(st.data())
def test_damaged_checkpoint_is_read_to_the_bit_or_passed_over(
    sound, items, nothing_runs, data
):
    newest = sound / "checkpoints" / "3"
    files = sorted(file for file in newest.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    deleted = data.draw(st.booleans())
    file.unlink()
    try:
        if not deleted:
            file.write_bytes(data.draw(damages(before)))
        with warnings.catch_warnings(record=True) as passed_over:
            warnings.simplefilter("always", UserWarning)
            step, found = checkpoints.restore(sound, items[0])
    finally:
        file.write_bytes(before)
    # A flipped bit in a name reads as a checkpoint of another model, or damaged.
    reasons = [str(w.message) for w in passed_over if "one before" in str(w.message)]
    assert all("is corrupt" in r or "or damaged" in r for r in reasons)
    assert step == 3 - len(reasons)
    assert checkpoints.digests(found) == checkpoints.digests(items[step])


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "checkpoints/3/_CHECKPOINT_METADATA").write_text(
            '{"version": 99}'
        ),
        lambda path: shutil.rmtree(path / "checkpoints/3/train_state"),
        lambda path: (path / "checkpoints/4").mkdir(),
        lambda path: (path / "checkpoints/7").write_text("a file"),
        lambda path: (path / "checkpoints/5").symlink_to("/"),
    ],
)
def test_checkpoints_of_other_versions_and_other_things_are_passed_over(
    sound, items, tmp_path, change
):
    path = shutil.copytree(sound, tmp_path / "run")
    change(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        step, found = checkpoints.restore(path, items[0])
    assert step in (2, 3)
    assert checkpoints.digests(found) == checkpoints.digests(items[step])
