import csv
import dataclasses
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jebm
from experiments.data.decoding import fit
from experiments.data.loaders import LOADERS, Options
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import score
from experiments.runs import Later, open_run
from tests.data_files import encoded, put, random_images
from tests.experiments.evaluation.saved import of_run
from tools.data.named import named

SHAPE = (8, 8, 1)


@pytest.fixture
def folder(tmp_path):
    """Twelve digits, three of them below, and what is not an image."""
    path = tmp_path / "mine"
    images = LOADERS["digits"](Options())["test"].images[:12]
    put(path, {
        f"{'below/' if i > 8 else ''}digit{i:02d}.png": encoded(image[..., 0])
        for i, image in enumerate(images)
    })  # fmt: skip
    (path / "notes.txt").write_text("not an image")
    (path / "deeper").mkdir()
    return path


NAMES = sorted(f"{'below/' if i > 8 else ''}digit{i:02d}.png" for i in range(12))


def data_of(**changes):
    """config.data of the digits, but for what is given."""
    return dataclasses.replace(named("digits"), **changes)


def read(folder, shape=SHAPE, **changes):
    return score.read_folder(folder, shape, data_of(**changes))


def test_images_of_the_models_shape_are_read_as_they_are(folder):
    names, images = read(folder)
    assert names == NAMES
    expected = LOADERS["digits"](Options())["test"].images[:12]
    np.testing.assert_array_equal(images[[*range(3, 12), *range(3)]], expected)


def test_other_sizes_and_colours_are_converted(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(tmp_path / "red.png")
    _, grey = read(tmp_path)
    np.testing.assert_array_equal(grey, np.full((1, *SHAPE), 76))
    _, colours = read(tmp_path, (6, 4, 3))
    np.testing.assert_array_equal(
        colours, np.broadcast_to(np.uint8([255, 0, 0]), (1, 6, 4, 3))
    )


@pytest.mark.parametrize("size", [(64, 32), (30, 90), (8, 8)])
def test_photographs_are_read_as_in_training(tmp_path, size):
    """Turned as the camera says, cut to the middle, scaled alike."""
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6
    for i in range(30):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.jpg", exif=exif)
    trained = LOADERS["folder"](Options(str(tmp_path), (8, 8, 3)))
    names, images = read(tmp_path, (8, 8, 3), name="folder")
    scored = {image.tobytes() for image in images[:]}
    both = [image.tobytes() for split in trained.values() for image in split.images]
    assert len(names) == len(both) == 30
    assert scored == set(both)


def test_faces_are_cut_as_in_training_and_other_pictures_as_any(tmp_path):
    face = random_images(1, (218, 178, 3))[0]
    put(tmp_path, {"a.png": encoded(face), "b.png": encoded(face[:, :150])})
    _, images = read(tmp_path, (64, 64, 3), name="celeb_a")
    for image, pixels in zip(
        images, (face[40:188, 15:163], face[:, :150]), strict=True
    ):
        expected = fit(Image.fromarray(pixels), 0.5, (64, 64))
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_images_of_a_model_of_binary_pixels_are_drawn_so(folder):
    _, grey = read(folder)
    names, images = read(folder, binarize=True)
    assert np.unique(images[:]).tolist() == [0, 255]
    np.testing.assert_array_equal(images[:], images[:])
    assert abs(images[:].mean() - grey[:].mean()) < 20
    (folder / names[0]).unlink()  # the others are drawn as before
    np.testing.assert_array_equal(read(folder, binarize=True)[1][:], images[1:])


def test_a_folder_without_images_a_damaged_one_and_none_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no image in or below .*deeper"):
        read(folder / "deeper")
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        read(tmp_path / "nowhere")
    file = folder / "digit03.png"
    whole = file.read_bytes()
    for size in (60, 10):  # its pixels, and its header
        file.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"digit03\.png cannot be read"):
            read(folder)[1][:]


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
    names = ["file", "score_0_nats", "score_1_nats", "llr_1_nats", "heldout_below"]
    assert list(rows[0]) == names
    assert [row["file"] for row in rows] == NAMES
    table = np.array(
        [[float(v) for k, v in row.items() if k != "file"] for row in rows]
    )
    np.testing.assert_allclose(table[:, 2], table[:, 0] - table[:, 1], atol=1e-3)
    model, params = jebm.load(path)
    x = to_unit(jnp.asarray(read(folder)[1][:]))
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
    below = table[:, 3]
    assert (np.diff(below[order]) >= 0).all()
    heldout = to_unit(jnp.asarray(open_run(of_run(path), path).heldout))
    again = jebm.scores.score(jax.random.key(9), model, params, heldout, num_samples=5)
    expected = (np.asarray(again)[:, None] < table[:, 0]).mean(axis=0)
    # Two draws of the scores of the 360: a share moves by less than 5 errors of .026.
    np.testing.assert_allclose(below, expected, atol=0.13)
    assert [title.split("\n")[0] for title in titles[0] if title] == [
        rows[i]["file"] for i in order
    ]
    assert "mine.png" in capsys.readouterr().out
    assert "Images of mine<" in (path / "report.html").read_text()


