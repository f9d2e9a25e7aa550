import csv
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jebm
from experiments.data.loaders import LOADERS, Options
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import score
from tests.experiments.evaluation.saved import of_run

SHAPE = (8, 8, 1)


@pytest.fixture
def folder(tmp_path):
    """Twelve digits, and what is not an image."""
    path = tmp_path / "mine"
    path.mkdir()
    images = LOADERS["digits"](Options())["test"].images[:12]
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(path / f"digit{i:02d}.png")
    (path / "notes.txt").write_text("not an image")
    (path / "deeper").mkdir()
    return path


def test_images_of_the_models_shape_are_read_as_they_are(folder):
    files, images = score.read_folder(folder, SHAPE)
    assert [file.name for file in files] == [f"digit{i:02d}.png" for i in range(12)]
    expected = LOADERS["digits"](Options())["test"].images[:12] / np.float32(255)
    np.testing.assert_array_equal(images, expected)


def test_other_sizes_and_colours_are_converted(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(tmp_path / "red.png")
    _, grey = score.read_folder(tmp_path, SHAPE)
    np.testing.assert_allclose(grey, np.full((1, *SHAPE), 76 / 255), atol=1e-6)
    _, colours = score.read_folder(tmp_path, (6, 4, 3))
    np.testing.assert_array_equal(colours, np.broadcast_to([1.0, 0, 0], (1, 6, 4, 3)))


def test_a_folder_without_images_a_damaged_one_and_none_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no image in .*deeper"):
        score.read_folder(folder / "deeper", SHAPE)
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        score.read_folder(tmp_path / "nowhere", SHAPE)
    file = folder / "digit03.png"
    whole = file.read_bytes()
    for size in (60, 10):  # its pixels, and its header
        file.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"digit03\.png cannot be read"):
            score.read_folder(folder, SHAPE)


@pytest.fixture
def titles(monkeypatch):
    """Of the images of each sheet that is drawn."""
    kept, draw = [], score._sheet

    def keeping(*arguments):
        figure = draw(*arguments)
        kept.append([axis.get_title() for axis in figure.axes])
        return figure

    monkeypatch.setattr(score, "_sheet", keeping)
    return kept


@pytest.mark.slow
def test_table_holds_the_scores_and_the_sheet_is_sorted_by_them(
    copied_run, folder, titles, capsys
):
    path = copied_run
    score.score(of_run(path), path, folder)
    with (path / "scores" / "mine.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0]) == ["file", "score_0_nats", "score_1_nats", "llr_1_nats"]
    assert [row["file"] for row in rows] == [f"digit{i:02d}.png" for i in range(12)]
    table = np.array(
        [[float(v) for k, v in row.items() if k != "file"] for row in rows]
    )
    np.testing.assert_allclose(table[:, 2], table[:, 0] - table[:, 1], atol=1e-3)
    model, params = jebm.load(path)
    x = to_unit(jnp.asarray(LOADERS["digits"](Options())["test"].images[:12]))
    for k in (0, 1):
        draws = np.stack(
            [
                jebm.scores.score(jax.random.key(i), model, params, x, k, num_samples=5)
                for i in range(8)
            ]
        )
        far = np.abs(table[:, k] - draws.mean(axis=0)) / draws.std(axis=0, ddof=1)
        assert np.median(far) < 2  # a ninth draw of the same mean of five
        assert far.max() < 8
    order = np.argsort(table[:, 0], kind="stable")  # low scores are anomalous
    assert [title.split("\n")[0] for title in titles[0] if title] == [
        rows[i]["file"] for i in order
    ]
    assert "mine.png" in capsys.readouterr().out
    assert "Images of mine<" in (path / "report.html").read_text()


@pytest.mark.slow
def test_a_sheet_of_many_images_spans_the_order(tmp_path, titles):
    values = np.arange(250.0)
    files = [tmp_path / f"{i}.png" for i in range(250)]
    score._sheet(files, np.zeros((250, 4, 4, 3)), values)
    shown = [int(title.split(".")[0]) for title in titles[0]]
    assert len(shown) == 100
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (249, 0)


def white_share(figure, file):
    figure.savefig(file)
    with Image.open(file) as opened:
        return np.mean(np.asarray(opened.convert("L")) > 250)


@pytest.mark.parametrize("num", [1, 2, 3, 11])
def test_a_sheet_of_few_images_is_mostly_images(tmp_path, num):
    files = [pathlib.Path(f"{i}.png") for i in range(num)]
    figure = score._sheet(files, np.zeros((num, 8, 8, 1)), np.arange(float(num)))
    assert white_share(figure, tmp_path / "sheet.png") < 0.7


@pytest.mark.parametrize(
    "name", ["cost_$5_$6.png", "$\\frac{$.png", "a\nb.png", os.fsdecode(b"caf\xe9.png")]
)
def test_any_name_of_a_file_is_drawn_and_written(tmp_path, name):
    file = pathlib.Path(name)
    figure = score._sheet([file], np.zeros((1, 4, 4, 3)), np.zeros(1))
    figure.savefig(tmp_path / "sheet.png")
    score._write_table(tmp_path / "a.csv", [file], (np.zeros(1), np.ones(1)))
    with (tmp_path / "a.csv").open(errors="surrogateescape", newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert row["file"] == name


def test_folders_of_one_name_are_told_apart(tmp_path):
    out = tmp_path / "scores"
    out.mkdir()
    normal, odd = (tmp_path / kind / "images" for kind in ("normal", "odd"))
    assert score.name_of(out, normal) == "images"
    other = score.name_of(out, odd)
    assert other.startswith("images-")
    assert [score.name_of(out, folder) for folder in (normal, odd)] == ["images", other]


@pytest.mark.slow
def test_scores_of_a_folder_with_odd_names_are_on_the_page(copied_run, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9 $1")
    folder.mkdir()
    image = LOADERS["digits"](Options())["test"].images[0]
    Image.fromarray(image[..., 0]).save(folder / "$5_$6.png")
    score.score(of_run(copied_run), copied_run, folder)
    page = (copied_run / "report.html").read_text("utf-8")
    assert "caf\\udce9 $1<" in page and "caf? $1, from the most" in page
