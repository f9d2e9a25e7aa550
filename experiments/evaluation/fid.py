"""FID, KID, Inception score, precision and recall by a named protocol.

    paper   what the code released with arXiv 2306.06323 does, as far as it is known:
            the decoder's means as floats, resized between the nearest pixels as
            pytorch-fid does; the score in one split, of the first 1,000 classes
    clean   images as 8-bit files hold them, resized with antialiasing, as clean-fid
            (arXiv 2104.11222) does; the score in ten splits, of all 1,008 classes and
            without the last layer's bias, as in the first code of that score

docs/metrics.md tells more of both. `eval.fid.sets` says which samples are measured:

    chain       as the run draws them: fid, inception_score, ...
    long_chain  by a chain 4 times as long: fid_long_chain, ...
    untilted    of the Gaussian prior of the same generator: fid_untilted, ...
    posterior   held-out images decoded from their posterior: fid_posterior, ...

The reference is `eval.fid.reference`, or the statistics of the data set's own split,
which are made if they are not in the cache (`experiments.evaluation.reference`). KID,
precision and recall are of the first `SUBSET` samples and as many images of the reference.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import activations
from experiments.runtime import parallel
from jebm import checkpoints, metrics
from jebm.chains import decode, example_keys, prior_chain, run_chains
from jebm.kernels import ANCESTRAL
from jebm.metrics import inception
from jebm.metrics.inception_score import (
    InceptionScore,
    ScoreSums,
    mean_score,
    split_bounds,
)

LONG_CHAIN = 4  # times the length of the run's
SETS = ("chain", "long_chain", "untilted", "posterior")
SUBSET = 10_000
_UNFINISHED = "eval_unfinished"


class Protocol(NamedTuple):
    """How images become activations, and logits a score."""

    quantised: bool
    resize: str
    num_classes: int  # of 1,008: the first ones, which the score is of
    bias: bool
    num_splits: int


PROTOCOLS = {
    "paper": Protocol(False, "bilinear", 1000, True, 1),
    "clean": Protocol(True, "bicubic", 1008, False, 10),
}


class Extractor(NamedTuple):
    """A network, its weights on all devices, and the protocol that it is used by."""

    name: str
    protocol: Protocol
    network: inception.InceptionV3
    variables: Any
    sha256: str
    step: Callable  # of all devices; compiled once for all sets of images

    @classmethod
    def load(cls, name: str, file: str | None) -> "Extractor":
        """The weights of `file`, or of the cache, for the protocol `name`.

        Raises:
          ConfigError: if there are none, saying where to get them.
        """
        try:
            network, variables, sha256 = inception.load(file)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(str(error)) from error
        protocol, devices = PROTOCOLS[name], jax.local_devices()
        variables = parallel.replicate(variables, devices)
        quantised, resize = protocol.quantised, protocol.resize
        step = activations.measure(network, quantised, resize, devices)
        return cls(name, protocol, network, variables, sha256, step)

    def stage(self, images: jax.Array) -> inception.Activations:
        """Activations of images [devices, B, H, W, C] in [0, 1]."""
        return self.step(None, self.variables, images)

    def score_logits(self, logits: np.ndarray) -> np.ndarray:
        """Of logits [N, C], those that the Inception score is of."""
        if not self.protocol.bias:
            bias = parallel.unreplicate(self.variables["params"]["fc"]["bias"])
            logits = logits - bias
        return logits[:, : max(1, self.protocol.num_classes // self.network.reduction)]

    def described(self) -> str:
        """In words."""
        if self.sha256 == inception.PUBLISHED_SHA256:
            return "pool of pt_inception-2015-12-05"
        return f"pool of other Inception weights, sha256 {self.sha256[:8]}"


class Summary(NamedTuple):
    """What is kept of a set of images."""

    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]
    features: np.ndarray  # [n <= SUBSET, D], of the first images
    score: InceptionScore
    rates: dict[str, float]


def summarise(
    files: list[pathlib.Path], num: int, extractor: Extractor
) -> Summary | None:
    """Reads the batches of `activations.stream` once; None if one is not finite."""
    moments, kept, seen, batches = None, [], 0, []
    bounds = split_bounds(num, min(extractor.protocol.num_splits, num))
    splits: list[Any] = [None] * (len(bounds) - 1)
    for batch in activations.read(files, num):
        if not (np.isfinite(batch.pool).all() and np.isfinite(batch.logits).all()):
            return None
        more = metrics.moments(batch.pool)
        moments = more if moments is None else metrics.merge_moments(moments, more)
        if seen < SUBSET:
            kept.append(batch.pool[: SUBSET - seen].copy())  # not a view of all
        logits = extractor.score_logits(batch.logits)
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            part = logits[max(start - seen, 0) : max(stop - seen, 0)]
            if len(part):
                sums = ScoreSums.of(part)
                splits[i] = sums if splits[i] is None else splits[i].plus(sums)
        seen += len(batch.pool)
        batches.append(batch._replace(pool=None, logits=None))
    return Summary(
        *metrics.statistics_of(moments),
        np.concatenate(kept),
        mean_score([sums.score() for sums in splits]),
        activations.rates(batches),
    )


def check(config) -> None:
    """Refuses settings that cannot work, naming the field; weights must be there."""
    options = config.eval
    for name in options.fid_sets:
        if name not in SETS:
            raise ConfigError(
                f"eval.fid.sets holds the unknown {name!r}; known: {list(SETS)}"
            )
    if not options.fid_sets:
        raise ConfigError(f"eval.fid.sets is empty; known: {list(SETS)}")
    if not 0 <= options.fid_temperature < np.inf:
        raise ConfigError(
            "eval.fid.temperature must be finite and at least 0, got "
            f"{options.fid_temperature}"
        )
    devices = jax.local_device_count()
    if options.batch_size % devices:
        raise ConfigError(
            f"eval.batch_size must be a multiple of the {devices} devices, got "
            f"{options.batch_size}"
        )
    if options.fid_reference and not pathlib.Path(options.fid_reference).is_file():
        raise ConfigError(f"eval.fid.reference: no file {options.fid_reference}")
    if not pathlib.Path(options.fid_inception or inception.default_file()).is_file():
        Extractor.load(options.protocol, options.fid_inception)  # says where to get it


def fid(key, config, extractor, reference, path, model, params, heldout):
    """The numbers of eval.json by sets of samples, and what they were taken with.

    Args:
      key: typed key, []. Sample n draws from its fold with n, on whatever device.
      config: the configuration.
      extractor: of the protocol.
      reference: an `experiments.evaluation.reference.Reference` of the same protocol.
      path: of the run; unfinished batches are kept in it.
      model: the model.
      params: its parameters.
      heldout: images, uint8 [N, H, W, C], for the set "posterior".

    Returns:
      two dicts, of numbers and of facts.
    """
    options, found = config.eval, {}
    key_posterior, key_prior = jax.random.split(key)
    chains = {
        "chain": prior_chain(model),
        "long_chain": _lengthened(prior_chain(model)),
        "untilted": ANCESTRAL,
        "posterior": model.chains.posterior,
    }
    asked = set(options.fid_sets)
    if model.energy is None:  # all three of the prior are one
        asked = {n if n == "posterior" else "chain" for n in asked}
    names = [n for n in SETS if n in asked]
    sampler = _sampler(model, params)
    for name in names:
        of_posterior = name == "posterior"
        temperature = 1.0 if of_posterior else options.fid_temperature
        drawn_by = key_posterior if of_posterior else key_prior
        identity = {
            "set": name,
            "chain": dataclasses.asdict(chains[name]),
            "kernel": type(chains[name]).__name__,
            "temperature": temperature,
            "key": np.asarray(jax.random.key_data(drawn_by)).tolist(),
            "params": checkpoints.digests(params),
            "batch_size": options.batch_size,
            "protocol": extractor.protocol._asdict(),
            "inception": extractor.sha256,
        }
        files = activations.stream(
            path / _UNFINISHED / extractor.name / digest(identity),
            options.fid_num_samples,
            options.batch_size,
            [*sampler(drawn_by, chains[name], temperature), extractor.stage],
            _given(heldout, options.fid_num_samples if of_posterior else None),
            f"{name}, {extractor.name}",
        )
        summary = summarise(files, options.fid_num_samples, extractor)
        suffix = "" if name == "chain" else f"_{name}"
        found |= {f"{k}{suffix}": v for k, v in compare(summary, reference).items()}
        if summary is not None and name == names[0]:
            found |= summary.rates
    chain = chains["chain"]
    return found, {
        "features": extractor.described(),
        "features_sha256": extractor.sha256,
        "num_samples": options.fid_num_samples,
        "num_compared": min(options.fid_num_samples, reference.num_features),
        "score_splits": min(extractor.protocol.num_splits, options.fid_num_samples),
        "score_classes": extractor.protocol.num_classes // extractor.network.reduction,
        "timed_set": names[0],
        "temperature": options.fid_temperature,
        "chain": _described(chain, model),
        **reference.about,
    }


def forget(path: pathlib.Path, protocol: str) -> None:
    """Deletes the batches of a protocol: its numbers are written."""
    shutil.rmtree(path / _UNFINISHED / protocol, ignore_errors=True)
    with contextlib.suppress(OSError):  # the other protocol's may be left
        (path / _UNFINISHED).rmdir()


def compare(summary: Summary | None, reference) -> dict[str, float]:
    """The numbers of one set; all are nan where its images are not finite."""
    if summary is None:
        return {"fid": np.nan, "inception_score": np.nan}
    found = {
        "fid": metrics.frechet_distance(
            summary.mean, summary.covariance, reference.mean, reference.covariance
        ),
        "inception_score": summary.score.mean,
        "inception_score_deviation": summary.score.deviation,
    }
    if reference.features is None:
        return found
    num = min(len(summary.features), len(reference.features))
    generated, real = summary.features[:num], reference.features[:num]
    kid = metrics.kernel_distance(generated, real)
    found |= {"kid": kid.value, "kid_error": kid.standard_error}
    if num > 3:
        found |= metrics.precision_recall(real, generated)._asdict()
    return found


def digest(identity: dict[str, Any]) -> str:
    """A name for what `identity` tells."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sampler(model, params):
    """Makes the stages from indices, and images for a posterior, to images.

    Returns:
      a function of a key, a chain and a temperature that returns these two stages; the
      decoder is the same for all, so that it compiles once.
    """
    devices = jax.local_devices()
    replicated = parallel.replicate(params, devices)

    def decoded(key, params, latents):
        del key
        return decode(model, params, latents)

    decoder = parallel.pmap(decoded, devices, donate=False)

    def stages(key, chain, temperature):
        def draw(key, params, batch):
            keys = example_keys(key, batch["index"])
            return run_chains(
                keys, model, params, chain, x=batch.get("x"), temperature=temperature
            ).latents

        chains = parallel.pmap(draw, devices, donate=False)
        return (
            lambda batch: chains(key, replicated, batch),
            lambda latents: decoder(None, replicated, latents),
        )

    return stages


def _given(heldout, num):
    """What the sampler takes: indices, and held-out images spread over `num`."""

    def first(indices):
        batch = {"index": indices.astype(np.int32)}
        if num is not None:
            fewer = min(num, len(heldout))
            spread = indices % fewer * len(heldout) // fewer
            batch["x"] = np.asarray(to_unit(jnp.asarray(heldout[spread])))
        return parallel.shard(batch, jax.local_devices())

    return first


def _lengthened(chain):
    return dataclasses.replace(chain, num_steps=LONG_CHAIN * chain.num_steps)


def _described(chain, model):
    if model.energy is None:
        return "none: exact draws of the Gaussian prior"
    name = type(chain).__name__
    steps = f"{chain.num_steps} {name} steps of {chain.step_size:g}"
    return f"{steps} in {chain.space}-space"
