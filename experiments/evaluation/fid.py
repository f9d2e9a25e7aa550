"""FID, KID, Inception score, precision and recall: the protocols "paper" and "clean".

`experiments.evaluation.inception_features` tells the protocols apart. `eval.fid.sets`
says which samples are measured:

    chain       as the run draws them: fid, inception_score, ...
    long_chain  by a chain 4 times as long: fid_long_chain, ...
    untilted    of the Gaussian prior of the same generator: fid_untilted, ...
    posterior   held-out images decoded from their posterior: fid_posterior, ...

The reference is `eval.fid.reference`, or the statistics of the data set's own split,
which are made if they are not in the cache (`experiments.evaluation.reference`). KID,
precision and recall are of the first `SUBSET` samples and as many images of the
reference.
"""

import contextlib
import dataclasses
import pathlib
import shutil
from typing import ClassVar, Literal

import jax
import numpy as np

from experiments.errors import ConfigError
from experiments.evaluation import activations, reference
from experiments.evaluation.contract import Evaluator, Number, Result, Table
from experiments.evaluation.inception_features import (
    CLEAN,
    PAPER,
    Extractor,
    Protocol,
    Summary,
    summarise,
)
from experiments.evaluation.reference import Reference
from experiments.evaluation.sample_stages import given, sampler
from experiments.evaluation.samplers import lengthened
from experiments.models import active_chains
from experiments.options import Experiment
from experiments.runs import Run
from experiments.section import NonNegative, Pair
from jebm import checkpoints, metrics
from jebm.chains import prior_chain
from jebm.kernels import ANCESTRAL
from jebm.metrics import inception

