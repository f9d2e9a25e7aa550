import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from jebm.metrics import inception
from tests.pillow import assert_prepared_as_by_pillow
from tests.tools.convert.test_convert_inception import FIXTURE, SMALL
from tools.convert import inception as convert_inception
from tools.verify import inception as verify_inception


@pytest.fixture(scope="module")
def state():
    return verify_inception.random_state(SMALL, 0, "float64")


@pytest.mark.slow
@pytest.mark.parametrize("side", verify_inception.SIDES)
def test_activations_are_those_of_pytorch_fid(state, side, x64):
    images = verify_inception.images_of(side, 2, 0)
    found = verify_inception.ours(state, images, "float64")
    with np.load(FIXTURE) as expected:
        for name, array in found.items():
            error = verify_inception.relative(array, expected[f"{name}/{side}"])
            assert error < 1e-9, name


@pytest.mark.slow
def test_comparison_sees_a_tensor_that_differs(state, x64):
    images = verify_inception.images_of(32, 2, 0)
    with np.load(FIXTURE) as arrays:
        expected = {name: arrays[f"{name}/32"] for name in ("pool", "logits")}
    for name in (
        "Conv2d_1a_3x3.bn.running_mean",
        "Mixed_5c.branch5x5_2.conv.weight",
        "Mixed_6b.branch7x7dbl_4.bn.running_var",
        "Mixed_7c.branch3x3_2b.bn.bias",
        "fc.bias",
    ):
        changed = state | {name: state[name] + 0.1}
        found = verify_inception.ours(changed, images, "float64")
        assert verify_inception.relative(found["logits"], expected["logits"]) > 1e-6
        same = name == "fc.bias"
        error = verify_inception.relative(found["pool"], expected["pool"])
        assert (error < 1e-9) == same, name


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (310, 400)])
def test_bicubic_resizing_is_pillows_of_floats(size):
    assert_prepared_as_by_pillow(
        lambda x: inception.prepare(x, "bicubic"),
        size, 299, Image.Resampling.BICUBIC, centre=128,
    )  # fmt: skip


def test_bilinear_resizing_weighs_the_nearest_pixels_alone():
    ramp = jnp.linspace(0, 1, 598)[None, None, :, None] * jnp.ones((1, 299, 1, 1))
    found = inception.prepare(ramp, "bilinear")[0, 0, :, 0]
    expected = 2 * (ramp[0, 0, ::2, 0] + ramp[0, 0, 1::2, 0]) / 2 - 1
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = jnp.zeros((1, 2990, 299, 1)).at[0, 0].set(1.0)  # not between nearest ones
    assert (inception.prepare(one, "bilinear") == -1).all()


def test_grey_images_are_those_of_three_equal_colours():
    grey = jnp.asarray(np.random.default_rng(0).random((2, 9, 9, 1)), jnp.float32)
    colours = jnp.tile(grey, (1, 1, 1, 3))
    for resize in inception.RESIZES:
        np.testing.assert_array_equal(
            inception.prepare(grey, resize), inception.prepare(colours, resize)
        )


def test_quantised_images_are_the_nearest_of_256_values():
    values = np.linspace(0, 1, 4001, dtype=np.float32)
    found = np.asarray(inception.quantise(jnp.asarray(values)))
    assert len(np.unique(found)) == 256
    assert np.abs(found - values).max() <= 0.5 / 255 + 1e-6
    exact = np.arange(256, dtype=np.float32) / 255
    found = inception.quantise(jnp.asarray(exact))
    np.testing.assert_allclose(found, exact, rtol=2e-7)


@pytest.mark.parametrize(
    ("shape", "resize", "words"),
    [
        ((2, 8, 8, 2), "bilinear", r"must be \[B, H, W, 1 or 3\], got \(2, 8, 8, 2\)"),
        ((8, 8, 3), "bilinear", r"got \(8, 8, 3\)"),
        ((2, 8, 8, 3), "lanczos", "unknown resize 'lanczos'; known"),
    ],
)
def test_other_images_are_refused(shape, resize, words):
    with pytest.raises(ValueError, match=words):
        inception.prepare(jnp.zeros(shape), resize)
    with pytest.raises(ValueError, match="floating-point"):
        inception.prepare(jnp.zeros((1, 8, 8, 3), jnp.uint8), "bilinear")


@pytest.fixture
def saved(state, tmp_path):
    """A file of weights, and what is in it."""
    _, variables = convert_inception.convert(state)
    inception.save(tmp_path / "cache" / "inception.npz", variables, "abc")
    return tmp_path / "cache" / "inception.npz", variables


def test_what_is_saved_is_loaded(saved, monkeypatch):
    file, variables = saved
    network, loaded, sha256 = inception.load(file)
    assert (network.reduction, sha256) == (SMALL, "abc")
    expected = traverse_util.flatten_dict(variables)
    found = traverse_util.flatten_dict(loaded)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)
    monkeypatch.setenv("JEBM_CACHE", str(file.parent))
    assert inception.load()[2] == "abc"


def test_weights_that_are_not_there_are_asked_for_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        inception.load(tmp_path / "none.npz")
    message = str(raised.value)
    assert "python -m tools.convert.inception" in message
    assert "pt_inception-2015-12-05-6726825d.pth" in message
    assert "\n" not in message


def rewrite(file, change):
    with np.load(file) as held:
        arrays = dict(held)
    change(arrays)
    with file.open("wb") as stream:
        np.savez(stream, **arrays)


KERNEL = "params/Mixed_6e/branch1x1/conv/kernel"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop(KERNEL), f"does not hold {KERNEL}"),
        (lambda a: a.update(more=np.zeros(2)), "does not hold more"),
        (lambda a: a.update({KERNEL: a[KERNEL][..., 1:]}), f"does not hold {KERNEL}"),
        (lambda a: a[KERNEL].fill(np.nan), f"{KERNEL} in .* not finite"),
        (lambda a: a.pop("sha256"), "damaged or holds no Inception weights"),
        (lambda a: a.clear(), "damaged or holds no Inception weights"),
    ],
)
def test_files_of_other_arrays_are_refused(saved, change, words):
    file, _ = saved
    rewrite(file, change)
    with pytest.raises(ValueError, match=words):
        inception.load(file)


def test_damaged_files_are_refused(saved):
    file, _ = saved
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        inception.load(file)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        inception.load(file)
