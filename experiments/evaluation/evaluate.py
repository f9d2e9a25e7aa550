"""Measures a trained run: eval.json.

The protocol "classifier": Frechet distance, in the penultimate features of a small
classifier of the data set (`experiments.evaluation.classifier`), between
`eval.num_samples` samples and the held-out split. Images are the decoder's means.

    frechet              samples as the run draws them
    frechet_long_chain   with a prior chain 4 times as long
    frechet_tempered     by the sampler of `jebm.tempering`, as long as the run's chain,
                         with `eval.num_temperatures` replicas where that is not 0
    frechet_untilted     of the Gaussian prior of the same generator
    frechet_posterior    held-out images, each decoded from its posterior sample: the
                         floor of any prior
    frechet_real         between two random halves of the held-out images, mean of ten

With every protocol go acceptance and stiffness of the chains (`jebm.diagnostics`) and
how well they mix (`experiments.evaluation.mixing`).

The protocols "paper" and "clean": `experiments.evaluation.fid`. The protocol "anomaly":
`experiments.evaluation.anomaly` on data with a `data.heldout_digit`. The protocol
"ood": `experiments.evaluation.ood`. The protocol "likelihood":
`experiments.evaluation.likelihood`. Those by Inception, and any other than the run's own, go into a file of their name, like
eval_paper.json.
"""

import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pictures
from experiments.data import datasets, loaders
from experiments.errors import ConfigError
from experiments.evaluation import (
    anomaly,
    classifier,
    fid,
    likelihood,
    mixing,
    ood,
    reference,
)
from experiments.evaluation.chains import chains
from experiments.evaluation.frechet import distances
from experiments.rundir import report
from experiments.rundir.metrics import training_budget
from experiments.rundir.settings import variant
from experiments.runs import open_run
from experiments.runtime import parallel
from experiments.runtime.files import read_json, write_json
from experiments.streams import Role
from jebm.kernels import ENCODED, STARTS
from jebm.names import unknown_name_message


def evaluate(config, path: pathlib.Path) -> None:
    """Measures the run in `path`; chains and seed may be overridden."""
    check_eval(config)
    measure = PROTOCOLS[config.eval.protocol](config)
    model, params, step, splits = open_run(config, path)
    params = jax.tree.map(jnp.asarray, params)
    print(f"Evaluating {path} at step {step}.")
    started = time.perf_counter()
    key = jax.random.fold_in(jax.random.key(config.seed), Role.EVALUATION)
    found, about = measure(key, path, model, params, splits)
    found |= chains(key, model, params, splits["test"].images, config.eval)
    features = None
    if config.data.name in classifier.known():
        features, _ = classifier.load(config.data.name)
    images, rungs = splits["test"].images, config.eval.num_temperatures
    found |= mixing.mixing(key, model, params, images, features, rungs)
    file = _file(path, config)
    about = {
        "step": step,
        "seed": config.seed,
        "prior": config.prior,
        "protocol": config.eval.protocol,
        "data": datasets.described(config.data),
        **about,
        **training_budget(path, config),
        "hardware": parallel.hardware(),
        "seconds": time.perf_counter() - started,
    }
    finite = {}
    for name, value in found.items():
        if isinstance(value, list):  # over what is named in `about`
            told = " ".join(f"{v:.4g}" for v in value)
        elif isinstance(value, bool):
            told = "yes" if value else "no"
        else:
            told = f"{value:.4g}"
        if np.all(np.isfinite(value)):
            finite[name] = value
        else:
            told = "not finite, left out"
        print(f"  {name:30}{told}")
    for text in report.cautions(finite):
        print(f"warning: {text}")
    write_json(file, finite | about)
    if config.eval.protocol in fid.PROTOCOLS:
        fid.forget(path, config.eval.protocol)
    print(f"wrote {file}")
    report.write(path)


def _file(path, config):
    """eval.json, or a name that tells what is measured otherwise than in the run."""
    named = config.eval.protocol
    own = read_json(path / "config.json")["eval"]["protocol"]
    if named == own and named not in fid.PROTOCOLS:
        named = ""
    parts = [part for part in (named, variant(path, config)) if part]
    return path / f"{'_'.join(['eval', *parts])}.json"


