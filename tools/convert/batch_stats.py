"""Recomputes the batch statistics of a generator, over images that it draws itself.

    python -m tools.convert.batch_stats RUN OUT [--temperature=1.0]
        [--num_batches=500] [--batch_size=16] [--seed=0]

Training averages the statistics over posterior samples. A generator with batch
normalisation sees other maps when you sample from its prior, above all at a temperature
below 1. RUN is a run, or what `tools.convert.nvae` made. The tool draws batches from
the Gaussian hierarchy at the temperature, and replaces the averages by those of the
last batches, with the momentum of training (NVAE does so before it samples, with 500
batches). It writes model.json, one checkpoint and batch_stats.json to OUT, which
`jebm.load` reads, and leaves RUN as it is.
"""

import argparse
import functools
import json
import sys

import flax.linen as nn
import jax
from tqdm import tqdm

import jebm
from experiments.errors import USER_ERRORS, ConfigError
from experiments.runtime.files import write_json
from jebm import checkpoints
from jebm.hierarchy import top_down, transport
from jebm.langevin import normal_like
from jebm.model import float_dtype
from tools.arguments import path_argument


@functools.partial(jax.jit, static_argnums=3)
def update(
    key: jax.Array,
    model: jebm.Model,
    params: jebm.Params,
    batch_size: int,
    temperature: float,
) -> jebm.Params:
    """Returns `params` with statistics of one more batch of the Gaussian hierarchy."""
    shapes, dtype = model.backbone.latent_shapes, float_dtype(params)
    zeros = [jax.numpy.zeros((batch_size, *shape), dtype) for shape in shapes]
    eps = tuple(normal_like(key, zeros))

    def generate(backbone):
        _, _, state = top_down(backbone, batch_size, transport(eps), temperature)
        return backbone.decode(state)

    apply = nn.apply(generate, model.backbone, mutable="batch_stats")
    _, written = apply(params.backbone)
    return params._replace(backbone=params.backbone | written)


def main(argv: list[str] | None = None) -> None:
    """Estimates the statistics anew, and writes OUT."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=path_argument)
    parser.add_argument("out", type=path_argument)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--num_batches", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        if given.out.exists() and any(given.out.iterdir()):
            raise ConfigError(f"{given.out} is not empty")
        for name in ("num_batches", "batch_size", "temperature"):
            if not getattr(given, name) > 0:
                raise ConfigError(
                    f"--{name} must be positive, got {getattr(given, name)}"
                )
        model, params = jebm.load(given.run)
        if "batch_stats" not in params.backbone:
            raise ConfigError(f"the backbone of {given.run} has no batch statistics")
        key = jax.random.key(given.seed)
        for i in tqdm(range(given.num_batches), unit="batch", disable=None):
            params = update(
                jax.random.fold_in(key, i),
                model,
                params,
                given.batch_size,
                given.temperature,
            )
        given.out.mkdir(parents=True, exist_ok=True)
        settings = vars(given) | {"run": str(given.run), "out": str(given.out)}
        write_json(given.out / "batch_stats.json", settings)
        spec = json.loads((given.run / "model.json").read_text())
        jebm.save(given.out, jebm.build(spec), params, checkpoints.steps(given.run)[-1])
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