@pytest.mark.slow
def test_without_the_data_of_the_run_there_is_no_yardstick(copied_run, capsys):
    def absent():
        raise ConfigError("data set 'digits' is not prepared")

    run = open_run(of_run(copied_run), copied_run, images=False)
    run = dataclasses.replace(run, splits=Later(absent))
    assert score._heldout_below(run, np.zeros(3)) is None
    assert "not compared with held-out images: data set" in capsys.readouterr().out


def test_a_sheet_of_many_images_spans_the_order(tmp_path, titles):
    values = np.arange(250.0)
    names = [f"{i}.png" for i in range(250)]
    score._sheet(names, np.zeros((250, 4, 4, 3), np.uint8), values)
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
    files = [f"{i}.png" for i in range(num)]
    figure = score._sheet(
        files, np.zeros((num, 8, 8, 1), np.uint8), np.arange(float(num))
    )
    assert white_share(figure, tmp_path / "sheet.png") < 0.7


@pytest.mark.parametrize(
    "name", ["cost_$5_$6.png", "$\\frac{$.png", "a\nb.png", os.fsdecode(b"caf\xe9.png")]
)
def test_any_name_of_a_file_is_drawn_and_written(tmp_path, name):
    figure = score._sheet([name], np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1))
    figure.savefig(tmp_path / "sheet.png")
    score._write_table(tmp_path / "a.csv", [name], (np.zeros(1), np.ones(1)))
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


def tables(path):
    """The files that each table of scores names."""
    return {
        file.stem: [
            line.split(",")[0]
            for line in file.read_text("utf-8", "surrogateescape").splitlines()[1:]
        ]
        for file in (path / "scores").glob("*.csv")
    }


@pytest.mark.slow
def test_folders_of_one_name_have_tables_of_their_own(copied_run, tmp_path, capsys):
    path, picture = copied_run, encoded(random_images(1, (8, 8))[0])
    for kind, name in (("normal", "a.png"), ("odd", "b.png"), ("normal", "a.png")):
        put(tmp_path / kind / "images", {name: picture})
        score.score(of_run(path), path, tmp_path / kind / "images")
    first, other = sorted(tables(path))
    assert tables(path) == {first: ["a.png"], other: ["b.png"]}
    assert first == "images"
    page = (path / "report.html").read_text()
    assert str(tmp_path / "odd" / "images") in page
    assert "changed" not in capsys.readouterr().out
    put(tmp_path / "odd" / "images", {"c.png": picture})
    score.score(of_run(path), path, tmp_path / "odd" / "images")
    assert tables(path)[other] == ["b.png", "c.png"]
    assert "scored: 1 images then, 2 now" in capsys.readouterr().out


@pytest.mark.slow
def test_names_of_any_kind_are_scored(copied_run, tmp_path, titles):
    picture = encoded(random_images(1, (8, 8))[0])
    names = ["cost_$5_$6.png", "$x_{.png", "\u56fe.png", os.fsdecode(b"caf\xe9.png")]
    put(tmp_path / "names", dict.fromkeys(names, picture))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score.score(of_run(copied_run), copied_run, tmp_path / "names")
    assert set(tables(copied_run)["names"]) == set(names)
    assert "cost_$5_$6.png" in [title.split("\n")[0] for title in titles[0]]


@pytest.mark.slow
def test_damaged_images_are_left_out_of_the_table(copied_run, folder, capsys):
    path = copied_run
    (folder / "digit03.png").write_bytes(b"damaged")
    (folder / "bomb.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(ConfigError, match=r"bomb\.png cannot be read.*none of AVIF"):
        score.score(of_run(path), path, folder)
    config = (path / "config.json").read_text()
    config = config.replace('"on_corrupt": "error"', '"on_corrupt": "skip"')
    (path / "config.json").write_text(config)
    score.score(of_run(path), path, folder)
    assert tables(path)["mine"] == [n for n in NAMES if n != "digit03.png"]
    assert "Left out: 2" in capsys.readouterr().err
