import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jebm.convolution import (
    ConvTranspose,
    conv,
    conv_transpose,
    dense_form,
    depthwise_conv,
    depthwise_native_form,
    karatsuba_form,
    native_conv,
    native_form,
    patch_form,
    shifted_form,
)

FORMS = [conv_transpose, native_form, patch_form]
KERNELS = [(4, 2), (3, 1), (6, 2), (2, 2), (1, 1)]  # size, stride


def inputs(size, dtype, batch=3, height=5, width=2, channels=3, features=4):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, height, width, channels))
    kernel = rng.normal(size=(size, size, features, channels))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


def by_patches_of_single_pixels(x, kernel, stride):
    """The module's equation, pixel by pixel, in NumPy."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    size = kernel.shape[0]
    batch, height, width, _ = x.shape
    shape = (height - 1) * stride + size, (width - 1) * stride + size
    full = np.zeros((batch, *shape, kernel.shape[2]))
    for i in range(height):
        for j in range(width):
            patch = np.einsum("bc,uvfc->buvf", x[:, i, j], kernel)
            rows = slice(i * stride, i * stride + size)
            full[:, rows, j * stride : j * stride + size] += patch
    crop = (size - stride) // 2
    return full[:, crop : crop + height * stride, crop : crop + width * stride]


@pytest.mark.parametrize(("size", "stride"), KERNELS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_equation(form, size, stride, x64):
    x, kernel = inputs(size, jnp.float64)
    expected = by_patches_of_single_pixels(x, kernel, stride)
    np.testing.assert_allclose(form(x, kernel, stride), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride"), KERNELS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_gradients_of_lax(form, size, stride, x64):
    x, kernel = inputs(size, jnp.float64)

    def lax_form(x, kernel):
        return jax.lax.conv_transpose(
            x, kernel, (stride, stride), "SAME", transpose_kernel=True
        )

    output, expected = jax.vjp(lax_form, x, kernel)
    cotangent = jnp.cos(output)  # any that is no constant
    _, gradient = jax.vjp(lambda x, kernel: form(x, kernel, stride), x, kernel)
    for ours, theirs in zip(gradient(cotangent), expected(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [2, 4])
def test_karatsuba_form_is_the_equation_with_first_and_second_gradients(stride, x64):
    x, kernel = inputs(2 * stride, jnp.float64, batch=2, height=4, width=2)
    expected = by_patches_of_single_pixels(x, kernel, stride)
    found = karatsuba_form(x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(conv_transpose(x, kernel, stride), expected, atol=1e-12)

    def gradients(form, *inputs):
        def value(x, kernel):
            return jnp.sin(form(x, kernel)).sum()

        def slope(x, kernel):  # a second gradient, as of a penalty
            return (jax.grad(value)(x, kernel) ** 2).sum()

        return jax.grad(value, (0, 1))(*inputs) + jax.grad(slope, (0, 1))(*inputs)

    gradients = jax.jit(gradients, static_argnums=0)
    patches = gradients(lambda x, kernel: patch_form(x, kernel, stride), x, kernel)
    found = gradients(karatsuba_form, x, kernel)
    for ours, theirs in zip(found, patches, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-11)


def test_karatsuba_form_takes_nine_products_and_is_exact_to_rounding():
    x, kernel = inputs(4, jnp.float32, batch=2, height=8, width=8, channels=64)
    assert str(jax.make_jaxpr(karatsuba_form)(x, kernel)).count("dot_general") == 9
    expected = by_patches_of_single_pixels(x, kernel, 2)
    scale = np.sqrt(4 * 64)  # standard deviation of the sums
    errors = {
        name: np.abs(f(x, kernel) - expected).max() / scale
        for name, f in (
            ("karatsuba", karatsuba_form),
            ("native", functools.partial(native_form, stride=2)),
        )
    }
    assert errors["karatsuba"] < 5e-6, errors  # eps is 1.2e-7


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_even_maps_of_any_size_take_nine_products(compute_dtype):
    f = functools.partial(conv_transpose, stride=2, compute_dtype=compute_dtype)
    for side in (4, 16):
        x, kernel = inputs(4, jnp.float32, 1, side, side, channels=8)
        program = jax.jit(f).lower(x, kernel).as_text()
        assert program.count("stablehlo.dot_general") == 9


@pytest.mark.parametrize("shape", [(3, 8, 4), (4, 5, 4), (4, 4, 5)])
def test_odd_sizes_fall_back_on_patches(shape, x64):
    size, height, width = shape
    stride = 1 if size == 3 else 2
    x, kernel = inputs(size, jnp.float64, batch=1, height=height, width=width)
    program = str(
        jax.jit(lambda x: conv_transpose(x, kernel, stride)).lower(x).as_text()
    )
    assert program.count("stablehlo.dot_general") == 1
    expected = by_patches_of_single_pixels(x, kernel, stride)
    np.testing.assert_allclose(conv_transpose(x, kernel, stride), expected, atol=1e-12)


def test_a_chain_sums_the_kernel_once_ahead_of_its_loop():
    x, kernel = inputs(4, jnp.float32, batch=2, height=4, width=4, channels=8)

    @jax.jit
    def chain(x, kernel):
        def step(x, _):
            gradient = jax.grad(lambda x: (karatsuba_form(x, kernel) ** 2).sum())
            return x - gradient(x), None

        return jax.lax.scan(step, x, length=3)[0]

    options = {"xla_backend_optimization_level": 3}
    text = chain.lower(x, kernel).compile(compiler_options=options).as_text()
    loop = next(line for line in text.splitlines() if " while(" in line)
    assert loop.count("[16,8]") == 9  # for both directions, in one layout
    assert loop.count("[8,16]") == 0


@pytest.mark.parametrize(("platform", "native"), [("cpu", False), ("cuda", True)])
def test_a_cpu_runs_products_and_other_platforms_the_native_form(platform, native):
    x, kernel = inputs(4, jnp.float32)

    def gradient(x, kernel):
        return jax.grad(lambda x: conv_transpose(x, kernel, 2).sum())(x)

    for function in (lambda x, kernel: conv_transpose(x, kernel, 2), gradient):
        lowered = jax.jit(function).trace(x, kernel)
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) is native
        assert ("stablehlo.dot_general" in text) is not native


def test_the_choice_works_under_vmap_grad_scan_and_pmap():
    x, kernel = inputs(4, jnp.float32, batch=4)

    def energy(x):
        return -(conv_transpose(x[None], kernel, 2) ** 2).sum()

    def ascend(x):
        return jax.lax.scan(lambda x, _: (jax.grad(energy)(x), None), x, length=2)[0]

    expected = jnp.stack([ascend(one) for one in x])
    np.testing.assert_allclose(jax.vmap(ascend)(x), expected, rtol=1e-5)
    sharded = x.reshape(2, 2, *x.shape[1:])
    mapped = jax.pmap(jax.vmap(ascend))(sharded).reshape(x.shape)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (1, 2), (2, 1)])
def test_a_kernel_that_does_not_fit_the_stride_is_refused(size, stride):
    x, kernel = inputs(size, jnp.float32)
    with pytest.raises(ValueError, match=f"multiple of the stride {stride} .*{size}"):
        conv_transpose(x, kernel, stride)


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (3, 1)])
def test_at_initialisation_the_inner_output_has_the_variance_of_the_input(size, stride):
    x = jax.random.normal(jax.random.key(1), (8, 16, 16, 64))
    layer = ConvTranspose(32, size, stride)
    y, _ = layer.init_with_output(jax.random.key(0), x)
    inner = y[:, 2 * stride : -2 * stride, 2 * stride : -2 * stride]
    assert abs(float(inner.std()) - 1) < 0.05  # 18,432 weights or more


def test_the_layer_adds_a_bias_per_channel():
    x, _ = inputs(4, jnp.float32)
    layer = ConvTranspose(4, 4, 2)
    params = layer.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"bias": (4,), "kernel": (4, 4, 4, 3)}
    bias = jnp.arange(4.0)
    y = layer.apply({"params": params | {"bias": bias}}, x)
    expected = conv_transpose(x, params["kernel"], 2) + bias.reshape(1, 1, 1, 4)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


CONVOLUTIONS = [(1, 1), (3, 1), (5, 1), (4, 1), (3, 2), (4, 2), (1, 2), (4, 4)]
FEW_AND_MANY = [(3, 5), (8, 9), (9, 8)]  # channels in and out: patches, dense_form


@pytest.mark.parametrize("channels", FEW_AND_MANY)
@pytest.mark.parametrize(("height", "width"), [(6, 4), (7, 5)])
@pytest.mark.parametrize(("size", "stride"), CONVOLUTIONS)
def test_convolution_is_its_equation(size, stride, height, width, channels, x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, channels[0]))
    kernel = rng.normal(size=(size, size, *channels))
    pad = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (pad, size), (pad, size), (0, 0)))
    shape = -(-height // stride), -(-width // stride)
    expected = np.zeros((2, *shape, channels[1]))
    for i, j in np.ndindex(expected.shape[1:3]):
        patch = padded[
            :, i * stride : i * stride + size, j * stride : j * stride + size
        ]
        expected[:, i, j] = np.einsum("buvc,uvcf->bf", patch, kernel)
    for form in (conv, native_conv):
        found = form(jnp.asarray(x), jnp.asarray(kernel), stride)
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("channels", FEW_AND_MANY)
@pytest.mark.parametrize(("size", "stride"), CONVOLUTIONS)
def test_convolution_has_the_gradients_of_lax(size, stride, channels, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 6, 5, channels[0])))
    kernel = jnp.asarray(rng.normal(size=(size, size, *channels)))

    def gradients(form):
        def value(x, kernel):
            return jnp.sin(form(x, kernel, stride)).sum()

        def slope(x, kernel):  # a second gradient, as of a penalty
            return (jax.grad(value)(x, kernel) ** 2).sum()

        return jax.grad(value, (0, 1))(x, kernel) + jax.grad(slope, (0, 1))(x, kernel)

    found, expected = gradients(conv), gradients(native_conv)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 5, 12, 40])
def test_the_gradient_of_a_kernel_adds_up_all_images(batch, x64):
    # 14 x 14 pixels: of 12 images four at a time, of 5 one
    x = jax.random.normal(jax.random.key(0), (batch, 14, 14, 8), jnp.float64)
    cotangent = jax.random.normal(jax.random.key(1), (batch, 14, 14, 8), jnp.float64)
    kernel = jnp.ones((3, 3, 8, 8))

    def gradient(form):
        return jax.vjp(lambda kernel: form(x, kernel), kernel)[1](cotangent)[0]

    found = gradient(lambda x, kernel: dense_form(x, kernel, (1, 1)))
    expected = gradient(lambda x, kernel: native_conv(x, kernel, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_in_a_chain_all_convolutions_are_of_the_form_that_a_cpu_runs_fast(stride):
    x, kernel = inputs(4, jnp.float32, batch=4, height=4, width=4, channels=16)
    kernel = jnp.concatenate([kernel] * 4, 2).swapaxes(2, 3)  # [4, 4, 16, 16]

    @jax.jit
    def chain(x, kernel):
        def step(x, _):
            gradient = jax.grad(lambda x: (conv(x, kernel, stride) ** 2).sum())
            return x - gradient(x), None

        return jax.lax.scan(step, x, length=3)[0]

    text = chain.lower(x, kernel).compile().as_text()
    labels = re.findall(r"convolution\(.*dim_labels=([^,\s]+)", text)
    assert len(labels) == 2 and set(labels) == {"b01f_01io->b01f"}, text
    assert "rhs_reversal" not in text and "lhs_dilate" not in text


DEPTHWISE = [depthwise_conv, depthwise_native_form, shifted_form]


@pytest.mark.parametrize("form", DEPTHWISE)
def test_depthwise_form_is_a_convolution_of_each_channel(form, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 4, 5, 3)))
    kernel = jnp.asarray(rng.normal(size=(5, 5, 1, 3)))
    for c in range(3):
        expected = conv(x[..., c : c + 1], kernel[..., c : c + 1])
        found = form(x, kernel)[..., c : c + 1]
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", DEPTHWISE)
def test_depthwise_form_has_first_and_second_gradients(form, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 2)))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 2)))
    check_grads(lambda *a: jnp.sin(form(*a)), (x, kernel), order=2, modes=["rev"])


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmapped_depthwise_form_is_the_form_of_each(axes, x64):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 2, 3, 4, 2)))
    kernel = jnp.asarray(rng.normal(size=(4, 3, 3, 1, 2)))
    x, kernel = (
        a if axis == 0 else a[0] for a, axis in zip((x, kernel), axes, strict=True)
    )

    def gradient(x, kernel):
        return jax.grad(lambda *a: jnp.sin(shifted_form(*a)).sum(), (0, 1))(x, kernel)

    found = jax.vmap(gradient, axes)(x, kernel)
    for i in range(4):
        one = [
            a if axis is None else a[i]
            for a, axis in zip((x, kernel), axes, strict=True)
        ]
        for many, single in zip(found, gradient(*one), strict=True):
            np.testing.assert_allclose(many[i], single, atol=1e-12)


def test_images_of_vmapped_chains_are_in_one_loop():
    form = jax.vmap(jax.vmap(shifted_form, (0, None)), (0, None))
    x, kernel = jnp.ones((3, 4, 1, 6, 6, 2)), jnp.ones((3, 3, 1, 2))
    assert "length=12" in str(jax.make_jaxpr(form)(x, kernel))
    assert form(x, kernel).shape == x.shape
