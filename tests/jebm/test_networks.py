import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm.networks import Deconv, silu


def leaky_relu(x):
    return np.where(x > 0, x, 0.2 * x)


@pytest.mark.slow
def test_deconv_is_its_layers_one_after_the_other():
    network = Deconv(widths=(4, 3, 2), output_shape=(8, 12, 5))
    x = jax.random.normal(jax.random.key(1), (6, 7))
    params = network.init(jax.random.key(0), x)["params"]
    params["bias"] = jnp.arange(4.0)
    dense = np.einsum("bd,dn->bn", x, params["Dense_0"]["kernel"])
    h = leaky_relu(dense.reshape(6, 2, 3, 4) + np.arange(4.0))
    for i, stride in enumerate((2, 2, 1)):
        layer = params[f"ConvTranspose_{i}"]
        assert layer["kernel"].shape[:2] == ((3, 3) if stride == 1 else (4, 4))
        h = jax.lax.conv_transpose(
            jnp.asarray(h, jnp.float32), layer["kernel"], (stride, stride), "SAME",
            transpose_kernel=True,
        )  # fmt: skip
        h = h if stride == 1 else leaky_relu(np.asarray(h))
    np.testing.assert_allclose(
        network.apply({"params": params}, x), h, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_deconv_ends_at_the_output_shape_whatever_the_number_of_stages(stages):
    network = Deconv(widths=(2,) * stages, output_shape=(8, 16, 3))
    output = jax.eval_shape(
        network.init_with_output, jax.random.key(0), jnp.ones((2, 4))
    )[0]
    assert output.shape == (2, 8, 16, 3)


def deconv_model(**backbone):
    backbone = {
        "latent_dims": (3, 2), "prior_widths": (4,), "activation": "leaky_relu",
        "decoder_type": "deconv", "decoder_widths": (4, 2), **backbone,
    }  # fmt: skip
    return jebm.build({"image_shape": (6, 6, 3), "backbone": backbone})


@pytest.mark.slow
def test_a_model_with_a_deconv_decoder_samples_and_infers():
    model = deconv_model()
    params = jebm.init(jax.random.key(0), model)
    x, _ = jebm.sample(jax.random.key(1), model, params, 4, num_steps=2)
    assert x.shape == (4, 6, 6, 3)
    z = jebm.posterior_sample(jax.random.key(2), model, params, x, num_steps=2)
    assert np.all(np.isfinite(jebm.joint_logdensity(model, params, x, z)))


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"decoder_type": "resnet"}, "unknown decoder_type 'resnet'; known: "),
        ({"decoder_widths": ()}, r"decoder_widths \(\) cannot end at 6x6"),
        ({"decoder_widths": (4, 2, 2)}, r"\(4, 2, 2\) cannot end at 6x6"),
    ],
)
def test_stages_that_cannot_end_at_the_image_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        deconv_model(**backbone)


def test_silu_and_its_derivatives_are_those_of_flax(x64):
    x = jnp.linspace(-30, 30, 61)
    ours, flax = silu, nn.silu
    for _ in range(3):
        np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(flax)(x), atol=1e-12)
        ours, flax = jax.grad(ours), jax.grad(flax)
