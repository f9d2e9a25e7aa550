"""Compares our NVAE with the official modules, number by number.

    python -m tools.verify.nvae --code=CHECKOUT [--only=WORD] [--seed=0]

CHECKOUT is a checkout of the official code of NVAE or of VAEBM; it needs PyTorch. The
tool makes official networks of reduced width with random weights and random batch
statistics, converts their state dict by `tools.convert.nvae`, and gives both sides the
same images and the same noise, on the CPU. For every quantity the table has the largest
difference over its root mean square, in float64 and in float32. The tool fails if one
in float64 is above 1e-9, or in float32 above 1e-3. z follows from mu and sigma of q and
the noise, and log q from sigma. --only takes the settings whose name contains WORD.

    python -m tools.verify.nvae --code=CHECKOUT
        --fixture=tests/tools/convert/nvae_fixture.npz

writes the official numbers of a small network, with which the tests compare ours.
"""

import argparse
import contextlib
import pathlib
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import jebm
from jebm.hierarchy import infer, log_prior, top_down, transport
from tools.arguments import path_argument
from tools.convert import nvae as convert_nvae

_ARGS = {
    "arch_instance": "res_mbconv", "use_se": True, "res_dist": True, "num_x_bits": 8,
    "num_latent_per_group": 4, "num_channels_enc": 8, "num_channels_dec": 8,
    "num_preprocess_blocks": 1, "num_postprocess_blocks": 1, "num_preprocess_cells": 2,
    "num_postprocess_cells": 2, "num_cell_per_cond_enc": 2, "num_cell_per_cond_dec": 2,
    "num_mixture_dec": 10, "ada_groups": False, "min_groups_per_scale": 1,
}  # fmt: skip
# The published settings, but for the width.
SETTINGS = {
    "CIFAR-10, 30 groups, 1 flow": {
        "dataset": "cifar10", "num_latent_scales": 1, "num_groups_per_scale": 30,
        "num_nf": 1,
    },
    "CelebA-64, 3 adaptive scales, 1 flow": {
        "dataset": "celeba_64", "num_latent_scales": 3, "num_groups_per_scale": 20,
        "ada_groups": True, "num_nf": 1,
    },
    "CelebA-HQ-256, 5 adaptive scales, 2 flows, 5 bits": {
        "dataset": "celeba_256", "num_latent_scales": 5, "num_groups_per_scale": 16,
        "ada_groups": True, "min_groups_per_scale": 4, "num_nf": 2, "num_x_bits": 5,
        "num_channels_enc": 4, "num_channels_dec": 4,
    },
    "LSUN-church-64 of VAEBM, Gaussian decoder": {
        "dataset": "lsun_church_64", "num_latent_scales": 3, "num_groups_per_scale": 5,
        "num_nf": 1, "num_mixture_dec": 1,
    },
    "MNIST, 2 adaptive scales, no flow": {
        "dataset": "mnist", "num_latent_scales": 2, "num_groups_per_scale": 10,
        "ada_groups": True, "num_nf": 0, "num_preprocess_blocks": 2,
        "num_postprocess_blocks": 2, "num_preprocess_cells": 3,
        "num_postprocess_cells": 3, "num_channels_enc": 8, "num_channels_dec": 4,
    },
    "no excitation, posterior not residual": {
        "dataset": "cifar10", "num_latent_scales": 2, "num_groups_per_scale": 2,
        "num_nf": 1, "use_se": False, "res_dist": False,
    },
}  # fmt: skip


FIXTURE = _ARGS | {
    "dataset": "cifar10", "num_latent_scales": 2, "num_groups_per_scale": 2,
    "ada_groups": True, "num_nf": 1, "num_latent_per_group": 2, "num_channels_enc": 2,
    "num_channels_dec": 4, "num_preprocess_cells": 1, "num_postprocess_cells": 1,
    "num_cell_per_cond_enc": 1, "num_cell_per_cond_dec": 1, "num_mixture_dec": 2,
    "num_x_bits": 5,
}  # fmt: skip


def published(groups: int, width: int) -> dict:
    """Returns args of the published CIFAR-10 network, with other groups and width."""
    return _ARGS | SETTINGS["CIFAR-10, 30 groups, 1 flow"] | {
        "num_groups_per_scale": groups, "num_latent_per_group": 20,
        "num_channels_enc": width, "num_channels_dec": width,
    }  # fmt: skip


def import_official(code: pathlib.Path):
    """Imports the module with the official `AutoEncoder`, made to run on a CPU."""
    import torch

    # Kept from what needs a GPU: copies to it, and batch norms that ask for one.
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self
    sys.modules["tensorboardX"] = types.SimpleNamespace(SummaryWriter=None)
    sys.path.insert(0, str(code))
    for name in ("model", "nvae_model"):
        with contextlib.suppress(ModuleNotFoundError):
            module = __import__(name)
            break
    else:
        raise SystemExit(f"error: no NVAE or VAEBM code in {code}")

    from thirdparty.inplaced_sync_batchnorm import SyncBatchNormSwish

    def norm(self, x):
        return torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0,
            self.eps,
        )  # fmt: skip

    SyncBatchNormSwish.forward = lambda self, x: torch.nn.functional.silu(norm(self, x))
    torch.nn.SyncBatchNorm.forward = norm
    return module


