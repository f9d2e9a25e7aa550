"""Small models whose densities can be integrated on a grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jebm


def small_model(
    dims=(1, 1),
    conditioning="next",
    image_shape=(1, 1, 1),
    encoder_widths=None,
    **spec,
):
    """A model with smooth networks and latents of `dims`."""
    return jebm.build(
        {
            "image_shape": image_shape,
            "backbone": {
                "latent_dims": dims,
                "conditioning": conditioning,
                "prior_widths": (4,),
                "decoder_widths": (5,),
                "encoder_widths": encoder_widths,
                "activation": "tanh",
                "log_scale_bound": 0.7,
            },
            "energy": {"widths": (6,), "activation": "tanh"},
            "likelihood": {"name": "gaussian", "scale": 0.3},
            **spec,
        }
    )


def random_params(model, seed=0, scale=1.0, dtype=None):
    """Parameters with every leaf random, the zero-initialised ones included."""
    params = jebm.init(jax.random.key(seed), model)
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return treedef.unflatten(
        jnp.asarray(
            np.asarray(leaf)
            + scale * rng.normal(size=leaf.shape) / np.sqrt(max(leaf.shape[0], 1)),
            dtype or leaf.dtype,
        )
        for leaf in leaves
    )


def random_latents(model, num, seed=0, dtype=None):
    """Standard normal latents, [num, *shape_i] per layer."""
    rng = np.random.default_rng(seed)
    return tuple(
        jnp.asarray(rng.normal(size=(num, *shape)), dtype or jnp.float32)
        for shape in model.backbone.latent_shapes
    )


def grid_nodes(bound, num, layers=2):
    """Trapezoid nodes on [-bound, bound]^layers as latents of 1-D layers, and weights.

    For smooth integrands that vanish at the bound the rule converges faster than any
    power of the spacing.
    """
    line = np.linspace(-bound, bound, num)
    points = np.array(list(itertools.product(line, repeat=layers)))
    latents = tuple(jnp.asarray(points[:, i : i + 1]) for i in range(layers))
    return latents, (line[1] - line[0]) ** layers
