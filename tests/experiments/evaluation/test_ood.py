import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments import options
from experiments.data.loaders import LOADERS, Options, Split
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import evaluate, layer_scores, ood, outliers, surprise
from experiments.evaluation.layer_scores import terms_of
from experiments.evaluation.registry import create
from experiments.models import build_model
from experiments.rundir import report
from experiments.runs import open_run
from experiments.streams import Stream
from tests.experiments.evaluation.saved import experiment_of, of_run, run_of, save_run

SHAPE = (8, 8, 1)
OUTLIERS = ("colours", "noise", "inverted", "rotated", "constant")
MEASURES = ("auroc", "auprc", "fpr80")


@pytest.fixture
def images():
    return LOADERS["digits"](Options())["test"].images[:6]


@pytest.fixture(scope="module")
def colours():
    """A data set of 30 colour pictures of another size, each of one colour."""
    values = np.random.default_rng(0).integers(0, 256, (30, 1, 1, 3), np.uint8)
    split = Split(np.broadcast_to(values, (30, 20, 10, 3)), np.zeros(30, int))
    with pytest.MonkeyPatch.context() as patch:
        loader = lambda data_dir: {"train": split, "test": split}  # noqa: E731
        patch.setitem(LOADERS, "colours", loader)
        yield split.images


@pytest.fixture(scope="module")
def against(tmp_path_factory, colours):
    """The directory of a run that was evaluated against images of elsewhere."""
    path = save_run(
        tmp_path_factory.mktemp("ood") / "run",
        **{
            "eval.protocol": "ood",
            "eval.ood.outliers": OUTLIERS,
            "eval.num_posterior_samples": 1,
        },
    )
    evaluate.evaluate(of_run(path), path)
    return path


def made_of(name, images):
    """Outliers of a name, as the digits have them."""
    return outliers.outliers(name, images, experiment_of().data)


@pytest.mark.parametrize("name", sorted(outliers.MADE))
def test_outliers_are_made_again_of_the_shape_of_the_images(name, images):
    made = made_of(name, images)
    assert made.shape == images.shape
    assert made.dtype == np.uint8
    assert (made != images).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(made, made_of(name, images))


def test_outliers_are_what_they_are_called(images):
    made = {name: made_of(name, images) for name in outliers.MADE}
    np.testing.assert_array_equal(made["inverted"] + images, np.full_like(images, 255))
    np.testing.assert_array_equal(made["rotated"][:, 0], images[:, :, -1])
    assert np.ptp(made["constant"], axis=(1, 2, 3)).max() == 0
    assert made["constant"][:, 0, 0, 0].tolist() == [0, 51, 102, 153, 204, 255]
    np.testing.assert_array_equal(made["exchanged"][:, :4, 4:], images[:, 4:, :4])
    assert np.unique(made["noise"]).size > 100
    large = np.full((40, 28, 28, 3), 100, np.uint8)
    letters = made_of("letters", large)
    ink = (letters > 127).mean(axis=(1, 2, 3))
    assert ink.min() > 0.01 and ink.max() < 0.5  # strokes on black, each of its own
    assert len(np.unique(letters, axis=0)) == 40
    assert (letters[..., 0] == letters[..., 2]).all()


@pytest.mark.parametrize("name", [*sorted(outliers.MADE), "colours"])
def test_outliers_of_binary_images_are_binary(name, colours):
    rng = np.random.default_rng(0)
    binary = rng.integers(0, 2, (20, *SHAPE)).astype(np.uint8) * np.uint8(255)
    made = made_of(name, binary)
    assert made.shape == binary.shape
    assert made.dtype == np.uint8
    assert set(np.unique(made)) <= {0, 255}
    np.testing.assert_array_equal(made, made_of(name, binary))
    if name == "colours":  # as their grey says
        grey = made_of(name, rng.integers(0, 256, (20, *SHAPE), np.uint8))
        difference = made.mean(axis=(1, 2, 3)) - grey.mean(axis=(1, 2, 3))
        assert abs(difference).max() < 4 * 127.5 / 8


def test_photographs_of_elsewhere_are_cut_and_not_squeezed(monkeypatch, images):
    wide = np.zeros((6, 8, 24, 1), np.uint8)
    wide[:, :, 8:16] = 200
    split = Split(wide, np.zeros(6, int))
    monkeypatch.setitem(LOADERS, "wide", lambda options: {"test": split})
    np.testing.assert_array_equal(made_of("wide", images), np.full_like(images, 200))


def test_outliers_of_a_folder_are_sought_where_data_is_prepared(images, monkeypatch):
    seen = []
    split = Split(images, np.zeros(len(images), int))
    loader = lambda options: seen.append(options) or {"test": split}  # noqa: E731
    monkeypatch.setitem(LOADERS, "others", loader)
    for name in ("folder", "digits"):
        fields = {"data.name": name, "data.data_dir": "pictures"}
        data = experiment_of(**fields, **{"data.image_shape": (8, 8, 1)}).data
        outliers.outliers("others", images, data)
    assert [options.data_dir for options in seen] == [None, "pictures"]


def test_images_of_another_data_set_are_converted(images, colours):
    made = made_of("colours", images)
    grey = colours[:6, 0, 0] @ [0.299, 0.587, 0.114]
    assert made.shape == (6, *SHAPE)
    expected = np.broadcast_to(grey[:, None, None, None], made.shape)
    np.testing.assert_allclose(made, expected, atol=1)


def test_a_quarter_turn_needs_squares():
    with pytest.raises(ConfigError, match=r"'rotated' needs squares, got \(4, 6\)"):
        made_of("rotated", np.zeros((2, 4, 6, 1), np.uint8))