def official(module, args: dict, rng: np.random.Generator, dtype: str):
    """Makes an official network with random weights and batch statistics."""
    import torch
    import utils

    torch.set_default_dtype(getattr(torch, dtype))
    namespace = argparse.Namespace(**args)
    with contextlib.redirect_stdout(None):
        network = module.AutoEncoder(
            namespace, None, utils.get_arch_cells(args["arch_instance"])
        )
    network.eval()
    state = network.state_dict()
    for name in sorted(state):
        if name.endswith("weight_normalized"):  # another name of the weight before it
            state[name] = state[name.removesuffix("_normalized")]
        elif state[name].is_floating_point():
            drawn = draw(name, tuple(state[name].shape), rng)
            state[name] = torch.from_numpy(drawn).to(state[name].dtype)
    network.load_state_dict(state)
    for layer in network.modules():  # masks of flows are no part of the state
        if isinstance(getattr(layer, "mask", None), torch.Tensor):
            layer.mask = layer.mask.to(torch.get_default_dtype())
    return network


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws a tensor of a state dict, of a size that keeps activations of order 1."""
    if name.endswith("running_var"):
        return rng.uniform(0.5, 2.0, shape)
    if name.endswith("log_weight_norm"):
        return 0.3 * rng.standard_normal(shape) - 0.5
    if len(shape) == 1 and name.endswith("weight"):  # of a norm
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) > 1:
        return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return 0.2 * rng.standard_normal(shape)


class Recorder:
    """Feeds noise to the official normals, and keeps what they make of it."""

    def __init__(self, module, noise):
        self.noise, self.normals, self.log_p = list(noise), [], []
        recorder, base = self, module.Normal

        class Normal(base):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                recorder.normals.append(self)

            def sample(self):
                import torch

                eps = torch.from_numpy(recorder.noise.pop(0)).to(self.mu.dtype)
                self.drawn = eps * self.sigma + self.mu
                return self.drawn, eps

            def log_p(self, samples):
                value = super().log_p(samples)
                recorder.log_p.append((self, samples, value.sum((1, 2, 3))))
                return value

        self.restore = lambda: setattr(module, "Normal", base)
        module.Normal = Normal


def random_state(model: jebm.Model, seed: int, dtype: str) -> dict[str, np.ndarray]:
    """Draws the state dict that `official` draws from that seed, without its code."""
    template = jax.eval_shape(jebm.init, jax.random.key(0), model).backbone
    leaves = traverse_util.flatten_dict(template)
    shapes = {
        name: convert_nvae.published_shape(path, leaves[path].shape)
        for path, name in convert_nvae.names(model.backbone, leaves)
    }
    rng = np.random.default_rng(seed)
    return {
        name: draw(name, shapes[name], rng).astype(dtype) for name in sorted(shapes)
    }


def given(model, seed, dtype):
    """Draws images, noise to infer from, and noise to sample from."""
    rng, batch = np.random.default_rng([seed, 1]), 2
    most = 2**model.backbone.bits - 1
    x = rng.integers(0, most + 1, (batch, *model.image_shape)) / most
    eps = tuple(
        rng.standard_normal((batch, *shape)).astype(dtype)
        for shape in model.backbone.latent_shapes
    )
    keys, noise = jax.random.split(jax.random.key(seed), batch), []
    for i, shape in enumerate(model.backbone.latent_shapes):
        layer_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
        normal = jax.vmap(lambda k, s=shape: jax.random.normal(k, s, dtype))
        noise.append(normal(layer_keys))
    return x.astype(dtype), tuple(noise), eps


def ours(model, params, x, noise, eps) -> dict[str, list[np.ndarray]]:
    """Computes the table's quantities, per group from the top; decoder output whole."""

    def encode_decode(backbone):
        latents, log_q, priors, state = infer(backbone, jnp.asarray(x), noise)
        log_p = [p.log_prob(z) for z, p in zip(latents, priors, strict=True)]
        return latents, log_q, priors, log_p, backbone.decode(state)

    def generate(backbone):
        latents, priors, state = top_down(backbone, len(x), transport(eps))
        return latents, log_prior(latents, priors), backbone.decode(state)

    latents, log_q, priors, log_p, output = _run(encode_decode, model, params)
    sampled, log_p_sampled, output_sampled = _run(generate, model, params)
    found = {
        "mu of p": [p.loc for p in priors[::-1]],
        "log sigma of p": [jnp.log(p.scale) for p in priors[::-1]],
        "z ~ q": latents[::-1],
        "log q": log_q[::-1],
        "log p": log_p[::-1],
        "decoder, encoded": [output],
        "z ~ p": sampled[::-1],
        "log p(z) of it": [log_p_sampled],
        "decoder, sampled": [output_sampled],
    }
    return {name: [np.asarray(a) for a in arrays] for name, arrays in found.items()}


