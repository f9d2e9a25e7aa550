"""The typed options of a run: what a config says, checked once, at the edge.

`read(config)` turns a ConfigDict, or the dict of a config.json, into an `Experiment`.
Everything below the command line takes an `Experiment` or one of its sections, and no
ConfigDict. The defaults, and what every field means, are in `configs/default.py`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from experiments.errors import ConfigError
from experiments.section import (
    Count,
    Fraction,
    NonNegative,
    Pair,
    Positive,
    Range,
    Section,
    check_mapping,
    checked,
)
from jebm.kernels import RENAMED_SPACES
from jebm.learning import Limits

# Fields that had another name in an older version. A config that uses the old name is
# refused with the new one; the config.json of an old run is read by it.
RENAMED = {
    "data.heldout_digit": "data.heldout_class",
    "learning.energy_share": "learning.energy_grad_scale",
    "learning.restart_fraction": "learning.reinit_probability",
    "guard.max_rescues": "monitor.max_rollbacks",
    **{f"guard.{name}": f"monitor.{name}" for name in Limits._fields},
    "eval.anomaly.num_maps": "eval.anomaly.num_augmentations",
    "eval.anomaly.volume_weight": "eval.anomaly.knn_volume_weight",
    **{
        f"eval.{section}_{name}": f"eval.{section}.{name}"
        for section, names in {
            "likelihood": (
                "estimator", "num_images", "num_samples", "num_temperatures",
                "batch_size",
            ),
            "ood": ("outliers", "chosen_on"),
            "fid": (
                "num_samples", "sets", "temperature", "reference", "reference_split",
                "inception",
            ),
        }.items()
        for name in names
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """config.data: which images."""

    SECTION: ClassVar[str] = "data"

    name: str
    fake_like: str
    image_shape: tuple[int, int, int] | None
    data_dir: str | None
    labels: tuple[int, ...]
    binarize: bool
    heldout_class: int | None
    augment: tuple[str, ...]
    on_corrupt: Literal["error", "skip"]
    num_workers: Count

    @property
    def is_fake(self) -> bool:
        """Says whether the images are made up."""
        return self.name == "fake"


@dataclasses.dataclass(frozen=True)
class Learning(Section):
    """config.learning: the learner, its optimisers, and for how long."""

    SECTION: ClassVar[str] = "learning"

    method: Literal["mle", "variational", "two_stage"]
    energy_grad_scale: Fraction
    persistent_chains: Count
    persistent_steps: Positive
    reinit_probability: Fraction
    target_acceptance: Fraction
    posterior_tilt: Fraction
    tilt_warmup_steps: Count
    likelihood_warmup_steps: Count
    nce_steps: Count
    batch_size: Positive
    num_steps: Positive
    optimizer: Literal["adam", "adamax"]
    backbone_lr: NonNegative
    energy_lr: NonNegative
    energy_weight_decay: NonNegative
    warmup_steps: Count
    final_lr_fraction: Fraction
    adam_b1: Fraction
    adam_b2: Fraction
    adam_eps: NonNegative
    weight_decay: NonNegative
    clip_norm: NonNegative
    ema_decay: Fraction
    compute_dtype: Literal["float32", "bfloat16"]
    kl_warmup_steps: Count
    kl_balance: bool
    spectral_penalty: NonNegative
    spectral_penalty_start: NonNegative
    energy_penalty: NonNegative
    energy_spectral_bound: NonNegative
    gradient_penalty: NonNegative

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_steps >= self.num_steps:
            raise ConfigError(
                f"learning.warmup_steps must be less than the num_steps of "
                f"{self.num_steps}, got {self.warmup_steps}"
            )
        needs = {
            "kl_warmup_steps": "variational",
            "kl_balance": "variational",
            "spectral_penalty": "variational",
            "nce_steps": "two_stage",
        }
        for name, method in needs.items():
            if getattr(self, name) and self.method != method:
                raise ConfigError(
                    f"learning.{name} needs learning.method {method!r}, got "
                    f"{getattr(self, name)} with {self.method!r}"
                )
        for name in ("kl_balance", "spectral_penalty_start"):
            if getattr(self, name) and not self.kl_warmup_steps:
                raise ConfigError(
                    f"learning.{name} needs a warm-up of the KL divergence, got "
                    f"{getattr(self, name)} with learning.kl_warmup_steps=0"
                )
        if self.persistent_chains % self.batch_size:
            raise ConfigError(
                "learning.persistent_chains must be 0 or a multiple of the batch_size "
                f"of {self.batch_size}, got {self.persistent_chains}"
            )

    def traced(self, values: Mapping[str, Any]) -> Self:
        """Returns a copy with values that a program traces, which nothing can check."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__ | dict(values))
        return copy


