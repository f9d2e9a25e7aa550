"""Times the prior's chain through NVAE against the official modules.

    python -m tools.speed.nvae --code=CHECKOUT [--groups=30] [--width=32] [--batch=8]
        [--steps=5]

CHECKOUT is a checkout of the official code of NVAE; it needs PyTorch. A step of both
sides is one of Langevin, with the gradient in eps of log N(eps; 0, I) - E(T(eps))
through the top-down path alone. Our steps are one compiled program, as they are when
one samples, so that what does not change from step to step is computed once. The
network is the published one for CIFAR-10 at the given width and number of groups, with
one energy per group as in the config `cifar10_nvae`, in float32 on all cores. The sides
take turns; the tool prints the median and quartiles of each. The loop over the official
modules and the energies beside them are ours.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from jebm.chains import example_keys, run_chains
from tools.arguments import path_argument
from tools.convert import nvae as convert_nvae
from tools.speed.benchmark import alternate
from tools.verify import nvae as verify_nvae

_CHANNELS, _WIDTHS, _STEP_SIZE = 64, (200, 200), 0.2


def our_chain(args: dict, batch: int, num_steps: int):
    """Makes a function that runs so many steps, compiled."""
    spec = convert_nvae.model_spec(args, None)
    spec["energy"] = {"name": "conv", "channels": _CHANNELS, "widths": _WIDTHS}
    model = jebm.build(spec)
    eps = tuple(jnp.zeros((batch, *s)) for s in model.backbone.latent_shapes)
    # Those that `official` draws; drawing our own would compile for minutes.
    state = verify_nvae.random_state(model, 0, "float32")
    energy = model.energy.init(jax.random.key(0), eps)
    params = convert_nvae.convert(model, state)._replace(energy=energy)
    keys = example_keys(jax.random.key(1), jnp.arange(batch))
    chain = jebm.Langevin(num_steps, _STEP_SIZE)

    @jax.jit
    def run(keys, params, eps):
        return run_chains(keys, model, params, chain, start=eps).position

    return lambda: jax.block_until_ready(run(keys, params, eps))


def their_chain(args: dict, batch: int, num_steps: int, code: pathlib.Path):
    """Makes the same of the official modules, in PyTorch."""
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

    def run():
        eps = [torch.zeros(batch, channels, 16, 16) for _ in range(groups)]
        for _ in range(num_steps):
            eps = step(eps)

    return run


def main(argv: list[str] | None = None) -> None:
    """Times both, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=path_argument, required=True)
    parser.add_argument("--groups", type=int, default=30)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(argv)
    args = verify_nvae.published(given.groups, given.width)
    sides = {
        "jebm": our_chain(args, given.batch, given.steps),
        "official modules": their_chain(args, given.batch, given.steps, given.code),
    }
    seconds = {
        name: np.array(values) / given.steps
        for name, values in alternate(sides, given.repeats).items()
    }
    print(f"{given.groups} groups, width {given.width}, batch {given.batch}")
    for name, values in seconds.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"  {name:18}{middle:.3f} s a step ({low:.3f} to {high:.3f})")
    ours, theirs = (np.median(values) for values in seconds.values())
    print(f"  speedup           {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
