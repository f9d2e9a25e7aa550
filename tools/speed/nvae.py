"""Times one step of the prior's chain through NVAE against the official modules.

    python -m tools.speed.nvae --code=CHECKOUT [--groups=30] [--width=32] [--batch=8]

CHECKOUT is a checkout of the official code of NVAE; it needs PyTorch. Both sides take
the gradient in eps of log N(eps; 0, I) - E(T(eps)) through the top-down path alone. The
network is the published one for CIFAR-10 at the given width and number of groups, with
one energy per group as in the config `cifar10_nvae`, in float32 on all cores. The sides
take turns; the tool prints the median and quartiles of each. The loop over the official
modules and the energies beside them are ours.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from jebm import langevin
from jebm.densities import logdensity
from tools.arguments import path_argument
from tools.convert import nvae as convert_nvae
from tools.verify import nvae as verify_nvae

_CHANNELS, _WIDTHS, _STEP_SIZE = 64, (200, 200), 0.2


def our_step(args: dict, batch: int):
    """Makes a jitted chain step, and the eps to start from."""
    spec = convert_nvae.model_spec(args, None)
    spec["energy"] = {"name": "conv", "channels": _CHANNELS, "widths": _WIDTHS}
    model = jebm.build(spec)
    eps = tuple(jnp.zeros((batch, *s)) for s in model.backbone.latent_shapes)
    # Those that `official` draws; drawing our own would compile for minutes.
    state = verify_nvae.random_state(model, 0, "float32")
    energy = model.energy.init(jax.random.key(0), eps)
    params = convert_nvae.convert(model, state)._replace(energy=energy)

    @jax.jit
    def step(key, params, eps):
        def total(eps):  # examples are independent
            return logdensity(model, params, eps, space="eps").sum()

        state = langevin.LangevinState(eps)
        return langevin.LANGEVIN.step(key, state, total, _STEP_SIZE)[0].position

    keys = iter(jax.random.split(jax.random.key(1), 10_000))
    return lambda eps: jax.block_until_ready(step(next(keys), params, eps)), eps


def their_step(args: dict, batch: int, code: pathlib.Path):
    """Makes the same step from the official modules, in PyTorch."""
    import torch
    from torch import nn

    module = verify_nvae.import_official(code)
    network = verify_nvae.official(module, args, np.random.default_rng(0), "float32")
    network.requires_grad_(False)
    groups, channels = args["num_groups_per_scale"], args["num_latent_per_group"]

    def energy():
        return nn.Sequential(
            nn.Conv2d(channels, _CHANNELS, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(_CHANNELS, _CHANNELS, 4, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(16 * _CHANNELS, _WIDTHS[0]), nn.SiLU(),
            nn.Linear(*_WIDTHS), nn.SiLU(), nn.Linear(_WIDTHS[1], 1, bias=False),
        ).requires_grad_(False)  # fmt: skip

    energies = [energy() for _ in range(groups)]

    def value(eps):
        total, group = -0.5 * sum((e**2).sum() for e in eps), 0
        state = network.prior_ftr0.unsqueeze(0).expand(batch, -1, -1, -1)
        for cell in network.dec_tower:
            if cell.cell_type != "combiner_dec":
                state = cell(state)
                continue
            z = eps[group]
            if group:
                mu, log_sigma = network.dec_sampler[group - 1](state).chunk(2, dim=1)
                prior = module.Normal(mu, log_sigma, 1.0)
                z = prior.mu + prior.sigma * z
            total = total + energies[group](z).sum()
            state = cell(state, z)
            group += 1
        return total

    def step(eps):
        eps = [e.requires_grad_() for e in eps]
        grads = torch.autograd.grad(value(eps), eps)
        with torch.no_grad():
            return [
                e + 0.5 * _STEP_SIZE**2 * g + _STEP_SIZE * torch.randn_like(e)
                for e, g in zip(eps, grads, strict=True)
            ]

    return step, [torch.zeros(batch, channels, 16, 16) for _ in range(groups)]


def main(argv: list[str] | None = None) -> None:
    """Times both, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=path_argument, required=True)
    parser.add_argument("--groups", type=int, default=30)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args(argv)
    args = verify_nvae.published(given.groups, given.width)
    sides = {
        "jebm": our_step(args, given.batch),
        "official modules": their_step(args, given.batch, given.code),
    }
    seconds = {name: [] for name in sides}
    for repeat in range(given.repeats + 1):
        for name, (step, eps) in sides.items():
            started = time.perf_counter()
            sides[name] = step, step(eps)
            if repeat:  # the first compiles
                seconds[name].append(time.perf_counter() - started)
    print(f"{given.groups} groups, width {given.width}, batch {given.batch}")
    for name, values in seconds.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"  {name:18}{middle:.3f} s a step ({low:.3f} to {high:.3f})")
    ours, theirs = (np.median(values) for values in seconds.values())
    print(f"  speedup           {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
