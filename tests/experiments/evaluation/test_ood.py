import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments.configs import test
from experiments.data import datasets
from experiments.data.datasets import Split
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import evaluate, ood
from experiments.rundir import report
from experiments.streams import Role
from tests.experiments.runs import run

SHAPE = (8, 8, 1)
OUTLIERS = ("colours", "noise", "inverted", "rotated", "constant")
MEASURES = ("auroc", "auprc", "fpr80")


@pytest.fixture
def images():
    return datasets.load("digits")["test"].images[:6]


@pytest.fixture(scope="module")
def colours():
    """A data set of 30 colour pictures of another size, each of one colour."""
    values = np.random.default_rng(0).integers(0, 256, (30, 1, 1, 3), np.uint8)
    split = Split(np.broadcast_to(values, (30, 20, 10, 3)), np.zeros(30, int))
    with pytest.MonkeyPatch.context() as patch:
        loader = lambda data_dir: {"train": split, "test": split}  # noqa: E731
        patch.setitem(datasets.LOADERS, "colours", loader)
        yield split.images


@pytest.fixture(scope="module")
def told(tmp_path_factory, colours):
    """The directory of a run that was evaluated against images of elsewhere."""
    config, path = test.get_config(), tmp_path_factory.mktemp("ood") / "run"
    config.eval.protocol = "ood"
    config.eval.ood.outliers = OUTLIERS
    config.eval.num_posterior_samples = 1
    run(config, path)
    evaluate.evaluate(config, path)
    return path


@pytest.mark.parametrize("name", sorted(ood.MADE))
def test_outliers_are_made_anew_of_the_shape_of_the_images(name, images):
    made = ood.outliers(name, images, None)
    assert made.shape == images.shape
    assert made.dtype == np.uint8
    assert (made != images).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(made, ood.outliers(name, images, None))


def test_outliers_are_what_they_are_called(images):
    made = {name: ood.outliers(name, images, None) for name in ood.MADE}
    np.testing.assert_array_equal(made["inverted"] + images, np.full_like(images, 255))
    np.testing.assert_array_equal(made["rotated"][:, 0], images[:, :, -1])
    assert np.ptp(made["constant"], axis=(1, 2, 3)).max() == 0
    assert made["constant"][:, 0, 0, 0].tolist() == [0, 51, 102, 153, 204, 255]
    np.testing.assert_array_equal(made["exchanged"][:, :4, 4:], images[:, 4:, :4])
    assert np.unique(made["noise"]).size > 100


def test_images_of_another_data_set_are_converted(images, colours):
    made = ood.outliers("colours", images, None)
    grey = colours[:6, 0, 0] @ [0.299, 0.587, 0.114]
    assert made.shape == (6, *SHAPE)
    expected = np.broadcast_to(grey[:, None, None, None], made.shape)
    np.testing.assert_allclose(made, expected, atol=1)


def test_a_quarter_turn_needs_squares():
    with pytest.raises(ConfigError, match=r"'rotated' needs squares, got \(4, 6\)"):
        ood.outliers("rotated", np.zeros((2, 4, 6, 1), np.uint8), None)


