"""Compares our Inception-v3 with pytorch-fid's and torch-fidelity's, number by number.

    python -m tools.verify.inception [--reduction=1] [--num_images=2] [--seed=0]

It needs PyTorch, torchvision, pytorch-fid and torch-fidelity. Their networks get the
same random weights and batch statistics, which go through `tools.convert.inception`,
and the same images of several sizes, on the CPU; torch-fidelity, which resizes as
TensorFlow did, gets images of the network's own size. For every quantity the table has
the largest difference over its root mean square, in float64 and in float32.
The tool fails if one in float64 is above 1e-6, or in float32 above 1e-3.
(torch-fidelity rounds what it returns to float32.) --reduction divides all channels.
The tool first prints the metrics of the same features, which must agree within 1e-6.

    python -m tools.verify.inception --fixture=tests/tools/convert/inception_fixture.npz

writes pytorch-fid's numbers of a small network, with which the tests compare ours.
"""

import argparse
import contextlib
import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jebm import metrics
from jebm.metrics import inception
from tools.arguments import path_argument
from tools.convert import inception as convert_inception

FIXTURE_REDUCTION = 16
SIDES = (32, 64, 299, 310)  # of images; the last one shrinks


def published_shapes(reduction: int) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the network's state dict, in order of names."""
    template = inception.variable_shapes(inception.InceptionV3(reduction))
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(template, sep="/").items():
        shape = leaf.shape
        if path.endswith("kernel"):  # [out, in, (height, width)]
            shape = (*shape[::-1][:2], *shape[:-2])
        shapes[convert_inception.tensor_name(path)] = shape
    return dict(sorted(shapes.items()))


def random_state(reduction: int, seed: int, dtype: str) -> dict[str, np.ndarray]:
    """Draws random tensors of a size that keeps activations of order 1."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in published_shapes(reduction).items():
        if name.endswith("running_var"):
            drawn = rng.uniform(0.5, 2.0, shape)
        elif name.endswith("bn.weight"):
            drawn = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            drawn = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            drawn = 0.2 * rng.standard_normal(shape)
        state[name] = drawn.astype(dtype)
    return state


def images_of(side: int, num: int, seed: int) -> np.ndarray:
    """Draws random 8-bit images, uint8 [num, side, side, 3]."""
    rng = np.random.default_rng([seed, side])
    return rng.integers(0, 256, (num, side, side, 3)).astype(np.uint8)


def ours(state, images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Computes activations of images uint8, as pytorch-fid prepares them."""
    network, variables = convert_inception.convert(state)
    x = inception.prepare(jnp.asarray(images / 255, dtype), "bilinear")
    found = _apply(network, variables, x)
    return {name: np.asarray(array) for name, array in found._asdict().items()}