def check_eval(config) -> None:
    """Refuses settings of eval that cannot work, naming the field."""
    if config.eval.protocol not in PROTOCOLS:
        raise ConfigError(
            unknown_name_message("eval.protocol", config.eval.protocol, PROTOCOLS)
        )
    if config.eval.protocol == "anomaly" and config.data.heldout_digit is None:
        raise ConfigError(
            "eval.protocol 'anomaly' needs a data.heldout_digit, got None"
        )
    if config.eval.protocol == "ood":
        ood.check(config.eval)
        if config.data.name != "fake":  # then they are made up as well
            for name in (config.eval.ood_chosen_on, *config.eval.ood_outliers):
                loaders.require(name, loaders.Options(config.data.data_dir))
    if config.eval.protocol == "likelihood":
        likelihood.check(config)
    if config.eval.protocol in fid.PROTOCOLS:
        fid.check(config)
    if config.eval.num_temperatures not in (0, *range(2, 1000)):
        raise ConfigError(
            "eval.num_temperatures must be 0 or at least 2, got "
            f"{config.eval.num_temperatures}"
        )
    for name in (
        "likelihood_weight",
        "num_maps",
        "num_neighbours",
        "neighbours_weight",
        "volume_weight",
    ):
        if not 0 <= config.eval.anomaly[name] < math.inf:
            raise ConfigError(
                f"eval.anomaly.{name} must be at least 0, got "
                f"{config.eval.anomaly[name]}"
            )
    weights = anomaly.weights_of(config.eval)
    if weights[1:] != (0, 0) and not config.eval.anomaly.num_neighbours:
        raise ConfigError(
            "eval.anomaly.neighbours_weight and eval.anomaly.volume_weight weigh "
            "neighbours: set eval.anomaly.num_neighbours too, or both to 0; got "
            f"{weights.neighbours} and {weights.volume} with num_neighbours=0"
        )
    own = config.chains.posterior.start
    start = config.eval.anomaly.posterior_start or own
    if start not in STARTS:
        raise ConfigError(
            unknown_name_message("eval.anomaly.posterior_start", start, STARTS)
        )
    if start in ENCODED and own not in ENCODED:
        raise ConfigError(
            f"eval.anomaly.posterior_start {start!r} needs an encoder that learns, "
            f"chains.posterior.start 'encoder', got {own!r}"
        )
    for name, least in (
        ("num_samples", 2),
        ("num_posterior_samples", 1),
        ("batch_size", 1),
        ("fid_num_samples", 2),
        ("num_diagnosed", 1),
        ("likelihood_num_images", 2),
        ("likelihood_num_samples", 2),
        ("likelihood_num_temperatures", 2),
        ("likelihood_batch_size", 1),
    ):
        if config.eval[name] < least:
            raise ConfigError(
                f"eval.{name} must be at least {least}, got {config.eval[name]}"
            )


def _by_classifier(config):
    """Frechet distances, and what they were taken with."""
    features, facts = classifier.load(config.data.name)

    def measure(key, path, model, params, splits):
        heldout = splits["test"].images
        found = distances(key, model, params, heldout, features, config.eval)
        return found, {
            "features": f"{facts['num_features']} features of {facts['file']}",
            "features_sha256": facts["sha256"],
            "num_samples": config.eval.num_samples,
            "num_reference": len(heldout),
        }

    return measure


def _by_anomaly(config):
    """How well the score tells the held-out class; draws the scores."""

    def measure(key, path, model, params, splits):
        images, training = splits["test"].images, splits["train"].images
        terms = anomaly.terms_of(key, model, params, images, training, config.eval)
        heldout = config.data.heldout_digit
        anomalous = splits["test"].labels == heldout
        folder = path / "figures" / variant(path, config)
        weights = anomaly.weights_of(config.eval)
        anomaly.histogram(terms, anomalous, weights, folder / "anomaly.png")
        pictures.mark(config, [folder / "anomaly.png"])
        print(f"wrote {folder / 'anomaly.png'}")
        return anomaly.detection(terms, anomalous, weights), {
            "heldout_digit": heldout,
            "likelihood_weight": weights.likelihood,
            "num_maps": config.eval.anomaly.num_maps,
            "num_neighbours": config.eval.anomaly.num_neighbours,
            "neighbours_weight": weights.neighbours,
            "volume_weight": weights.volume,
            "posterior_start": anomaly.scored(
                model, config.eval
            ).chains.posterior.start,
            "num_posterior_samples": config.eval.num_posterior_samples,
            "num_normal": int((~anomalous).sum()),
            "num_anomalous": int(anomalous.sum()),
        }

    return measure


def _by_ood(config):
    """How well every score tells images of elsewhere; draws the scores."""

    def measure(key, path, model, params, splits):
        folder = path / "figures" / variant(path, config)
        images = splits["test"].images
        found = ood.detection(key, config, model, params, images, folder)
        pictures.mark(config, [folder / "ood.png"])
        print(f"wrote {folder / 'ood.png'}")
        return found

    return measure


def _by_likelihood(config):
    """Log-likelihood of held-out images."""

    def measure(key, path, model, params, splits):
        del path
        images, options = splits["test"].images, config.eval
        found = likelihood.likelihood(key, model, params, images, options)
        return found, {
            "estimator": options.likelihood_estimator,
            "samples_per_image": options.likelihood_num_samples,
            "num_images": min(options.likelihood_num_images, len(images)),
        }

    return measure


def _by_inception(config):
    """FID, KID, Inception score, precision and recall."""
    extractor = fid.Extractor.load(config.eval.protocol, config.eval.fid_inception)
    given = config.eval.fid_reference
    given = given and reference.read(pathlib.Path(given), extractor)

    def measure(key, path, model, params, splits):
        # Making statistics takes long: the run is known to be there now.
        real = given or reference.obtain(config.eval, config.data, extractor)
        if real.features is None:
            told = real.about["reference"]
            print(f"{told} holds no features: no KID, precision or recall.")
        images = splits["test"].images
        return fid.fid(key, config, extractor, real, path, model, params, images)

    return measure


# What a protocol needs is got, or refused, before the run is opened.
PROTOCOLS = {
    "anomaly": _by_anomaly,
    "classifier": _by_classifier,
    "clean": _by_inception,
    "likelihood": _by_likelihood,
    "ood": _by_ood,
    "paper": _by_inception,
}
