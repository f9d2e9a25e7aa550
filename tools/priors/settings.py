"""How each prior is set, by the generator it is held against, and what was tried.

`TRIALS` has three settings of each prior; `tools.priors.tune` measures them, and
docs/priors.md has what it found on the vectors of `mnist`. The best is below, for all
generators; what else a generator asks for is that of its config.
"""

import dataclasses
from typing import Any

from jebm import energies, priors

BATCH_SIZE = 500  # draws of an update
# Settings to choose from, as many of each prior; nothing is left to set of "gaussian".
TRIALS: dict[str, list[dict[str, Any]]] = {
    "joint": [{"learning_rate": r} for r in (2e-3, 4e-3, 1e-3)],
    "mixture": [
        {"num_components": 200},
        {"num_components": 400},
        {"num_components": 400, "shrinkage": 0.01},
    ],
    "vamp": [{"learning_rate": r} for r in (3e-2, 1e-1, 1e-2)],
    "lars": [{"learning_rate": r} for r in (1e-3, 3e-3, 3e-4)],
    "ncp": [{"learning_rate": r} for r in (1e-3, 3e-3, 1e-2)],
    "multi_stage": [{"learning_rate": r} for r in (1e-3, 3e-3, 1e-2)],
    "concatenated": [{"learning_rate": r} for r in (2e-3, 4e-3, 8e-3)],
    "diffusion": [{"learning_rate": r} for r in (1e-3, 3e-3, 1e-2)],
    "flow": [
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-3},
        {"learning_rate": 3e-3, "width": 512},
    ],
    "tilted_flow": [
        {"joint": priors.Joint(learning_rate=r)} for r in (2e-3, 4e-3, 8e-3)
    ],
    "pixel": [
        {"learning_rate": 1e-3},
        {"learning_rate": 3e-4},
        {"learning_rate": 1e-3, "pixel_noise": False},
    ],
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """What one generator asks for.

    Attributes:
      overrides: fields of a prior, by its name.
      batch_size: draws of an update.
      batch_sizes: of single priors, by name.
      passes: times that each image of training is encoded.
      num_samples: of a distance.
      sample_batch: drawn at a time.
      num_weighed: held-out images whose log p(x) is estimated.
      particles, temperatures: of each, annealed from the encoder.
    """

    overrides: dict[str, dict[str, Any]]
    batch_size: int = BATCH_SIZE
    batch_sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    passes: int = 10
    num_samples: int = 5000
    sample_batch: int = 1000
    num_weighed: int = 1000
    particles: int = 8
    temperatures: int = 100


# A proposal costs the trace of the flow's derivative: a small flow, and few of them.
_TILTED_FLOW = {
    "flow": priors.Flow(width=128, depth=2, num_integration_steps=6),
    "num_proposals": 6,
}
# Its chains pass the decoder and the pixels.
_PIXEL = {"persistent_chains": 200, "persistent_steps": 5, "chain_steps": 50}
# Which of `TRIALS` was best on the vectors of `mnist`: 0 where not named.
_CHOSEN = {
    "joint": 1, "mixture": 2, "ncp": 1, "multi_stage": 2, "diffusion": 2, "flow": 1,
    "pixel": 2,
}  # fmt: skip


def _with(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what every generator asks for, with what one asks for besides."""
    return {"tilted_flow": _TILTED_FLOW, "pixel": _PIXEL, **more}


_VECTOR = Backbone(_with(), batch_sizes={"pixel": 100})
_LADDER = Backbone(
    _with(joint={"energy": energies.Joint((256, 256, 256))}),
    batch_sizes={"pixel": 100},
)
# A chain of latents takes a tenth of a second a step here, for 100 of them.
_NVAE = Backbone(
    _with(
        joint={
            "energy": energies.State(64, (256, 256)),
            "nce_steps": 10**9,  # all: an update with chains takes a second
            "step_size": 0.2,
            "chain_steps": 50,
            "persistent_steps": 10,
            "gradient_penalty": 3e-3,
            "energy_penalty": 1e-3,
            "num_particles": 100,
            "num_temperatures": 100,
        },
        diffusion={"of_noise": True},
    ),
    batch_size=100,
    passes=1,
    num_samples=500,
    sample_batch=100,
    num_weighed=200,
    particles=4,
    temperatures=50,
)
_OF = {"Vector": _VECTOR, "Ladder": _LADDER, "NVAE": _NVAE}


def backbone(frozen: priors.Frozen) -> Backbone:
    """Returns the settings of a generator; those of vectors for any other."""
    return _OF.get(type(frozen.model.backbone).__name__, _VECTOR)


def batch_size(name: str, frozen: priors.Frozen) -> int:
    """Returns how many draws an update of a prior takes."""
    chosen = backbone(frozen)
    return chosen.batch_sizes.get(name, chosen.batch_size)


def prior(
    name: str, frozen: priors.Frozen, trial: dict[str, Any] | None = None
) -> priors.Prior:
    """Makes the prior of a name, set for this generator, by a trial or the best one."""
    if trial is None:
        trial = TRIALS[name][_CHOSEN.get(name, 0)] if name in TRIALS else {}
    chosen: dict[str, Any] = {**backbone(frozen).overrides.get(name, {}), **trial}
    cls = priors.PRIORS[name]
    known = {field.name for field in dataclasses.fields(cls)}
    if "persistent_chains" in known:
        # A multiple of the batch: each chain is then visited every other update.
        chosen.setdefault("persistent_chains", 2 * batch_size(name, frozen))
    return cls(**chosen)
