"""Holds our NVAE against the official modules, number by number.

    python -m tools.verify_nvae --code=CHECKOUT [--only=WORD] [--seed=0]

CHECKOUT is a checkout of the official code of NVAE or of VAEBM; it needs PyTorch. Its
networks are made at reduced width with random weights and random batch statistics,
their state dict goes through `tools.convert_nvae`, and both sides are given the same
images and the same noise, on the CPU. The table tells, of every quantity, the largest
difference over its root mean square, in float64 and in float32. The tool fails if one
in float64 is above 1e-9, or in float32 above 1e-3. Of mu and sigma of q the noise makes
z, and sigma makes log q. --only takes the settings whose name holds WORD.
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

import jebm
from jebm.hierarchy import infer, log_prior, top_down, transport
from tools import convert_nvae

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


def import_official(code: pathlib.Path):
    """The module with the official `AutoEncoder`, made to run on a CPU."""
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
    """An official network with random weights and batch statistics."""
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
        if state[name].is_floating_point():
            drawn = draw(name, tuple(state[name].shape), rng)
            state[name] = torch.from_numpy(drawn).to(state[name].dtype)
    network.load_state_dict(state)
    for layer in network.modules():  # masks of flows are no part of the state
        if isinstance(getattr(layer, "mask", None), torch.Tensor):
            layer.mask = layer.mask.to(torch.get_default_dtype())
    return network


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random tensor of a state dict, of a size that keeps activations of order 1."""
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


def channels_first(array):
    """[B, H, W, C] to [B, C, H, W]."""
    return np.moveaxis(np.asarray(array), -1, 1)


def compare(module, args, seed, dtype):
    """(quantity, largest difference / rms) of one setting, ours against theirs."""
    import torch

    rng = np.random.default_rng(seed)
    network = official(module, args, rng, dtype)
    model = jebm.build(convert_nvae.model_spec(args, None))
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    params = convert_nvae.convert(model, state).backbone
    shapes, batch = model.backbone.latent_shapes, 2
    x = rng.integers(0, 2**model.backbone.bits, (batch, *model.image_shape))
    x = (x / (2**model.backbone.bits - 1)).astype(dtype)
    keys = jax.random.split(jax.random.key(seed), batch)

    # Ours, and the noise that `infer` has drawn from these keys.
    def encode_decode(backbone):
        latents, log_q, priors, state = infer(backbone, jnp.asarray(x), keys)
        log_p = [p.log_prob(z) for z, p in zip(latents, priors, strict=True)]
        return latents, log_q, priors, log_p, backbone.decode(state)

    latents, log_q, priors, log_p, output = _run(encode_decode, model, params)
    noise = []
    for i, shape in enumerate(shapes):
        layer_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
        eps = jax.vmap(lambda k, s=shape: jax.random.normal(k, s, dtype))(layer_keys)
        noise.append(channels_first(eps))

    pad = ((0, 0), (0, 0), *[(model.backbone.padding,) * 2] * 2)
    recorder = Recorder(module, noise[::-1])
    with torch.no_grad():
        theirs = network(torch.from_numpy(np.pad(channels_first(x), pad)))
    recorder.restore()
    pairs = {}

    def pair(name, mine, other):
        pairs.setdefault(name, []).append((np.asarray(mine), np.asarray(other)))

    # Groups from the top: log q of its normal, then log p of its prior.
    asked = recorder.log_p
    for g, i in enumerate(reversed(range(len(shapes)))):
        (_, _, theirs_q), (p, z, theirs_p) = asked[2 * g], asked[2 * g + 1]
        pair("mu of p", channels_first(priors[i].loc), p.mu)
        pair("log sigma of p", channels_first(jnp.log(priors[i].scale)), p.sigma.log())
        pair("z ~ q", channels_first(latents[i]), z)
        pair("log q", log_q[i], theirs_q)
        pair("log p", log_p[i], theirs_p)
    pair("decoder, encoded", *_outputs(model, output, theirs[0]))

    # From given noise.
    eps = [rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes]

    def generate(backbone):
        latents, priors, state = top_down(backbone, batch, transport(tuple(eps)))
        return latents, log_prior(latents, priors), backbone.decode(state)

    latents, log_p, output = _run(generate, model, params)
    recorder = Recorder(module, [channels_first(e) for e in eps[::-1]])
    with torch.no_grad():
        theirs = network.sample(batch, 1.0)
    recorder.restore()
    drawn = [normal.drawn for normal in recorder.normals]
    for i, z in enumerate(drawn[::-1]):
        pair("z ~ p", channels_first(latents[i]), z)
    total = sum(n.log_p(n.drawn).sum((1, 2, 3)) for n in recorder.normals)
    pair("log p(z) of it", log_p, total)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs  # VAEBM's tells more
    pair("decoder, sampled", *_outputs(model, output, theirs))
    return {
        name: max(
            # A prior's mean at the top is 0 on both sides.
            np.abs(mine - other).max() / (np.sqrt(np.mean(other**2)) or 1.0)
            for mine, other in found
        )
        for name, found in pairs.items()
    }


def _run(function, model, params):
    """`function` of the bound backbone; it runs once, so it is compiled in haste."""
    quick = {"xla_backend_optimization_level": 0}
    apply = nn.apply(function, model.backbone)
    return jax.jit(apply, compiler_options=quick)(params)


def _outputs(model, ours, theirs):
    """Both decoder outputs in our order, theirs cropped as their loss does."""
    theirs = np.moveaxis(theirs.numpy(), 1, -1)
    pad = model.backbone.padding
    theirs = theirs[:, pad : theirs.shape[1] - pad, pad : theirs.shape[2] - pad]
    return ours, theirs[..., convert_nvae.order(model.likelihood)]


def main(argv: list[str] | None = None) -> None:
    """Prints the table; exits with an error where a number is too large."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    module = import_official(given.code)
    failed = False
    chosen = {name: args for name, args in SETTINGS.items() if given.only in name}
    for name, changes in chosen.items():
        args = _ARGS | changes
        double, single = (
            compare(module, args, given.seed, dtype) for dtype in ("float64", "float32")
        )
        print(f"\n{name}\n  {'':20}float64   float32")
        for quantity in double:
            bad = double[quantity] > 1e-9 or single[quantity] > 1e-3
            failed |= bad
            told = f"{double[quantity]:.1e}   {single[quantity]:.1e}"
            print(f"  {quantity:20}{told}{'   too large' if bad else ''}", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
