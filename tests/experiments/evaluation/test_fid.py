import dataclasses
import json
import re
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments import main
from experiments.data import datasets
from experiments.data.loaders import Split
from experiments.data.pixels import digest, to_unit
from experiments.errors import ConfigError
from experiments.evaluation import (
    activations,
    inception_features,
    reference,
)
from experiments.evaluation import evaluate as evaluate_lib
from experiments.evaluation.fid import Inception
from experiments.evaluation.inception_features import (
    PAPER,
    PROTOCOLS,
    Extractor,
    summarise,
)
from experiments.streams import Stream
from experiments.training.hooks import Hooks
from jebm import metrics
from jebm.metrics import inception
from tests.experiments.evaluation.saved import experiment_of, of_run, save_run
from tools.convert import inception as convert_inception
from tools.verify import inception as verify_inception

REDUCTION = 16
OPTIONS = {"eval.fid.num_samples": 24, "eval.batch_size": 10}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with the weights of a small network, and statistics as they are made."""
    path = tmp_path_factory.mktemp("cache")
    state = verify_inception.random_state(REDUCTION, 0, "float32")
    _, variables = convert_inception.convert(state)
    inception.save(path / "inception.npz", variables, "0123456789abcdef")
    return path


@pytest.fixture(autouse=True)
def cached(cache, monkeypatch):
    """No test takes the time to send all digits through the network."""
    monkeypatch.setenv("JEBM_CACHE", str(cache))
    # These are tested with the other protocols.
    monkeypatch.setattr(evaluate_lib, "WITH_EVERY", ())
    load = datasets.load

    def subset(data):
        splits = load(data)
        return {k: Split(s.images[:30], s.labels[:30]) for k, s in splits.items()}

    monkeypatch.setattr(datasets, "load", subset)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a run that was evaluated by its own protocol."""
    path = save_run(tmp_path_factory.mktemp("saved") / "run", scale=1.0)
    (path / "eval.json").write_text('{"protocol": "classifier", "step": 8}')
    return path


@pytest.fixture
def copied_run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def evaluate(path, protocol, **changes):
    """Evaluates a run; returns its numbers but for what a clock decides."""
    experiment = of_run(path, **OPTIONS | {"eval.protocol": protocol} | changes)
    evaluate_lib.evaluate(experiment, path)
    values = json.loads((path / f"eval_{protocol}.json").read_text())
    timed = [k for k in values if k.startswith("images_per_second")]
    assert timed == [f"images_per_second_{stage}" for stage in activations.STAGES]
    assert all(values.pop(name) > 0 for name in (*timed, "seconds"))
    return values


@pytest.fixture(scope="module")
def evaluated(saved, cache, tmp_path_factory):
    """What both protocols say of a run, and the run."""
    path = tmp_path_factory.mktemp("evaluated") / "run"
    return shutil.copytree(saved, path), {}


def evaluation(evaluated, protocol):
    path, values = evaluated
    if protocol not in values:
        values[protocol] = evaluate(path, protocol)
    return path, values[protocol]


