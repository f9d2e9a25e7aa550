import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.contour import ContourSet

import jebm
from experiments.drawing import latent_planes
from experiments.drawing.latent_planes import (
    Contours,
    LatentPlanes,
    Plane,
    distances,
    principal_plane,
)
from tests.experiments.drawing.made_up import grey, titles

DISTANCES = {"tilted": 0.125, "untilted": 0.5, "posterior": 0.01, "ratio": 0.25}


@pytest.fixture(scope="module")
def computed(make_run):
    """Planes of layers of 4 and of 2 dimensions, and their run."""
    run = make_run()
    return run, latent_planes.compute(jax.random.key(0), run)


def made_up_plane(contours):
    rng = np.random.default_rng(0)
    low, high = np.float64([-3, -4]), np.float64([3, 5])
    x, y = np.meshgrid(*np.linspace(low, high, 9).T)
    energies = Contours(x, y, x**2 + y**2, np.linspace(0, 9, 8))
    return Plane(
        *(rng.normal(size=(30, 2)), rng.normal(size=(3, 30, 2)), low, high),
        *(energies if contours else None, DISTANCES),
    )


@pytest.mark.slow
def test_latent_planes_json_has_four_distances_per_layer(drawn_run):
    run, _ = drawn_run
    layers = json.loads((run.path / "figures" / "latent_planes.json").read_text())
    assert set(layers) == {"z_1", "z_2"}
    for values in layers.values():
        assert set(values) == {"tilted", "untilted", "posterior", "ratio"}
        assert all(value > 0 for value in values.values())
        assert values["ratio"] == pytest.approx(values["tilted"] / values["untilted"])


def test_planes_are_of_every_layer_at_some_times(computed):
    _, planes = computed
    assert planes.times == [0, 1, 2, 3, 4]
    assert planes.decoded.shape == (5, 16, 8, 8, 1)
    for plane in planes.planes:
        num = len(plane.posterior)
        assert plane.posterior.shape == (num, 2)
        assert plane.prior.shape == (5, num, 2)
        assert (plane.low <= -3).all() and (plane.high >= 3).all()


def test_contours_are_of_the_energy_of_a_layer_of_two_dimensions(computed):
    run, planes = computed
    assert planes.planes[0].contours is None  # of 4 dimensions
    contours = planes.planes[1].contours
    z = jnp.stack([contours.x[::20, ::20], contours.y[::20, ::20]], axis=-1)
    latents = (jnp.zeros((16, 4)), jnp.asarray(z.reshape(16, 2), jnp.float32))
    energies = jebm.energy(run.model, run.params, latents).reshape(4, 4)
    shown = contours.energies[::20, ::20]
    # They differ by E_1(0), the same everywhere.
    expected = energies - energies[0, 0]
    np.testing.assert_allclose(shown - shown[0, 0], expected, rtol=1e-4, atol=1e-4)
    assert (np.diff(contours.levels) > 0).all()
    assert contours.levels[0] == contours.energies.min()


def test_energy_of_all_layers_has_no_contours(make_run):
    joint = make_run(**{"energy.name": "joint", "backbone.latent_dims": (2, 2)})
    planes = latent_planes.compute(jax.random.key(0), joint).planes
    assert [plane.contours for plane in planes] == [None, None]


def test_drawn_a_row_per_layer_top_first_above_decoded_images():
    planes = (made_up_plane(contours=False), made_up_plane(contours=True))
    figure = latent_planes.draw(LatentPlanes([0, 2, 9], planes, grey(3, 16)))
    axes = np.reshape(figure.axes, (3, 3))
    assert titles(figure)[:3] == ["step 0", "step 2", "step 9"]
    assert [axis.get_ylabel().split("\n") for axis in axes[:, 0]] == [
        ["z_2", "D tilted 0.12", "D untilted 0.50"],
        ["z_1", "D tilted 0.12", "D untilted 0.50"],
        ["decoded"],
    ]
    for row, plane in zip(axes[:2], reversed(planes), strict=True):
        for axis, moving in zip(row, plane.prior, strict=True):
            clouds = [
                c.get_offsets() for c in axis.collections if type(c) is PathCollection
            ]
            np.testing.assert_allclose(clouds[0], plane.posterior)
            np.testing.assert_allclose(clouds[1], moving)
            drawn = any(isinstance(c, ContourSet) for c in axis.collections)
            assert drawn == (plane.contours is not None)
            assert axis.get_xlim() == (-3, 3) and axis.get_ylim() == (-4, 5)
    assert all(len(axis.get_images()) == 1 for axis in axes[2])


def test_numbers_are_the_distances_of_each_layer():
    planes = (made_up_plane(contours=False), made_up_plane(contours=True))
    values = latent_planes.numbers(LatentPlanes([0], planes, grey(1, 16)))
    assert values == {"z_1": DISTANCES, "z_2": DISTANCES}


def test_distances_to_a_chain_that_has_diverged_are_nan():
    posterior, sound = np.random.default_rng(0).normal(size=(2, 40, 3))
    diverged = sound.copy()
    diverged[0, 0] = np.inf
    values = distances(posterior, diverged, sound)
    assert np.isnan([values["tilted"], values["ratio"]]).all()
    assert values["untilted"] > 0 and values["posterior"] > 0


def test_plane_of_one_dimension_is_a_line():
    points = np.random.default_rng(0).normal(size=(30, 1))
    np.testing.assert_array_equal(principal_plane(points)(points)[:, :1], points)
    assert (principal_plane(points)(points)[:, 1] == 0).all()


def test_plane_of_two_dimensions_is_the_identity():
    points = np.random.default_rng(0).normal(size=(30, 2))
    np.testing.assert_array_equal(principal_plane(points)(points), points)


def test_plane_of_more_dimensions_is_that_of_largest_variance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 4)) * [0.1, 3, 0.2, 2] + [5, 6, 7, 8]
    flat = principal_plane(points)(points)
    assert flat.shape == (500, 2)
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(np.cov(flat.T), np.diag(eigenvalues[:2]), atol=1e-12)
