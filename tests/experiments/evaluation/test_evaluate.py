"""What an evaluation writes, prints and shows, by whatever protocol."""

import dataclasses
import doctest
import html
import json
import re

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jebm
from experiments import options
from experiments.errors import ConfigError
from experiments.evaluation import classifier, evaluate, registry
from experiments.evaluation.contract import Drawing, Evaluator, Result, Table
from experiments.evaluation.registry import EVALUATORS, create
from experiments.rundir import report
from experiments.runtime import parallel
from experiments.section import Positive
from experiments.streams import Stream
from tests.experiments.evaluation.saved import experiment_of, of_run, save_run
from tests.experiments.evaluation.test_classifier import NAMES
from tests.experiments.runs import contents
from tools.site import table

DISTANCES = {
    "frechet",
    "frechet_exact",
    "frechet_long_chain",
    "frechet_perfect",
    "frechet_posterior",
    "frechet_real",
    "frechet_untilted",
}
OF_THE_ENERGY = {
    "energy_gap_nats",
    "exact_acceptance",
    "frechet_exact",
    "frechet_long_chain",
    "frechet_untilted",
    "prior_acceptance",
    "prior_stiffness",
    "prior_rhat",
    "prior_rhat_features",
}  # chains of a few steps have no ESS
OF_THE_POSTERIOR = {
    name.replace("prior", "posterior")
    for name in OF_THE_ENERGY
    if name.startswith("prior")
}


def numbers(file):
    """What eval.json says but for what a clock decides, and without its report."""
    values = json.loads(file.read_text())
    assert 0 < values.pop("seconds") < 600
    assert values.pop("report")
    return values


@pytest.mark.slow
def test_eval_json_holds_finite_numbers_by_name_and_what_they_are_of(measured_run):
    values = numbers(measured_run / "eval.json")
    facts = classifier.load("digits")[1]
    about = {
        "step": 8,
        "seed": 0,
        "data": "digits",
        "prior": "ebm",
        "protocol": "classifier",
        "features": "32 features of digits.npz",
        "features_sha256": facts["sha256"],
        "num_samples": 40,
        "num_reference": 360,
        "prior_draws": 64 * 8,  # the second half of 16 steps
        "posterior_draws": 4 * 8,  # of one image
        "training_images": 8 * 20,
        "training_seconds": pytest.approx(8 * 20 / 1000.0),
        "training_hardware": parallel.hardware(),
        "hardware": parallel.hardware(),
    }
    assert {name: values.pop(name) for name in about} == about
    assert set(values) == DISTANCES | OF_THE_ENERGY | OF_THE_POSTERIOR
    assert all(type(value) is float for value in values.values())
    assert np.isfinite(list(values.values())).all()
    assert all(values[name] > 0 for name in DISTANCES)
    # Samples of random parameters are far from digits; digits are not.
    assert values["frechet_real"] < 0.1 * values["frechet"]
    assert 0 < values["posterior_acceptance"] < 1
    # The energies are near 0: the stiffness is that of N(0, I).
    chains = experiment_of().chains
    flat = chains["prior"]["step_size"] ** 2 / 4
    assert values["prior_stiffness"] == pytest.approx(flat, rel=0.1)
    assert values["posterior_stiffness"] > chains["posterior"]["step_size"] ** 2 / 4


@pytest.mark.slow
def test_evaluating_again_gives_the_same_numbers_and_other_seeds_and_chains_others(
    copied_run, measured_run, capsys
):
    first = numbers(measured_run / "eval.json")
    (copied_run / "eval.json").unlink()
    evaluate.evaluate(of_run(copied_run), copied_run)
    assert numbers(copied_run / "eval.json") == first
    printed = capsys.readouterr().out
    assert f"Evaluating {copied_run} at step 8." in printed
    assert f"wrote {copied_run / 'eval.json'}" in printed
    for name in DISTANCES:
        assert re.search(rf"^  {name} +{first[name]:.4g}$", printed, re.M)

    before = contents(copied_run)
    changes = {"seed": 1, "chains.prior.num_steps": 5}
    evaluate.evaluate(of_run(copied_run, **changes), copied_run)
    after = contents(copied_run)
    name = "eval_chains.prior.num_steps=5,seed=1.json"
    assert set(after) == {*before, name}
    assert {k for k in before if after[k] != before[k]} == {"report.html"}
    other = numbers(copied_run / name)
    assert other["seed"] == 1
    for field in DISTANCES - {"frechet_real"}:
        assert other[field] != first[field]
    assert other["frechet_real"] == first["frechet_real"]  # no noise of the run