def by_hand(images, protocol):
    """Pool and logits of images [N, H, W, C] in [0, 1], all at once."""
    network, variables, _ = inception.load()
    if protocol == "clean":
        images = jnp.floor(images * 255 + 0.5) / 255
    resize = {"paper": "bilinear", "clean": "bicubic"}[protocol]
    values = _apply(network, variables, inception.prepare(images, resize))
    logits = np.asarray(values.logits)
    if protocol == "clean":
        return values.pool, logits - variables["params"]["fc"]["bias"]
    return values.pool, logits[:, : 1000 // REDUCTION]


_apply = jax.jit(lambda network, *rest: network.apply(*rest), static_argnums=0)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_numbers_are_those_of_samples_drawn_at_once(evaluated, protocol):
    path, values = evaluation(evaluated, protocol)
    model, params = jebm.load(path)
    key = jax.random.fold_in(jax.random.key(0), Stream.EVALUATION)
    key_prior = jax.random.split(key)[1]
    real = datasets.load(experiment_of().data)["train"].images
    order = np.random.default_rng(0).permutation(len(real))
    priors = ("ebm", "gaussian")
    images = [jebm.sample(key_prior, model, params, 24, prior=p).x for p in priors]
    images.append(to_unit(real[order]))
    pools, all_logits = by_hand(jnp.concatenate(images), protocol)
    real_pool = pools[48:]
    for i, suffix in enumerate(("", "_untilted")):
        pool, logits = (a[24 * i : 24 * i + 24] for a in (pools, all_logits))
        distance = metrics.frechet_distance(
            *metrics.feature_statistics(pool), *metrics.feature_statistics(real_pool)
        )
        assert values[f"fid{suffix}"] == pytest.approx(distance, rel=1e-4)
        splits = {"paper": 1, "clean": 10}[protocol]
        score = metrics.inception_score(logits, splits)
        assert values[f"inception_score{suffix}"] == pytest.approx(score.mean, rel=1e-4)
        kid = metrics.kernel_distance(pool, real_pool[:24])
        assert values[f"kid{suffix}"] == pytest.approx(kid.value, rel=1e-2)
        shares = metrics.precision_recall(real_pool[:24], pool)
        assert values[f"precision{suffix}"] == shares.precision
        assert values[f"recall{suffix}"] == shares.recall


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_beside_the_numbers_stands_what_they_were_taken_with(evaluated, protocol):
    path, values = evaluation(evaluated, protocol)
    of_images = digest(datasets.load(experiment_of().data)["train"].images)[:16]
    about = {
        "step": 8,
        "seed": 0,
        "prior": "ebm",
        "protocol": protocol,
        "features": "pool of other Inception weights, sha256 01234567",
        "features_sha256": "0123456789abcdef",
        "num_samples": 24,
        "num_compared": 24,
        "num_reference": 30,
        "temperature": 1.0,
        "chain": "4 Underdamped steps of 0.4 in eps-space",
        "timed_set": "chain",
        "score_splits": {"paper": 1, "clean": 10}[protocol],
        "reference": f"digits_train_8x8_{protocol}_{of_images}_inception01234567.npz",
        "training_images": 160,
    }
    assert {name: values[name] for name in about} == about
    assert values["training_seconds"] > 0
    assert values["hardware"].startswith("2 x CPU device of ")
    assert values["training_hardware"] == values["hardware"]
    assert not (path / "eval_unfinished").exists()
    page = (path / "report.html").read_text()
    assert f"Protocol &#x27;{protocol}&#x27; at step 8: 24 samples" in page
    assert f"{values['fid_untilted']:.4g}" in page
    # The run's own numbers stay.
    assert json.loads((path / "eval.json").read_text())["protocol"] == "classifier"


def test_protocols_see_different_images(evaluated):
    paper, clean = (evaluation(evaluated, p)[1] for p in ("paper", "clean"))
    assert abs(paper["fid"] - clean["fid"]) > 1e-3 * paper["fid"]


def test_gaussian_prior_has_one_set_of_samples(tmp_path):
    path = save_run(tmp_path / "run", prior="gaussian")
    values = evaluate(path, "paper", **{"eval.fid.sets": ("untilted",)})
    assert values["fid"] > 0
    assert "fid_untilted" not in values
    assert values["chain"] == "none: exact draws of the Gaussian prior"


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_killed_evaluation_goes_on_with_the_batch_it_was_at_to_the_same_bits(
    copied_run, evaluated, monkeypatch
):
    _, expected = evaluation(evaluated, "paper")
    written, write = [], activations._write

    def dying(file, batch):
        written.append(file)
        if len(written) == 5:  # in the second of two sets of three batches
            file.with_name(f"{file.name}.partial").write_bytes(b"half a file")
            raise Killed
        write(file, batch)

    monkeypatch.setattr(activations, "_write", dying)
    with pytest.raises(Killed):
        evaluate(copied_run, "paper")
    assert not (copied_run / "eval_paper.json").exists()
    # A file may also be damaged.
    content = bytearray(written[3].read_bytes())
    content[len(content) // 2] ^= 0xFF
    written[3].write_bytes(content)
    first = written[:]
    written.clear()
    monkeypatch.setattr(
        activations, "_write", lambda f, b: (written.append(f), write(f, b))
    )
    values = evaluate(copied_run, "paper")
    assert written == [*first[3:], first[4].with_name("00000020.npz")]
    assert values == expected


@pytest.mark.slow
def test_batches_of_other_settings_are_not_taken_for_these(copied_run, monkeypatch):
    monkeypatch.setattr(Inception, "written", lambda self, run: None)
    sets = {"eval.fid.sets": ("chain",)}
    evaluate(copied_run, "paper", **sets)
    (folder,) = (copied_run / "eval_unfinished" / "paper").iterdir()
    first = json.loads((copied_run / "eval_paper.json").read_text())
    values = evaluate(copied_run, "paper", **sets, **{"eval.fid.temperature": 0.5})
    assert len(list(folder.parent.iterdir())) == 2
    assert values["temperature"] == 0.5
    assert values["fid"] != first["fid"]
    written = []
    monkeypatch.setattr(activations, "_write", lambda f, b: written.append(f))
    fewer = evaluate(copied_run, "paper", **sets, **{"eval.fid.num_samples": 12})
    assert fewer["fid"] != first["fid"]
    assert written == []  # the batches that are there do
    assert len(list(folder.glob("*.npz"))) == 3


@pytest.mark.slow
def test_posterior_and_long_chain_have_numbers_of_their_own(copied_run, evaluated):
    sets = {"eval.fid.sets": ("posterior", "long_chain")}
    values = evaluate(copied_run, "paper", **sets)
    assert {"fid_posterior", "fid_long_chain", "kid_long_chain"} <= values.keys()
    assert "fid" not in values
    _, other = evaluation(evaluated, "paper")
    assert len({values["fid_posterior"], values["fid_long_chain"], other["fid"]}) == 3


@pytest.mark.slow
def test_samples_that_are_not_finite_are_told_and_left_out(copied_run, capsys):
    changes = {
        "eval.protocol": "paper",
        "chains.prior.name": "langevin",
        "chains.prior.step_size": 1e18,
    }
    evaluate_lib.evaluate(of_run(copied_run, **OPTIONS | changes), copied_run)
    name = "chains.prior.name=langevin,chains.prior.step_size=1e+18"
    file = copied_run / f"eval_paper_{name}.json"
    values = json.loads(file.read_text())
    assert "fid" not in values
    assert values["fid_untilted"] > 0
    assert re.search(r"(?m)^  fid +not finite, left out$", capsys.readouterr().out)


@pytest.fixture(scope="module")
def extractor(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEBM_CACHE", str(cache))
        return Extractor.load(PAPER, None)


def ttur(path, **changes):
    """Statistics as the authors of the FID publish them."""
    rng = np.random.default_rng(0)
    mu, sigma = metrics.feature_statistics(rng.normal(size=(300, 128)))
    np.savez(path, **({"mu": mu, "sigma": sigma} | changes))
    return path


def test_statistics_of_others_are_read_and_have_no_features(
    copied_run, tmp_path, evaluated, capsys
):
    file = ttur(tmp_path / "fid_stats_cifar10_train.npz")
    values = evaluate(copied_run, "paper", **{"eval.fid.reference": str(file)})
    assert values["reference"] == "fid_stats_cifar10_train.npz"
    assert not any(name.startswith(("kid", "precision")) for name in values)
    assert values["fid"] != evaluation(evaluated, "paper")[1]["fid"]
    sentence = "warning: fid_stats_cifar10_train.npz holds no features: no KID"
    assert sentence in capsys.readouterr().out
    assert "holds no features: no KID" in (copied_run / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mu": np.zeros(2048)}, r"shapes \(2048,\) and .* have 128 dimensions"),
        ({"about": np.array('{"protocol": "clean"}')}, "of the protocol 'clean'"),
        ({"about": np.array('{"inception": "ff"}')}, "of the inception 'ff'"),
        ({"mu": np.array([None])}, "damaged or not an .npz"),
        ({"mu": np.full(128, np.nan)}, "mu of .* must be finite, got 128 of 128"),
        ({"features": np.full((3, 128), np.inf)}, "features of .* got 384 of 384"),
    ],
)
def test_statistics_of_something_else_are_refused(tmp_path, extractor, changes, words):
    with pytest.raises(ConfigError, match=words):
        reference.read(ttur(tmp_path / "stats.npz", **changes), extractor)


def test_statistics_are_named_by_what_they_are_of(extractor):
    published = extractor._replace(sha256=inception.PUBLISHED_SHA256)
    images = np.zeros((12, 256, 256, 3), np.uint8)
    data = experiment_of().data

    def name_of(some, name="celeb_a_hq/256", split="test"):
        of_name = dataclasses.replace(data, name=name)
        return reference.cached(of_name, split, some, published).name

    name = name_of(images)
    assert name == f"celeb_a_hq-256_test_256x256_paper_{digest(images)[:16]}.npz"
    assert name_of(images, "fake").startswith("fake-digits_test_256x256_paper_")
    one_other = images.copy()
    one_other[7, 100, 100, 2] = 1
    names = {name_of(some) for some in (images, images[:-1], one_other)}
    assert len(names) == 3


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("fid.sets", ("all",), ["eval.fid.sets", "'all'", "'long_chain'"]),
        ("fid.sets", (), ["eval.fid.sets is empty"]),
        ("fid.temperature", -1.0, ["eval.fid.temperature", "-1.0"]),
        ("fid.num_samples", 1, ["eval.fid.num_samples", "at least 2"]),
        ("batch_size", 5, ["eval.batch_size", "multiple of the 2 devices", "5"]),
        ("fid.reference", "none.npz", ["eval.fid.reference", "none.npz"]),
        ("fid.reference_split", "dev", ["fid.reference_split", "dev", "'train'"]),
        ("fid.inception", "none.npz", ["none.npz", "tools.convert.inception"]),
    ],
)
def test_settings_that_cannot_be_are_refused(copied_run, field, value, words):
    with pytest.raises(ConfigError) as refused:
        evaluate(copied_run, "paper", **{f"eval.{field}": value})
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_training_that_could_not_be_evaluated_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"python -m tools\.convert\.inception"):
        experiment = experiment_of(**OPTIONS, **{"eval.protocol": "clean"})
        main.run("train", experiment, tmp_path / "run", Hooks())
    assert not (tmp_path / "run").exists()


