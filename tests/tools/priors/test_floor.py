"""What a perfect prior is measured at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import jebm
from jebm import priors
from tools.priors import measure, page


@pytest.fixture(scope="module")
def digits_images():
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    return images[np.random.default_rng(0).permutation(len(images))]


def flat(images):
    return np.asarray(images).reshape(len(images), -1)


def test_floor_is_of_own_images_and_of_lots_of_others(digits_images):
    frozen = priors.freeze(*jebm.load_pretrained("digits"))
    real, seen = digits_images[:300], digits_images[300:]
    eps = measure.encode(jax.random.key(0), frozen, seen, 1)[0]
    eps = jnp.asarray(eps)
    floor = measure.floor(jax.random.key(1), frozen, real, eps, flat, 300)
    # The images of a lot are others than those they are held against.
    assert 0 < floor.paired < floor.perfect
    assert 0 < floor.spread < floor.perfect / 4
    gaussian = frozen.decode(frozen.noise(jax.random.key(2), 300))
    reference = jebm.metrics.feature_statistics(flat(real) / np.float32(255))
    statistics = jebm.metrics.feature_statistics(flat(gaussian))
    assert floor.perfect < jebm.metrics.frechet_distance(*statistics, *reference)


def test_one_lot_has_no_spread(tmp_path, digits_images):
    frozen = priors.freeze(*jebm.load_pretrained("digits"))
    eps = measure.encode(jax.random.key(0), frozen, digits_images[:50], 1)[0]
    eps = jnp.asarray(eps)
    floor = measure.floor(jax.random.key(1), frozen, digits_images[:50], eps, flat, 40)
    assert np.isnan(floor.spread)
    page.write(tmp_path, floor, "About.")
    text = (tmp_path / "priors.md").read_text()
    assert f"training images: {floor.perfect:.2f}, which" in text