@pytest.mark.slow
def test_tempered_sampler_is_judged_beside_the_chain_where_it_is_to_be(
    copied_run, measured_run
):
    tempered = of_run(copied_run, **{"eval.num_temperatures": 3})
    evaluate.evaluate(tempered, copied_run)
    values = numbers(copied_run / "eval.json")
    plain = numbers(measured_run / "eval.json")
    added = {"frechet_tempered", "tempered_exchange"}
    added |= {"tempered_rhat", "tempered_rhat_features"}
    assert set(values) - set(plain) == {*added, "tempered_draws"}
    assert {name: values[name] for name in plain} == plain
    assert values["frechet_tempered"] not in (values["frechet"], values["frechet_real"])
    # The energies are near 0: all exchanges but a small share are accepted.
    assert 0.9 < values["tempered_exchange"] <= 1
    # One rung in three is drawn again at every step.
    assert values["tempered_rhat"] < plain["prior_rhat"]
    page = (copied_run / "report.html").read_text()
    assert "samples by the tempered sampler, with as many steps" in page
    assert "<td>tempered chain</td>" in page


@pytest.mark.slow
def test_chain_whose_steps_are_refused_is_warned_of(copied_run, capsys):
    evaluate.evaluate(of_run(copied_run, **{"chains.prior.step_size": 4.0}), copied_run)
    words = r"prior chain accepts \d+% of its steps of 4 and hardly moves"
    assert re.search(words, capsys.readouterr().out)
    assert re.search(words, (copied_run / "report.html").read_text())