def write_batches(folder, num, size):
    rng = np.random.default_rng(0)
    files = []
    for i in range(num):
        files.append(folder / f"{i:08d}.npz")
        drawn = rng.normal(size=(size, 128)), rng.normal(size=(size, 63))
        about = size, [1.0, 2.0, 4.0], i == 0
        pool, logits = (a.astype(np.float32) for a in drawn)
        activations._write(
            files[-1], activations.Batch(pool, logits, *map(np.array, about))
        )
    return files


@pytest.mark.parametrize("num", [50, 47, 31])
@pytest.mark.parametrize("protocol", ["paper", "clean"])
def test_summary_of_batches_is_that_of_all_together(tmp_path, extractor, num, protocol):
    extractor = extractor._replace(protocol=PROTOCOLS[protocol])
    files = write_batches(tmp_path, 5, 10)
    values = summarise(files[: -(-num // 10)], num, extractor)
    rng = np.random.default_rng(0)
    drawn = [(rng.normal(size=(10, 128)), rng.normal(size=(10, 63))) for _ in range(5)]
    pool, logits = (
        np.concatenate(a)[:num].astype(np.float32) for a in zip(*drawn, strict=True)
    )
    mean, covariance = metrics.feature_statistics(pool)
    np.testing.assert_allclose(values.mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(values.covariance, covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(values.features, pool)
    score = metrics.inception_score(
        extractor.score_logits(logits), extractor.protocol.num_splits
    )
    np.testing.assert_allclose(values.score, score, rtol=1e-9)
    rates = [10.0, 5.0, 2.5]
    names = [f"images_per_second_{stage}" for stage in activations.STAGES]
    assert values.rates == pytest.approx(dict(zip(names, rates, strict=True)))


def test_memory_does_not_grow_with_the_number_of_samples(
    tmp_path, extractor, monkeypatch
):
    monkeypatch.setattr(inception_features, "SUBSET", 100)
    files = write_batches(tmp_path, 40, 200)

    def peak(num):
        tracemalloc.start()
        summarise(files[:num], 200 * num, extractor)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(40) < 1.1 * peak(4)