def ours_at_size(state, images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Computes activations of images uint8, 299 x 299, scaled as by torch-fidelity."""
    network, variables = convert_inception.convert(state)
    x = inception.prepare(jnp.asarray(images / 255, dtype), "bicubic")
    found = _apply(network, variables, x)
    bias = state["fc.bias"][None]
    return {
        "pool": np.asarray(found.pool),
        "logits": np.asarray(found.logits),
        "logits without bias": np.asarray(found.logits) - bias,
    }


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, variables, x):
    return network.apply(variables, x)


def narrowed(network, reduction: int):
    """Replaces all layers by ones with fewer channels."""
    import torch

    if reduction == 1:
        return network
    for module in network.modules():
        for name, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.Conv2d):
                inputs = layer.in_channels
                inputs = inputs if inputs == 3 else inputs // reduction
                fewer = torch.nn.Conv2d(
                    inputs, layer.out_channels // reduction, layer.kernel_size,
                    layer.stride, layer.padding, bias=False,
                )  # fmt: skip
            elif isinstance(layer, torch.nn.BatchNorm2d):
                fewer = torch.nn.BatchNorm2d(
                    layer.num_features // reduction, eps=layer.eps
                )
            elif isinstance(layer, torch.nn.Linear):
                fewer = torch.nn.Linear(
                    layer.in_features // reduction, layer.out_features // reduction
                )
            else:
                continue
            setattr(module, name, fewer)
    return network


def with_state(network, state, dtype: str):
    """Returns the network with the tensors of `state` and no others."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    network = network.to(getattr(torch, dtype))
    missing, unknown = network.load_state_dict(tensors, strict=False)
    left = [n for n in missing if not n.endswith("num_batches_tracked")]
    if left or unknown:
        sys.exit(f"error: the official network has other tensors: {left} {unknown}")
    return network.eval()


@contextlib.contextmanager
def _without_weights(module, *loaders: str):
    """Lets the official modules be made with the weights that PyTorch draws."""
    import torch

    with contextlib.ExitStack() as stack:
        for name in loaders:
            nothing = mock.patch.object(module, name, lambda *a, **k: {})
            stack.enter_context(nothing)
        ignore = mock.patch.object(
            torch.nn.Module, "load_state_dict", lambda *a, **k: None
        )
        stack.enter_context(ignore)
        yield


def by_pytorch_fid(state, images, dtype: str, reduction: int) -> dict[str, np.ndarray]:
    """Computes activations of images uint8 by pytorch-fid."""
    import torch
    from pytorch_fid import inception as official

    with _without_weights(official, "load_state_dict_from_url"):
        trunk = official.fid_inception_v3()
    trunk = with_state(narrowed(trunk, reduction), state, dtype)
    with mock.patch.object(official, "fid_inception_v3", lambda: trunk):
        network = official.InceptionV3()
    x = torch.from_numpy(np.moveaxis(images / 255, -1, 1).astype(dtype))
    with torch.no_grad():
        pool = network.eval()(x)[0][:, :, 0, 0]
        return {"pool": pool.numpy(), "logits": trunk.fc(pool).numpy()}


def by_torch_fidelity(
    state, images, dtype: str, reduction: int
) -> dict[str, np.ndarray]:
    """Computes activations of images uint8 of 299 x 299 by torch-fidelity."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as official

    names = ["2048", "logits_unbiased", "logits"]
    with _without_weights(torch, "load"):
        network = official.FeatureExtractorInceptionV3("", names, __file__, dtype)
    network = with_state(narrowed(network, reduction), state, dtype)
    # Release 0.4.0 reads "float64" as float32.
    network.feature_extractor_internal_dtype = getattr(torch, dtype)
    x = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
    with torch.no_grad():
        pool, unbiased, logits = (a.numpy() for a in network(x))
    return {"pool": pool, "logits": logits, "logits without bias": unbiased}


def relative(mine: np.ndarray, other: np.ndarray) -> float:
    """Computes the largest difference over the root mean square."""
    return float(np.abs(mine - other).max() / np.sqrt(np.mean(other**2)))


def compare(reduction: int, num: int, seed: int, dtype: str):
    """Yields a name, our numbers and the official ones."""
    state = random_state(reduction, seed, dtype)
    for side in SIDES:
        images = images_of(side, num, seed)
        mine = ours(state, images, dtype)
        other = by_pytorch_fid(state, images, dtype, reduction)
        for name in other:
            yield f"pytorch-fid, {side}, {name}", mine[name], other[name]
    images = images_of(inception.SIZE, num, seed)
    mine = ours_at_size(state, images, dtype)
    other = by_torch_fidelity(state, images, dtype, reduction)
    for name in other:
        yield f"torch-fidelity, {name}", mine[name], other[name]


def compare_metrics(seed: int):
    """Yields a name, our number and the official one, of the same features."""
    import torch
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity import metric_isc, metric_kid, metric_prc

    rng = np.random.default_rng(seed)
    for num, dim in ((1000, 64), (65, 64), (50, 128)):
        mixing = rng.normal(size=(dim, dim)) / np.sqrt(dim)
        x, y = np.abs(rng.normal(size=(2, num, dim)) @ mixing)
        statistics = *metrics.feature_statistics(x), *metrics.feature_statistics(2 * y)
        yield (
            f"Frechet distance, rank {min(dim, num - 1)} of {dim}",
            metrics.frechet_distance(*statistics),
            calculate_frechet_distance(*statistics),
        )
    x, y = (
        torch.from_numpy(a) for a in rng.normal([[[0.0]], [[0.3]]], size=(2, 900, 64))
    )
    found = metric_kid.kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=900, verbose=False
    )
    mine = metrics.kernel_distance(x.numpy(), y.numpy())
    yield "KID", mine.value, found["kernel_inception_distance_mean"]
    x, y = x[:, :8], y[:, :8]
    # Release 0.4.0 takes the generated features first.
    found = metric_prc.prc_features_to_metric(y, x, verbose=False)
    mine = metrics.precision_recall(x.numpy(), y.numpy())
    yield "precision", mine.precision, found["precision"]
    yield "recall", mine.recall, found["recall"]
    logits = 3 * torch.from_numpy(rng.normal(size=(905, 100)))
    found = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    mine = metrics.inception_score(logits.numpy(), num_splits=10)
    yield "Inception score", mine.mean, found["inception_score_mean"]
    yield "its deviation", mine.deviation, found["inception_score_std"]


def main(argv: list[str] | None = None) -> None:
    """Prints the table; exits with an error where a number is too large."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduction", type=int, default=1)
    parser.add_argument("--num_images", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixture", type=path_argument)
    given = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    if given.fixture:
        state = random_state(FIXTURE_REDUCTION, 0, "float64")
        arrays = {
            f"{name}/{side}": array
            for side in SIDES
            for name, array in by_pytorch_fid(
                state, images_of(side, 2, 0), "float64", FIXTURE_REDUCTION
            ).items()
        }
        np.savez_compressed(given.fixture, **arrays)
        print(f"wrote {given.fixture}")
        return
    failed = False
    for name, mine, other in compare_metrics(given.seed):
        error = abs(mine - other) / abs(other)
        failed |= not error < 1e-6
        print(f"{name:40}{mine:<16.8g}{other:<16.8g}{error:.1e}", flush=True)
    settings = given.reduction, given.num_images, given.seed
    single = {n: relative(a, b) for n, a, b in compare(*settings, "float32")}
    print(f"\n{'':40}float64   float32")
    for name, mine, other in compare(*settings, "float64"):
        double = relative(mine, other)
        bad = not (double < 1e-6 and single[name] < 1e-3)
        failed |= bad
        told = f"{double:.1e}   {single[name]:.1e}{'   too large' if bad else ''}"
        print(f"{name:40}{told}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