@pytest.mark.slow
def test_numbers_of_a_chain_that_diverges_are_left_out_aloud(copied_run, capsys):
    changes = {"chains.prior.name": "langevin", "chains.prior.step_size": 1000.0}
    evaluate.evaluate(of_run(copied_run, **changes), copied_run)
    name = "chains.prior.name=langevin,chains.prior.step_size=1000.0"
    file = copied_run / f"eval_{name}.json"
    values = numbers(file)
    assert "frechet_long_chain" not in values
    line = r"(?m)^  frechet_long_chain +not finite, left out$"
    assert re.search(line, capsys.readouterr().out)
    floats = [value for value in values.values() if type(value) is float]
    assert len(floats) > 5
    assert np.isfinite(floats).all()
    cells = dict(json.loads(file.read_text())["report"][0]["tables"][0]["rows"])
    assert cells["samples by a chain 4 times as long"] is None
    assert cells["one half of the held-out images against the other"] > 0
    page = (copied_run / "report.html").read_text()
    assert "<td>samples by a chain 4 times as long</td><td>-</td>" in page


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("eval.protocol", "fid", ["eval.protocol", "'fid'", "'classifier'"]),
        ("eval.num_samples", 1, ["eval.num_samples", "at least 2", "1"]),
        ("eval.batch_size", 0, ["eval.batch_size", "at least 1", "0"]),
        ("eval.num_temperatures", 1, ["eval.num_temperatures", "0 or at least 2", "1"]),
        ("eval.ood.nothing", 1, ["config.eval.ood", "'nothing'", "'chosen_on'"]),
        ("eval.odd.chosen_on", "x", ["section of config.eval", "'odd'", "'ood'"]),
        ("learning.batch_size", 40, ["learning.batch_size", "20 there, 40 here"]),
    ],
)
def test_evaluation_that_cannot_be_is_refused(
    copied_run, measured_run, field, value, words
):
    with pytest.raises(ConfigError) as refused:
        evaluate.evaluate(of_run(copied_run, **{field: value}), copied_run)
    message = str(refused.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert contents(copied_run) == contents(measured_run)


def test_a_data_set_without_a_classifier_is_refused_by_that_protocol():
    fields = {"data.name": "cifar10", "eval.protocol": "classifier"}
    reason = create(experiment_of(**fields)).lacks(experiment_of(**fields))
    assert all(word in reason for word in ["'cifar10' has no classifier", *NAMES])


def test_what_cannot_be_evaluated_is_said_at_the_end_of_training(
    copied_run, monkeypatch, capsys
):
    sentence = "Not evaluated: data set 'digits' has no classifier; known: []"
    evaluate.evaluate_if_possible(of_run(copied_run), copied_run)
    printed = capsys.readouterr().out
    assert "Not evaluated" not in printed
    assert f"wrote {copied_run / 'eval.json'}" in printed
    whole = numbers(copied_run / "eval.json")
    monkeypatch.setattr(classifier, "known", lambda *_: [])
    asked = of_run(copied_run, **{"eval.protocol": "classifier"})
    file = copied_run / "config.json"
    file.write_text(file.read_text().replace('"auto"', '"classifier"'))
    evaluate.evaluate_if_possible(asked, copied_run)
    assert sentence in capsys.readouterr().out
    rest = numbers(copied_run / "eval.json")
    assert whole["prior_acceptance"] == rest["prior_acceptance"]
    assert not [name for name in rest if name.startswith("frechet")]
    page = html.unescape((copied_run / "report.html").read_text())
    assert "Not evaluated by 'classifier': data set 'digits' has no" in page
    assert table.measured(copied_run) == []


@pytest.mark.slow
def test_gaussian_twin_is_evaluated_without_what_is_of_the_energy(tmp_path):
    path = save_run(tmp_path / "run", prior="gaussian")
    evaluate.evaluate(of_run(path), path)
    values = numbers(path / "eval.json")
    assert values["prior"] == "gaussian"
    expected = (DISTANCES - OF_THE_ENERGY) | OF_THE_POSTERIOR | {"training_seconds"}
    assert {name for name in values if type(values[name]) is float} == expected
    assert not OF_THE_ENERGY & values.keys()


def test_what_is_made_up_is_named_so_in_the_file_and_on_the_pictures(
    tmp_path, monkeypatch
):
    path = save_run(tmp_path / "run", **{"data.name": "fake"})
    monkeypatch.setitem(EVALUATORS, "brightness", Brightness)
    evaluate.evaluate(of_run(path, **{"eval.protocol": "brightness"}), path)
    values = numbers(path / "eval_brightness.json")
    assert values["data"] == "FAKE DATA in the shape of digits"
    with Image.open(path / "figures" / "brightness.png") as picture:
        assert (220, 20, 60) in {
            colour for _, colour in picture.convert("RGB").getcolors(1 << 24)
        }  # crimson


@dataclasses.dataclass(frozen=True)
class Brightness(Evaluator):
    """The mean brightness of samples: an evaluator that nothing else knows."""

    SECTION = "eval.brightness"
    num_samples: Positive = 10

    def lacks(self, experiment):
        return "a lamp is missing" if experiment.seed == 13 else ""

    def evaluate(self, key, run):
        x = jebm.sample(key, run.model, run.params, self.num_samples).x
        mean = float(x.mean())
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().hist(x.ravel())
        return Result(
            {"brightness": mean, "darkness": float("nan")},
            {"bright_samples": self.num_samples},
            f"Mean brightness of {self.num_samples} samples & more.",
            (Table(["", "mean"], [["of <samples>", mean], ["of none", float("nan")]]),),
            ("It is too dark.",),
            {"brightness": Drawing(figure, "How bright samples are")},
        )


@pytest.fixture
def brightness(copied_run, monkeypatch, capsys):
    """A run, evaluated by `Brightness`, and what was printed."""
    monkeypatch.setitem(EVALUATORS, "brightness", Brightness)
    experiment = of_run(copied_run, **{"eval.protocol": "brightness"})
    evaluate.evaluate(experiment, copied_run)
    return copied_run, capsys.readouterr().out


def test_an_evaluator_that_is_a_line_of_the_table_is_in_the_file(brightness):
    path, _ = brightness
    values = numbers(path / "eval_brightness.json")
    model, params = jebm.load(path)
    key = jax.random.fold_in(jax.random.key(0), Stream.EVALUATION)
    expected = float(jebm.sample(key, model, params, 10).x.mean())
    assert values["brightness"] == expected
    assert (values["bright_samples"], values["protocol"]) == (10, "brightness")
    assert "darkness" not in values
    assert "prior_stiffness" in values  # what goes with every evaluator


def test_an_evaluator_that_is_a_line_of_the_table_is_on_the_screen(brightness):
    path, printed = brightness
    values = numbers(path / "eval_brightness.json")
    lines = printed.splitlines()
    for name, text in (
        ("brightness", f"{values['brightness']:.4g}"),
        ("darkness", "not finite, left out"),
    ):
        assert re.search(rf"(?m)^  {name} +{re.escape(text)}$", printed)
    assert "warning: It is too dark." in lines
    assert f"wrote {path / 'figures' / 'brightness.png'}" in lines
    assert f"wrote {path / 'eval_brightness.json'}" in lines


def test_an_evaluator_that_is_a_line_of_the_table_is_on_the_page(brightness):
    path, _ = brightness
    values = numbers(path / "eval_brightness.json")
    page = (path / "report.html").read_text()
    assert "<p>Mean brightness of 10 samples &amp; more.</p>" in page
    assert f"<td>of &lt;samples&gt;</td><td>{values['brightness']:.4g}</td>" in page
    assert "<td>of none</td><td>-</td>" in page
    assert '<p class="warning">It is too dark.</p>' in page
    assert "<figcaption>How bright samples are</figcaption>" in page


def test_an_evaluator_that_is_a_line_of_the_table_is_in_the_table_of_runs(brightness):
    path, _ = brightness
    values = numbers(path / "eval_brightness.json")
    (made,) = [t for t in table.tables([path]) if "brightness" in t.title]
    assert made.head[:2] == ["", "mean"]
    assert made.rows[0][:2] == [
        "run, joint EBM prior: of <samples>",
        f"{values['brightness']:.4g}",
    ]
    assert "It is too dark." in made.rows[0][2]


def test_options_of_an_evaluator_are_its_section_and_its_own_defaults(monkeypatch):
    monkeypatch.setitem(EVALUATORS, "brightness", Brightness)
    experiment = experiment_of(**{"eval.protocol": "brightness"})
    assert create(experiment) == Brightness(num_samples=10)
    values = experiment.to_dict()
    values["eval"]["brightness"] = {"num_samples": 3}
    assert create(options.read(values)) == Brightness(num_samples=3)
    values["eval"]["brightness"] = {"num_samples": 0}
    with pytest.raises(ConfigError, match=r"eval\.brightness\.num_samples must be at"):
        create(options.read(values))
    with pytest.raises(ConfigError, match=r"known: .*'classifier'"):
        create(experiment_of(**{"eval.protocol": "darkness"}))


def test_what_an_evaluator_lacks_is_refused_or_said(copied_run, monkeypatch, capsys):
    monkeypatch.setitem(EVALUATORS, "brightness", Brightness)
    changes = {"eval.protocol": "brightness", "seed": 13}
    experiment = of_run(copied_run, **changes)
    with pytest.raises(ConfigError, match=r"^a lamp is missing$"):
        evaluate.evaluate(experiment, copied_run)
    evaluate.evaluate_if_possible(experiment, copied_run)
    assert capsys.readouterr().out.startswith("Not evaluated: a lamp is missing.\n")
    assert (copied_run / "eval_brightness_seed=13.json").is_file()


def test_shipped_evaluators_have_their_defaults_in_the_configuration_alone():
    for cls in EVALUATORS.values():
        for field in dataclasses.fields(cls):
            assert field.default is dataclasses.MISSING, (cls, field.name)
    assert {name: type(create_default(name)) for name in EVALUATORS} == EVALUATORS


def create_default(name):
    """The evaluator of a name, of the default options, unchecked."""
    cls = EVALUATORS[name]
    sections = experiment_of().eval.evaluators
    return cls.of(sections.get(cls.SECTION.removeprefix("eval."), {}))


def test_file_of_an_older_version_is_shown_as_a_plain_table(copied_run):
    values = json.loads((copied_run / "eval.json").read_text())
    values.pop("report")
    values["auroc_noise"] = [0.25, 0.5]
    (copied_run / "eval.json").write_text(json.dumps(values))
    report.write(copied_run)
    page = (copied_run / "report.html").read_text()
    assert "at step 8, measured by an older version." in page
    assert f"<td>frechet</td><td>{values['frechet']:.4g}</td>" in page
    assert "<td>auroc_noise</td><td>0.25, 0.5</td>" in page
    assert "<td>features</td>" not in page


@pytest.mark.parametrize("module", [evaluate, registry])
def test_examples_of_the_docstrings(module):
    assert doctest.testmod(module).failed == 0