_UNFINISHED = "eval_unfinished"
_TITLES = {
    "chain": "samples",
    "long_chain": "samples by a chain 4 times as long",
    "untilted": "samples of the Gaussian prior of the same generator",
    "posterior": "held-out images from their posterior: the floor of any prior",
}
_COLUMNS = {
    "fid": "FID",
    "inception_score": "Inception score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}


@dataclasses.dataclass(frozen=True)
class Inception(Evaluator):
    """Measures in Inception's features, by the protocol of a subclass."""

    SECTION: ClassVar[str] = "eval.fid"
    OWN_FILE: ClassVar[bool] = True
    PROTOCOL: ClassVar[Protocol]

    num_samples: Pair
    sets: tuple[Literal["chain", "long_chain", "untilted", "posterior"], ...]
    temperature: NonNegative
    reference: str | None
    reference_split: str
    inception: str | None

    def __post_init__(self):
        super().__post_init__()
        if not self.sets:
            raise ConfigError(f"eval.fid.sets is empty; known: {list(_TITLES)}")

    def check(self, experiment: Experiment) -> None:
        """Refuses batches that devices cannot share, and files that are not there.

        Raises:
          ConfigError: naming the field, or saying where to get the weights.
        """
        devices, batch_size = jax.local_device_count(), experiment.eval.batch_size
        if batch_size % devices:
            raise ConfigError(
                f"eval.batch_size must be a multiple of the {devices} devices, got "
                f"{batch_size}"
            )
        if self.reference and not pathlib.Path(self.reference).is_file():
            raise ConfigError(f"eval.fid.reference: no file {self.reference}")
        if not pathlib.Path(self.inception or inception.default_file()).is_file():
            Extractor.load(self.PROTOCOL, self.inception)  # says where to get it

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Measures each set of samples; unfinished batches are kept in the run."""
        extractor = Extractor.load(self.PROTOCOL, self.inception)
        real = self._reference(run, extractor)
        names = self._sets(run)
        numbers: dict[str, Number] = {}
        for name, summary in self._summaries(key, run, extractor).items():
            suffix = "" if name == "chain" else f"_{name}"
            measured = compare(summary, real)
            numbers |= {f"{k}{suffix}": value for k, value in measured.items()}
            if summary is not None and name == names[0]:
                numbers |= summary.rates
        facts = {
            "features": extractor.described(),
            "features_sha256": extractor.sha256,
            "num_samples": self.num_samples,
            "num_compared": min(self.num_samples, real.num_features),
            "score_splits": min(self.PROTOCOL.num_splits, self.num_samples),
            "score_classes": extractor.num_classes,
            "timed_set": names[0],
            "temperature": self.temperature,
            "chain": _described(run.model),
            **real.about,
        }
        return Result(
            numbers,
            facts,
            self._about(run, facts),
            (self._table(numbers),),
            () if real.num_features else (_without_features(facts["reference"]),),
        )

    def _reference(self, run, extractor):
        if self.reference:
            return reference.read(pathlib.Path(self.reference), extractor)
        experiment = run.experiment
        return reference.obtain(
            experiment.data, self.reference_split, experiment.eval.batch_size, extractor
        )

    def _sets(self, run):
        """Names the sets that are measured, in the order of `_TITLES`."""
        requested = set(self.sets)
        if "prior" not in active_chains(run.model):  # all three of the prior are one
            requested = {n if n == "posterior" else "chain" for n in requested}
        return [name for name in _TITLES if name in requested]

    def _summaries(self, key, run, extractor) -> dict[str, Summary | None]:
        """Summarises each set; sample n draws from the fold of the set's key with n."""
        key_posterior, key_prior = jax.random.split(key)
        chains = {
            "chain": prior_chain(run.model),
            "long_chain": lengthened(prior_chain(run.model)),
            "untilted": ANCESTRAL,
            "posterior": run.model.chains.posterior,
        }
        stages = sampler(run.model, run.params)
        summaries = {}
        for name in self._sets(run):
            of_posterior = name == "posterior"
            temperature = 1.0 if of_posterior else self.temperature
            set_key = key_posterior if of_posterior else key_prior
            drawn_by = set_key, chains[name], temperature
            batch_size = run.experiment.eval.batch_size
            files = activations.stream(
                run.path
                / _UNFINISHED
                / extractor.name
                / _identity(name, drawn_by, run.params, batch_size, extractor),
                self.num_samples,
                batch_size,
                [*stages(*drawn_by), extractor.stage],
                given(run.heldout, self.num_samples if of_posterior else None),
                f"{name}, {extractor.name}",
            )
            summaries[name] = summarise(files, self.num_samples, extractor)
        return summaries

    def _about(self, run, facts):
        about = (
            f"Protocol {self.PROTOCOL.name!r} at step {run.step}: {self.num_samples} "
            f"samples, chain {facts['chain']}, prior temperature "
            f"{self.temperature:g}, {facts['features']}, reference "
            f"{facts['reference']}; Inception score in {facts['score_splits']} parts."
        )
        if num := facts["num_compared"]:
            about += f" KID, precision and recall use {num} samples."
        return about

    def _table(self, numbers):
        rows = []
        for name, title in _TITLES.items():
            suffix = "" if name == "chain" else f"_{name}"
            cells = [numbers.get(f"{column}{suffix}") for column in _COLUMNS]
            if any(cell is not None for cell in cells):
                rows.append([title, *cells])
        return Table(["", *_COLUMNS.values()], rows)

    def written(self, run: Run) -> None:
        """Deletes the batches of this protocol."""
        shutil.rmtree(run.path / _UNFINISHED / self.PROTOCOL.name, ignore_errors=True)
        with contextlib.suppress(OSError):  # the other protocol's may be left
            (run.path / _UNFINISHED).rmdir()


@dataclasses.dataclass(frozen=True)
class Paper(Inception):
    """Measures by the protocol "paper"."""

    PROTOCOL: ClassVar[Protocol] = PAPER


@dataclasses.dataclass(frozen=True)
class Clean(Inception):
    """Measures by the protocol "clean"."""

    PROTOCOL: ClassVar[Protocol] = CLEAN


def compare(summary: Summary | None, real: Reference) -> dict[str, Number]:
    """Returns the numbers of one set; all are nan where its images are not finite."""
    if summary is None:
        return {"fid": np.nan, "inception_score": np.nan}
    numbers: dict[str, Number] = {
        "fid": metrics.frechet_distance(
            summary.mean, summary.covariance, real.mean, real.covariance
        ),
        "inception_score": summary.score.mean,
        "inception_score_deviation": summary.score.deviation,
    }
    if real.features is None:
        return numbers
    num = min(len(summary.features), len(real.features))
    generated, others = summary.features[:num], real.features[:num]
    kid = metrics.kernel_distance(generated, others)
    numbers |= {"kid": kid.value, "kid_error": kid.standard_error}
    if num > 3:
        numbers |= metrics.precision_recall(others, generated)._asdict()
    return numbers


def _identity(name, drawn_by, params, batch_size, extractor):
    """Names a set by all that its activations depend on."""
    key, chain, temperature = drawn_by
    return activations.digest(
        {
            "set": name,
            "chain": dataclasses.asdict(chain),
            "kernel": type(chain).__name__,
            "temperature": temperature,
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "params": checkpoints.digests(params),
            "batch_size": batch_size,
            "protocol": extractor.protocol._asdict(),
            "inception": extractor.sha256,
        }
    )


def _described(model):
    """Describes the chain of the prior."""
    chain = active_chains(model).get("prior")
    if chain is None:
        return "none: exact draws of the Gaussian prior"
    name = type(chain).__name__
    steps = f"{chain.num_steps} {name} steps of {chain.step_size:g}"
    return f"{steps} in {chain.space}-space"


def _without_features(file):
    return f"{file} holds no features: no KID, precision or recall."