@pytest.mark.slow
def test_scores_are_those_of_every_k(images):
    model = jebm.build({"image_shape": SHAPE})
    params = jebm.init(jax.random.key(0), model)
    sizes = {"eval.batch_size": 6, "eval.num_posterior_samples": 2}
    run, key = run_of(model, params, {}, **sizes), jax.random.key(1)
    scores = terms_of(key, run, images).scores
    first = jax.random.fold_in(key, 0)  # the key of the first batch
    for k, score in enumerate(scores):
        x = to_unit(jnp.asarray(images))
        expected = jebm.scores.score(first, model, params, x, k, num_samples=2)
        np.testing.assert_allclose(score, expected, rtol=1e-5)


def test_false_positives_are_counted_where_four_of_five_are_found():
    inside, outside = np.arange(10.0), np.array([20.0, 19.0, 18.0, 6.5, 0.5])
    assert ood.areas(inside, outside)["fpr80"] == 0.3  # 7, 8, 9 lie above 6.5


@pytest.mark.slow
def test_eval_json_tells_every_score_of_every_set(against):
    values = json.loads((against / "eval.json").read_text())
    assert values["statistics"] == ["-score(0)", "-score(1)", "LLR>1"]
    for name in ("exchanged", *OUTLIERS):
        for measure in MEASURES:
            row = values[f"{measure}_{name}"]
            assert len(row) == 3
            assert all(0 <= value <= 1 for value in row)
    assert values["num_inside"] == values["num_outside"] == 30  # as many as colours has
    # The same again, each set with a key of its own.
    run = open_run(of_run(against), against)
    images, key = run.heldout[:30], run.key(Stream.EVALUATION)
    inside, outside = (
        -terms_of(jax.random.fold_in(key, i), run, x).scores[0]
        for i, x in ((0, images), (4, made_of("inverted", images)))
    )
    expected = ood.areas(inside, outside)
    for measure in MEASURES:
        assert values[f"{measure}_inverted"][0] == pytest.approx(expected[measure])


@pytest.mark.slow
def test_with_images_of_training_there_is_a_surprise(against, tmp_path):
    run = open_run(of_run(against), against)
    evaluator = ood.Ood(("noise",), "exchanged", num_calibration=50)
    result = evaluator.evaluate(run.key(Stream.EVALUATION), run)
    assert result.facts["statistics"][-1] == surprise.NAME
    # Scores of the same images by the same keys are those of the run without it.
    values = json.loads((against / "eval.json").read_text())
    assert len(result.numbers["auroc_noise"]) == len(values["auroc_noise"]) + 1


@pytest.mark.slow
def test_the_score_is_chosen_on_images_that_are_not_in_the_table(against):
    values = json.loads((against / "eval.json").read_text())
    chosen = int(np.argmax(values["auroc_exchanged"]))
    assert values["chosen"] == values["statistics"][chosen]
    for name in OUTLIERS:
        for measure in MEASURES:
            expected = values[f"{measure}_{name}"][chosen]
            assert values[f"chosen_{measure}_{name}"] == expected
    assert "chosen_auroc_exchanged" not in values


def test_histograms_name_each_statistic_and_each_set():
    rng = np.random.default_rng(0)
    inside, noise, mine = (
        {"-score(0)": rng.normal(size=9), "LLR>1": rng.normal(size=9)} for _ in range(3)
    )
    axes = ood.histograms(inside, {"noise": noise, "mine": mine}, 1).axes
    titles = [axis.get_title() for axis in axes]
    assert titles == ["-score(0)", "LLR>1 (chosen)", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["noise", "", "mine", ""]


def test_report_shows_the_table_and_the_histograms(against):
    values = json.loads((against / "eval.json").read_text())
    report.write(against)
    page = (against / "report.html").read_text()
    assert f"{values['chosen']} is the one to use" in page.replace("&gt;", ">")
    for name in OUTLIERS:
        assert f"<td>{name}</td><td>{values[f'auroc_{name}'][0]:.4g}</td>" in page
    assert (against / "figures" / "ood.png").stat().st_size > 10_000
    assert "Scores of held-out images and of images from elsewhere" in page


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outliers": ("clouds",)}, r"unknown eval\.ood\.outliers 'clouds'; known: \["),
        ({"chosen_on": "clouds"}, r"unknown eval\.ood\.chosen_on 'clouds'"),
        ({"outliers": ()}, r"eval\.ood\.outliers must name sets"),
        ({"chosen_on": "noise"}, r"other than eval\.ood\.chosen_on"),
        ({"outliers": ("cifar10",)}, r"'cifar10' is not prepared"),
    ],
)
def test_outliers_that_cannot_be_are_refused(fields, message):
    changes = {f"eval.ood.{name}": value for name, value in fields.items()}
    changes["data.data_dir"] = "/nowhere"
    with pytest.raises(ConfigError, match=message):
        create(experiment_of(**{"eval.protocol": "ood"}, **changes))


def test_where_images_are_made_up_so_are_those_of_elsewhere(images):
    fake = experiment_of(**{"data.name": "fake", "data.data_dir": "/nowhere"}).data
    outliers.require("cifar10", fake)
    made = outliers.outliers("cifar10", images, fake)
    assert made.shape == images.shape


def test_cifar10_against_svhn_scores_with_a_ladder_of_five_layers(monkeypatch):
    from experiments.configs import cifar10_svhn_ood

    experiment = options.read(cifar10_svhn_ood.get_config())
    monkeypatch.setattr(outliers, "require", lambda name, data: None)
    assert isinstance(create(experiment), ood.Ood)
    model = build_model(experiment, (32, 32, 3))
    assert len(model.backbone.latent_shapes) == 5
    assert model.backbone.has_encoder


@pytest.mark.parametrize("module", [layer_scores, ood, outliers])
def test_examples_of_the_docstrings(module):
    assert doctest.testmod(module).failed == 0
