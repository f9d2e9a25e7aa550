"""How each prior is set, by the generator it is held against.

docs/priors.md lists the trials that the settings of vectors were chosen by. Those of
the other generators are the configs' own, or the defaults.
"""

import dataclasses
from typing import Any

from jebm import energies, priors

BATCH_SIZE = 500  # draws of an update


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
_VECTOR = Backbone(
    {
        "joint": {"learning_rate": 4e-3},
        "mixture": {"num_components": 200},
        "ncp": {"learning_rate": 3e-3},
        "diffusion": {"learning_rate": 3e-3},
        "tilted_flow": _TILTED_FLOW,
        "pixel": _PIXEL,
    },
    batch_sizes={"pixel": 100},
)
_LADDER = Backbone(
    {
        "joint": {
            "energy": energies.Joint((256, 256, 256)),
            "learning_rate": 1e-3,
            "chain_steps": 600,
        },
        "diffusion": {"learning_rate": 3e-3},
        "tilted_flow": _TILTED_FLOW,
        "pixel": _PIXEL,
    },
    batch_sizes={"pixel": 100},
)
_NVAE = Backbone(
    {
        "joint": {
            "energy": energies.State(64, (256, 256)),
            "step_size": 0.2,
            "chain_steps": 100,
            "persistent_steps": 10,
            "gradient_penalty": 3e-3,
            "energy_penalty": 1e-3,
        },
        "pixel": _PIXEL,
    },
    batch_size=100,
    passes=1,
    num_samples=1000,
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


def prior(name: str, frozen: priors.Frozen) -> priors.Prior:
    """Makes the prior of a name, set for this generator."""
    chosen: dict[str, Any] = dict(backbone(frozen).overrides.get(name, {}))
    cls = priors.PRIORS[name]
    known = {field.name for field in dataclasses.fields(cls)}
    if "persistent_chains" in known:
        # A multiple of the batch: each chain is then visited every other update.
        chosen.setdefault("persistent_chains", 2 * batch_size(name, frozen))
    return cls(**chosen)