def theirs(module, network, model, x, noise, eps) -> dict[str, list[np.ndarray]]:
    """Computes the same quantities of the official network, channels last."""
    import torch

    pad = ((0, 0), (0, 0), *[(model.backbone.padding,) * 2] * 2)

    recorder = Recorder(module, [_first(e) for e in noise[::-1]])
    with torch.no_grad():
        output = network(torch.from_numpy(np.pad(_first(x), pad)))[0]
    recorder.restore()
    # Of each group from the top it asked for log q of a normal, then log p of another.
    of_q, of_p = recorder.log_p[::2], recorder.log_p[1::2]

    recorder = Recorder(module, [_first(e) for e in eps[::-1]])
    with torch.no_grad():
        sampled = network.sample(len(x), 1.0)
    recorder.restore()
    sampled = (
        sampled[0] if isinstance(sampled, tuple) else sampled
    )  # VAEBM's tells more
    normals = recorder.normals
    found = {
        "mu of p": [p.mu for p, _, _ in of_p],
        "log sigma of p": [p.sigma.log() for p, _, _ in of_p],
        "z ~ q": [z for _, z, _ in of_p],
        "log q": [value for _, _, value in of_q],
        "log p": [value for _, _, value in of_p],
        "decoder, encoded": [output],
        "z ~ p": [n.drawn for n in normals],
        "log p(z) of it": [sum(n.log_p(n.drawn).sum((1, 2, 3)) for n in normals)],
        "decoder, sampled": [sampled],
    }
    found = {k: [np.asarray(_last(a)) for a in arrays] for k, arrays in found.items()}
    for name in ("decoder, encoded", "decoder, sampled"):
        pad = model.backbone.padding
        (output,) = found[name]
        output = output[:, pad : output.shape[1] - pad, pad : output.shape[2] - pad]
        found[name] = [output[..., convert_nvae.order(model.likelihood)]]
    return found


def _first(array):
    """Maps [B, H, W, C] to [B, C, H, W]."""
    return np.moveaxis(np.asarray(array), -1, 1)


def _last(array):
    return np.moveaxis(array.numpy(), 1, -1) if array.ndim == 4 else array.numpy()


def _run(function, model, params):
    """Runs `function` of the bound backbone once, so it is compiled in haste."""
    quick = {"xla_backend_optimization_level": 0}
    apply = nn.apply(function, model.backbone)
    return jax.jit(apply, compiler_options=quick)(params.backbone)


def relative(mine: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Computes the largest difference over the root mean square, over groups."""
    return max(
        # A prior's mean at the top is 0 on both sides.
        np.abs(a - b).max() / (np.sqrt(np.mean(b**2)) or 1.0)
        for a, b in zip(mine, other, strict=True)
    )


def compare(module, args, seed, dtype):
    """Computes both sides of one setting."""
    network = official(module, args, np.random.default_rng(seed), dtype)
    model = jebm.build(convert_nvae.model_spec(args, None))
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    params = convert_nvae.convert(model, state)
    inputs = given(model, seed, dtype)
    return ours(model, params, *inputs), theirs(module, network, model, *inputs)


def thinned(found: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns what the tests' fixture keeps: each 8th row and column of the output."""
    return {
        f"{name}/{g}": array[:, ::8, ::8] if name.startswith("decoder") else array
        for name, arrays in found.items()
        for g, array in enumerate(arrays)
    }


def main(argv: list[str] | None = None) -> None:
    """Prints the table; exits with an error where a number is too large."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=path_argument, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixture", type=path_argument)
    given_args = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    module = import_official(given_args.code)
    if given_args.fixture:
        _, other = compare(module, FIXTURE, 0, "float64")
        np.savez_compressed(given_args.fixture, **thinned(other))
        sys.exit(f"wrote {given_args.fixture}")
    failed = False
    settings = {k: v for k, v in SETTINGS.items() if given_args.only in k}
    for name, changes in settings.items():
        print(f"\n{name}\n  {'':20}float64   float32")
        args, seed = _ARGS | changes, given_args.seed
        double, single = (
            {quantity: relative(mine[quantity], other[quantity]) for quantity in other}
            for mine, other in (
                compare(module, args, seed, dtype) for dtype in ("float64", "float32")
            )
        )
        for quantity in double:
            bad = double[quantity] > 1e-9 or single[quantity] > 1e-3
            failed |= bad
            told = f"{double[quantity]:.1e}   {single[quantity]:.1e}"
            print(f"  {quantity:20}{told}{'   too large' if bad else ''}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