@dataclasses.dataclass(frozen=True)
class Monitor(Section):
    """config.monitor: where training has diverged, and how often it may go back."""

    SECTION: ClassVar[str] = "monitor"

    max_rollbacks: Count
    energy_gap_nats: NonNegative
    prior_grad_norm: NonNegative
    posterior_grad_norm: NonNegative
    prior_eps_square: NonNegative

    @property
    def limits(self) -> Limits:
        """Returns the limits, as `jebm.learning` takes them."""
        return Limits(**{name: getattr(self, name) for name in Limits._fields})


@dataclasses.dataclass(frozen=True)
class Log(Section):
    """config.log: how often a run writes, and what."""

    SECTION: ClassVar[str] = "log"

    every: Positive
    checkpoint_every: Positive
    # The monitor goes back behind the newest checkpoint, and one more may be damaged.
    keep: Annotated[int, Range(3)]
    sample_every: Positive
    diagnose_every: Positive
    num_walkers: Count
    num_samples: Positive

    def __post_init__(self):
        super().__post_init__()
        for name in ("checkpoint_every", "sample_every", "diagnose_every"):
            if getattr(self, name) % self.every:
                raise ConfigError(
                    f"log.{name} must be a multiple of log.every, so that what is "
                    f"saved and drawn has been checked, got {getattr(self, name)} and "
                    f"{self.every}"
                )
        root = math.isqrt(self.num_samples)
        if root**2 != self.num_samples or root % 2:
            raise ConfigError(
                f"log.num_samples must be an even square, got {self.num_samples}"
            )


