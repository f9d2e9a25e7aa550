import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments import pictures

GREY = 96  # between neighbours


def images(num, height=2, width=3, channels=1):
    """Image n has the value n / num everywhere."""
    values = np.arange(num).reshape(-1, 1, 1, 1) / num
    return np.broadcast_to(values, (num, height, width, channels))


def unscaled(picture, width):
    """The pixels of a grid before it was enlarged to `width` times `scale`."""
    scale, rest = divmod(picture.width, width)
    assert rest == 0
    pixels = np.asarray(picture)
    small = pixels[::scale, ::scale]
    enlarged = small.repeat(scale, axis=0).repeat(scale, axis=1)
    np.testing.assert_array_equal(enlarged, pixels)  # each pixel is a square block
    return small


def test_grid_places_images_row_by_row_with_a_grey_pixel_between():
    small = unscaled(pictures.grid(images(6), columns=3), width=3 * 3 + 2)
    assert small.shape == (2 * 2 + 1, 3 * 3 + 2)
    for n in range(6):
        top, left = 3 * (n // 3), 4 * (n % 3)
        assert (small[top : top + 2, left : left + 3] == round(255 * n / 6)).all()
    assert (small[2] == GREY).all()
    assert (small[:, [3, 7]] == GREY).all()


def test_grid_is_square_by_default_and_fills_up_with_grey():
    small = unscaled(pictures.grid(images(7)), width=3 * 3 + 2)
    assert small.shape == (3 * 2 + 2, 3 * 3 + 2)
    assert (small[6:, :3] == round(255 * 6 / 7)).all()
    assert (small[6:, 4:] == GREY).all()


@pytest.mark.parametrize(
    ("width", "total"), [(8, 640), (100, 700), (639, 1278), (640, 640), (900, 900)]
)
def test_grid_is_enlarged_by_a_whole_factor_to_640_pixels_or_more(width, total):
    assert pictures.grid(np.zeros((1, 2, width, 1))).size == (total, 2 * total // width)


def test_grid_keeps_colours():
    colours = np.eye(3).reshape(3, 1, 1, 3).repeat(2, axis=1)  # [3, 2, 1, 3]
    picture = pictures.grid(colours, columns=3)
    assert picture.mode == "RGB"
    small = unscaled(picture, width=5)
    np.testing.assert_array_equal(small[0, ::2], 255 * np.eye(3, dtype=int))
    assert (small[0, 1::2] == GREY).all()


def test_grid_clips_to_black_and_white():
    values = np.float32([-1, 2]).reshape(2, 1, 1, 1)
    picture = pictures.grid(np.broadcast_to(values, (2, 2, 2, 1)), columns=2)
    assert unscaled(picture, width=5)[0].tolist() == [0, 0, GREY, 255, 255]


def test_beside_alternates_left_and_right():
    left, right = images(3), 1 - images(3)
    pairs = pictures.beside(left, right)
    np.testing.assert_array_equal(pairs[0::2], left)
    np.testing.assert_array_equal(pairs[1::2], right)


def test_save_writes_the_grid_and_makes_the_directory(tmp_path):
    path = tmp_path / "new" / "grid.png"
    pictures.save(pictures.grid(images(4), columns=4), path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        expected = pictures.grid(images(4), columns=4)
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_stamp_adds_a_line_and_leaves_the_picture(mode, tmp_path):
    file = tmp_path / "picture.png"
    Image.new(mode, (640, 480), 77 if mode == "L" else (1, 2, 3)).save(file)
    before = np.asarray(Image.open(file).convert("RGB"))
    pictures.stamp(file, "FAKE DATA")
    after = np.asarray(Image.open(file))
    assert after.shape[1:] == (640, 3)
    np.testing.assert_array_equal(after[-480:], before)
    title = after[:-480].reshape(-1, 3)
    assert {(255, 255, 255), (220, 20, 60)} <= set(map(tuple, title.tolist()))


def test_stamp_all_stamps_the_pictures_among_the_files(tmp_path):
    picture, numbers = tmp_path / "picture.png", tmp_path / "numbers.json"
    Image.new("L", (640, 480), 77).save(picture)
    numbers.write_text("{}")
    pictures.stamp_all([picture, numbers], "FAKE DATA")
    with Image.open(picture) as stamped:
        assert stamped.height > 480
    assert numbers.read_text() == "{}"


def test_stamp_all_of_no_text_leaves_the_pictures_as_they_are(tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("L", (640, 480), 77).save(picture)
    before = picture.read_bytes()
    pictures.stamp_all([picture], "")
    assert picture.read_bytes() == before


def test_pictures_know_nothing_of_experiments():
    source = pathlib.Path(pictures.__file__).read_text()
    assert "experiments" not in source