def test_scores_are_those_of_every_k(images):
    model = jebm.build({"image_shape": SHAPE})
    params = jebm.init(jax.random.key(0), model)
    options = test.get_config().eval
    options.batch_size, options.num_posterior_samples = 6, 2
    key = jax.random.key(1)
    scores = ood.scores_of(key, model, params, images, options)
    first = jax.random.fold_in(key, 0)  # the key of the first batch
    for k, found in enumerate(scores):
        x = to_unit(jnp.asarray(images))
        expected = jebm.scores.score(first, model, params, x, k, num_samples=2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    as_floats = ood.scores_of(key, model, params, np.asarray(x), options)
    np.testing.assert_allclose(as_floats, scores, rtol=1e-5)


def test_false_positives_are_counted_where_four_of_five_are_found():
    inside, outside = np.arange(10.0), np.array([20.0, 19.0, 18.0, 6.5, 0.5])
    assert ood.areas(inside, outside)["fpr80"] == 0.3  # 7, 8, 9 lie above 6.5


def test_eval_json_tells_every_score_of_every_set(told):
    found = json.loads((told / "eval.json").read_text())
    assert found["statistics"] == ["-score(0)", "-score(1)", "LLR>1"]
    for name in ("exchanged", *OUTLIERS):
        for measure in MEASURES:
            values = found[f"{measure}_{name}"]
            assert len(values) == 3
            assert all(0 <= value <= 1 for value in values)
    assert found["num_inside"] == found["num_outside"] == 30  # as many as colours has
    # The same again, each set with a key of its own.
    model, params = jebm.load(told)
    images = datasets.load("digits")["test"].images[:30]
    key = jax.random.fold_in(jax.random.key(0), Role.EVALUATION)
    options = test.get_config().eval
    options.num_posterior_samples = 1
    inside, outside = (
        -ood.scores_of(jax.random.fold_in(key, i), model, params, x, options)[0]
        for i, x in ((0, images), (4, ood.outliers("inverted", images, None)))
    )
    expected = ood.areas(inside, outside)
    for measure in MEASURES:
        assert found[f"{measure}_inverted"][0] == pytest.approx(expected[measure])


def test_the_score_is_chosen_on_images_that_are_not_in_the_table(told):
    found = json.loads((told / "eval.json").read_text())
    chosen = int(np.argmax(found["auroc_exchanged"]))
    assert found["chosen"] == found["statistics"][chosen]
    for name in OUTLIERS:
        for measure in MEASURES:
            expected = found[f"{measure}_{name}"][chosen]
            assert found[f"chosen_{measure}_{name}"] == expected
    assert "chosen_auroc_exchanged" not in found


def test_histograms_name_each_statistic_and_each_set(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ood.plt, "close", drawn.append)
    rng = np.random.default_rng(0)
    values = [
        {"-score(0)": rng.normal(size=9), "LLR>1": rng.normal(size=9)} for _ in range(3)
    ]
    ood.histograms(
        values[0], {"noise": values[1], "mine": values[2]}, 1, tmp_path / "p"
    )
    axes = drawn[0].axes
    titles = [axis.get_title() for axis in axes]
    assert titles == ["-score(0)", "LLR>1 (chosen)", "", ""]
    assert [axis.get_ylabel() for axis in axes] == ["noise", "", "mine", ""]


def test_report_shows_the_table_and_the_histograms(told):
    found = json.loads((told / "eval.json").read_text())
    report.write(told)
    page = (told / "report.html").read_text()
    assert f"{found['chosen']} was chosen on exchanged" in page.replace("&gt;", ">")
    for name in OUTLIERS:
        assert f"<td>{name}</td><td>{found[f'auroc_{name}'][0]:.4g}</td>" in page
    assert (told / "figures" / "ood.png").stat().st_size > 10_000
    assert "Scores of held-out images and of images of elsewhere" in page


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"ood_outliers": ("clouds",)},
            r"unknown eval\.ood_outliers 'clouds'; known: \[",
        ),
        ({"ood_chosen_on": "clouds"}, r"unknown eval\.ood_chosen_on 'clouds'"),
        ({"ood_outliers": ()}, r"eval\.ood_outliers must name sets"),
        ({"ood_chosen_on": "noise"}, r"other than eval\.ood_chosen_on"),
    ],
)
def test_outliers_that_cannot_be_are_refused_before_training(
    fields, message, test_config, tmp_path
):
    test_config.eval.protocol = "ood"
    test_config.eval.update(fields)
    with pytest.raises(ConfigError, match=message):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cifar10_against_svhn_scores_with_a_ladder_of_five_layers():
    from experiments.configs import cifar10_svhn_ood
    from experiments.models import build_model

    config = cifar10_svhn_ood.get_config()
    ood.check(config.eval)
    model = build_model(config, (32, 32, 3))
    assert len(model.backbone.latent_shapes) == 5
    assert model.backbone.has_encoder