@dataclasses.dataclass(frozen=True)
class Eval(Section):
    """config.eval: what several evaluators share, and the sections of each.

    `evaluators` maps the name of an evaluator to its own options, which
    `experiments.evaluation` makes typed.
    """

    SECTION: ClassVar[str] = "eval"

    protocol: str
    num_samples: Pair
    num_posterior_samples: Positive
    num_temperatures: Count
    exact_length: Count
    batch_size: Positive
    num_diagnosed: Positive
    evaluators: Mapping[str, Mapping[str, Any]]

    def __post_init__(self):
        super().__post_init__()
        if self.num_temperatures == 1:
            raise ConfigError("eval.num_temperatures must be 0 or at least 2, got 1")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Makes an `Eval`; each mapping in `values` is the section of an evaluator."""
        check_mapping(cls.SECTION, values)
        sections = {k: v for k, v in values.items() if isinstance(v, Mapping)}
        fields = {k: v for k, v in values.items() if k not in sections}
        return super().of(fields | {"evaluators": sections})


_Spec = dict[str, Any]  # as `jebm.build` takes it

# Sections that the first of two stages has for itself; the others are of both.
_OF_STAGE_ONE = ("backbone", "likelihood", "chains", "learning", "monitor", "log")


@dataclasses.dataclass(frozen=True)
class Experiment(Section):
    """A whole config, typed and checked.

    `backbone`, `energy`, `likelihood` and `chains` are parts of what `jebm.build`
    takes, which checks them; of two stages, `backbone` has the fields `checkpoint`,
    `stage_one` and, where the first stage is changed, `changes`.
    """

    seed: Annotated[int, Range(0, 2**32 - 1)]
    prior: Literal["ebm", "gaussian"]
    matmul_precision: Literal["default", "high", "highest"]
    remat: bool
    data: Data
    backbone: _Spec
    energy: _Spec
    likelihood: _Spec
    chains: _Spec
    learning: Learning
    monitor: Monitor
    eval: Eval
    log: Log

    def __post_init__(self):
        super().__post_init__()
        specs = ("backbone", "energy", "likelihood", "chains")
        _check_finite({name: getattr(self, name) for name in specs})
        self._check_chains()
        self._check_posterior()
        if self.learning.method == "two_stage":
            self._check_stages()

    def _check_chains(self):
        """Checks that both chains are there, and that no space has an old name."""
        for name in ("prior", "posterior"):
            if name not in self.chains:
                raise ConfigError(f"config.chains.{name} is missing")
        for name, chain in self.chains.items():
            check_mapping(f"chains.{name}", chain)
            space = chain.get("space")
            if _today(space) != space:
                raise ConfigError(
                    f"chains.{name}.space {space!r} is now called {_today(space)!r}"
                )
        for name in ("start", "num_steps"):
            if name not in self.chains["posterior"]:
                raise ConfigError(f"config.chains.posterior.{name} is missing")

    @property
    def has_encoder(self) -> bool:
        """Says whether the backbone has an encoder that learns, or has learned."""
        start = self.chains["posterior"]["start"]
        return self.learning.method != "mle" or start == "encoder"

    def _check_posterior(self):
        """Demands that the posterior chain start at the encoder, where there is one."""
        method, start = self.learning.method, self.chains["posterior"]["start"]
        if self.has_encoder and start != "encoder":
            raise ConfigError(
                f"learning.method {method!r} needs chains.posterior.start 'encoder', "
                f"got {start!r}"
            )
        if start == "mode":
            raise ConfigError(
                "learning.method 'mle' needs a chains.posterior.start of 'normal', "
                f"'prior' or 'encoder', got {start!r}"
            )
        if method == "mle" and not self.chains["posterior"]["num_steps"]:
            raise ConfigError(
                "learning.method 'mle' needs steps of the posterior chain, got "
                "chains.posterior.num_steps=0"
            )

    def _check_stages(self):
        missing = sorted({"checkpoint", "stage_one"} - set(self.backbone))
        if missing:
            raise ConfigError(
                "learning.method 'two_stage' needs a config.backbone of the fields "
                f"checkpoint and stage_one, and {missing} are missing"
            )
        for name in ("checkpoint", "stage_one"):
            hint = str | None if name == "checkpoint" else str
            checked(f"backbone.{name}", hint, self.backbone[name])
        self._check_changes()
        if self.prior != "ebm":
            raise ConfigError(
                "learning.method 'two_stage' learns energies alone: prior must be "
                f"'ebm', got {self.prior!r}"
            )

    def _check_changes(self):
        """Demands that changes be sections of a first stage that is trained here."""
        check_mapping("backbone.changes", self.changes)
        for name, section in self.changes.items():
            if name not in _OF_STAGE_ONE:
                raise ConfigError(
                    f"backbone.changes may hold sections of the first stage alone, "
                    f"{', '.join(_OF_STAGE_ONE)}, got {name!r}"
                )
            check_mapping(f"backbone.changes.{name}", section)
        if self.changes and self.backbone["checkpoint"] is not None:
            raise ConfigError(
                "backbone.changes are of a first stage that is trained here, and "
                "backbone.checkpoint takes its place: leave one of them out"
            )

    @property
    def changes(self) -> Mapping[str, Any]:
        """Returns what the first of two stages has otherwise than its config."""
        return self.backbone.get("changes", {})

    @property
    def encoder_draws(self) -> bool:
        """Says whether the encoder alone draws posterior samples, without a chain."""
        return self.has_encoder and not self.chains["posterior"]["num_steps"]

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as config.json holds it: dicts, lists and plain values."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        values["eval"] |= values["eval"].pop("evaluators")
        return values


def read(config) -> Experiment:
    """Converts a config to an `Experiment`, and checks it.

    Args:
      config: a ConfigDict of `configs`, or the dict of a config.json.

    Raises:
      ConfigError: for a field that is unknown, renamed, missing or of a wrong value,
        naming it.

    Example:
      >>> from experiments.configs import digits
      >>> read(digits.get_config()).learning.method
      'variational'
    """
    values = _plain(config if isinstance(config, dict) else config.to_dict())
    for name, _ in flat(values):
        if name in RENAMED:
            raise ConfigError(f"config.{name} is now called config.{RENAMED[name]}")
    typed = {
        name: section.of(values[name])
        for name, section in _SECTIONS.items()
        if name in values
    }
    return Experiment.of({**values, **typed})


_SECTIONS: dict[str, type[Section]] = {
    "data": Data, "learning": Learning, "monitor": Monitor, "eval": Eval, "log": Log,
}  # fmt: skip


def upgrade(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the dict of an older version's config.json to the names of today.

    Example:
      >>> upgrade({"seed": 0, "guard": {"max_rescues": 5}})
      {'seed': 0, 'monitor': {'max_rollbacks': 5}}
    """
    leaves = {RENAMED.get(name, name): v for name, v in flat(values)}
    for name, value in leaves.items():
        if name.startswith("chains.") and name.endswith(".space"):
            leaves[name] = _today(value)
    known = {name for name in BEFORE if name.split(".")[0] in values}
    return nested({name: BEFORE[name] for name in known} | leaves)


# What an older version did where it did not know of a field yet, if not as by default.
BEFORE = {
    "chains.prior.name": "langevin",
    "learning.target_acceptance": 0.0,
    "learning.posterior_tilt": 1.0,
    "learning.tilt_warmup_steps": 0,
    "learning.likelihood_warmup_steps": 0,
    "learning.compute_dtype": "float32",
}


def _today(space):
    """Returns today's name of a chain's space."""
    return RENAMED_SPACES.get(space, space) if isinstance(space, str) else space


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested dicts, as ("a.b.c", value); an empty dict is one."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flat`.

    Example:
      >>> nested({"a.b": 1, "a.c": 2, "d": 3})
      {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _check_finite(tree):
    for name, value in flat(tree):
        if not _is_finite(value):
            raise ConfigError(f"{name} must be finite, got {value}")


def _is_finite(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
