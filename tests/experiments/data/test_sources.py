import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.data import sources
from experiments.errors import ConfigError
from tests.data_files import encoded, random_images, write_lmdb

SIZE = (8, 6)  # width, height
SHAPE = (6, 8, 3)


def fit(image, place):
    return sources.fit(image, place, SIZE)


def streamed(encoded_images, **options):
    return sources.Streamed(sources.Encoded(encoded_images), SHAPE, fit, **options)


def flat(value, mode="RGB", kind="png", size=SIZE, **options):
    """An image file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, kind, **options)
    return buffer.getvalue()


def palette():
    image = Image.new("P", SIZE, 3)
    image.putpalette([0] * 9 + [10, 20, 30])
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=0)
    return buffer.getvalue()


def of_array(values, kind="png"):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


DEEP = np.full((6, 8), 0x8080, np.uint16)  # 128 of 255, in 16 bits


@pytest.mark.parametrize(
    ("data", "colour", "tolerance"),
    [
        pytest.param(flat((10, 20, 30)), (10, 20, 30), 0, id="RGB"),
        pytest.param(flat(77, "L"), (77, 77, 77), 0, id="grey"),
        pytest.param(flat(1, "1"), (255, 255, 255), 0, id="one bit"),
        pytest.param(flat((77, 5), "LA"), (77, 77, 77), 0, id="grey, transparent"),
        pytest.param(flat((10, 20, 30, 5), "RGBA"), (10, 20, 30), 0, id="transparent"),
        pytest.param(palette(), (10, 20, 30), 0, id="palette"),
        pytest.param(of_array(DEEP), (128, 128, 128), 0, id="16 bits"),
        pytest.param(of_array(DEEP, "tiff"), (128, 128, 128), 0, id="16 bits, TIFF"),
        pytest.param(
            of_array(DEEP.astype(np.int32), "tiff"), (128, 128, 128), 0, id="32 bits"
        ),
        pytest.param(
            flat((245, 235, 225, 0), "CMYK", "jpeg"), (10, 20, 30), 3, id="CMYK"
        ),
        pytest.param(flat((10, 20, 30), kind="webp", lossless=True), (10, 20, 30), 0,
                     id="webp"),
        pytest.param(flat((10, 20, 30), kind="gif"), (10, 20, 30), 3, id="gif"),
    ],
)  # fmt: skip
def test_every_kind_of_picture_becomes_rgb_and_grey(data, colour, tolerance):
    rgb = np.asarray(sources.decode(data, channels=3))
    assert rgb.shape == SHAPE
    assert rgb.dtype == np.uint8
    expected = np.broadcast_to(np.array(colour), SHAPE)
    np.testing.assert_allclose(rgb.astype(int), expected, atol=tolerance)
    grey = np.asarray(sources.decode(data, channels=1)).astype(int)
    assert grey.shape == SHAPE[:2]
    luma = round(np.dot(colour, [0.299, 0.587, 0.114]))
    np.testing.assert_allclose(grey, luma, atol=tolerance + 1)


def test_pixels_without_a_known_range_are_refused():
    for values in (np.ones((6, 8), np.float32), np.full((6, 8), 70000, np.int32)):
        with pytest.raises(ValueError, match="no known range"):
            sources.decode(of_array(values, "tiff"), channels=3)


def test_photographs_are_turned_as_the_camera_says():
    image = Image.new("L", (4, 2))
    image.paste(255, (0, 0, 2, 2))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    buffer = io.BytesIO()
    image.save(buffer, "png", exif=exif)
    turned = np.asarray(sources.decode(buffer.getvalue(), channels=1))
    assert turned.tolist() == [[255, 255]] * 2 + [[0, 0]] * 2


@pytest.mark.parametrize("size", [(8, 6), (80, 60), (100, 6), (9, 300), (3, 2), (1, 1)])
def test_images_of_any_size_are_brought_to_one(size):
    for place in (0.0, 0.5, 1.0):
        assert fit(Image.new("RGB", size), place).size == SIZE


def test_what_is_too_long_is_cut_at_the_place():
    wide = np.zeros((6, 24, 1), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:] = 10, 20, 30
    image = Image.fromarray(wide[..., 0])
    for place, value in ((0.0, 10), (0.5, 20), (1.0, 30)):
        assert np.unique(fit(image, place)).tolist() == [value]
    image = Image.fromarray(wide[..., 0].T.repeat(8, 1).repeat(2, 0)[:, :8])
    for place, value in ((0.0, 10), (0.5, 20), (1.0, 30)):  # a high one, 8 x 48
        assert np.unique(sources.fit(image, place, (8, 6))).tolist() == [value]


def test_scaling_averages_over_what_it_covers():
    image = Image.fromarray(random_images(1, (64, 64))[0])
    small = np.asarray(sources.fit(image, 0.5, (4, 4))).astype(float)
    # Mean of noise, uniform in 0..255, over at least 16 x 16 pixels: 255/sqrt(12)/16.
    assert abs(small - 127.5).max() < 5 * 4.6


IMAGES = random_images(5, SHAPE)


def test_streamed_images_are_indexed_like_an_array():
    images = streamed([encoded(image) for image in IMAGES])
    assert len(images) == 5
    assert images.shape == IMAGES.shape
    assert images.ndim == IMAGES.ndim
    assert images.dtype == IMAGES.dtype
    mask = np.array([True, False, True, True, False])
    for index in (3, -1, slice(1, 4), slice(None), [4, 0, 0], np.arange(2), mask):
        np.testing.assert_array_equal(images[index], IMAGES[index])
    np.testing.assert_array_equal(np.asarray(images), IMAGES)
    np.testing.assert_array_equal(images.subset([4, 2]).subset([1])[0], IMAGES[2])
    with pytest.raises(IndexError):
        images[5]
    assert images[[]].shape == (0, *SHAPE)


def damaged(i=2):
    """Encoded images, one of which is cut off in the middle."""
    files = [encoded(image) for image in IMAGES]
    files[i] = files[i][: len(files[i]) // 2]
    return files


def test_damaged_image_is_an_error_that_names_it():
    images = streamed(damaged())
    np.testing.assert_array_equal(images[:2], IMAGES[:2])
    with pytest.raises(ConfigError, match=r"image 2 cannot be read.*on_corrupt='skip'"):
        images[:]
    with pytest.raises(ConfigError, match="image 2"):
        images.all()


def test_damaged_image_is_skipped_counted_and_told_once(capsys):
    images = streamed(damaged(), on_corrupt="skip")
    for _ in range(2):
        np.testing.assert_array_equal(images[:], IMAGES[[0, 1, 3, 3, 4]])
    assert images.skipped == {2}
    assert capsys.readouterr().err.count("image 2 cannot be read") == 1
    decoded, kept = images.all()
    np.testing.assert_array_equal(decoded, IMAGES[[0, 1, 3, 4]])
    assert kept.tolist() == [0, 1, 3, 4]


def test_the_first_takes_the_place_of_the_last(capsys):
    images = streamed(damaged(4), on_corrupt="skip")
    np.testing.assert_array_equal(images[4], IMAGES[0])


def test_images_none_of_which_can_be_read_are_an_error(capsys):
    images = streamed([b"", b"no image", b"\x89PNG\r\n\x1a\n"], on_corrupt="skip")
    with pytest.raises(ConfigError, match="none of 3 images"):
        images[0]
    assert images.all()[0].shape == (0, *SHAPE)


def test_image_too_large_to_be_one_is_damaged(monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ConfigError, match="decompression bomb"):
        streamed([encoded(IMAGES[0])])[0]


def test_database_of_webp_values_is_read_in_the_order_of_keys(tmp_path):
    values = [encoded(image, "webp", lossless=True) for image in IMAGES]
    images = sources.Lmdb(write_lmdb(tmp_path / "db", values))
    assert len(images) == 5
    assert [images[i] for i in (4, 0, 2)] == [values[i] for i in (4, 0, 2)]
    assert f"{tmp_path / 'db'}, key {'0' * 39}3" in images.name(3)
    both = sources.Streamed(images, SHAPE, fit)
    np.testing.assert_array_equal(both[:], IMAGES)
    import pickle

    copy = pickle.loads(pickle.dumps(images))  # as a worker gets it
    assert copy[1] == values[1]


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_database_that_is_cut_off_is_refused_not_read(share, tmp_path):
    values = [bytes(20_000)] * 20
    file = write_lmdb(tmp_path / "db", values) / "data.mdb"
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(ConfigError, match=r"data.mdb is cut off.*fetch it again"):
        sources.Lmdb(tmp_path / "db")


@pytest.mark.parametrize("contents", [b"", b"no database" * 1000])
def test_file_that_is_no_database_is_refused(contents, tmp_path):
    (tmp_path / "data.mdb").write_bytes(contents)
    with pytest.raises(ConfigError, match=r"data.mdb (is no LMDB|is cut off)"):
        sources.Lmdb(tmp_path)


def test_damaged_value_of_a_database_is_named_by_its_key(tmp_path, capsys):
    path = write_lmdb(tmp_path / "db", damaged())
    images = sources.Streamed(sources.Lmdb(path), SHAPE, fit)
    with pytest.raises(ConfigError, match=rf"key {'0' * 39}2 cannot be read"):
        images[2]
    images = sources.Streamed(sources.Lmdb(path), SHAPE, fit, on_corrupt="skip")
    np.testing.assert_array_equal(images[2], IMAGES[3])
    assert "0002 cannot be read" in capsys.readouterr().err


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ConfigError, match="`pip install lmdb`"):
        sources.Lmdb("/nowhere")


def test_files_that_cannot_be_opened_are_damaged_images(tmp_path):
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    files = sources.Files(sorted(tmp_path.iterdir()))
    images = sources.Streamed(files, SHAPE, fit)
    for i, name in enumerate(("dangling", "loop", "pipe")):
        with pytest.raises(ConfigError, match=rf"{name}.png cannot be read"):
            images[i]


def test_file_that_may_not_be_read_is_a_damaged_image(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(IMAGES[0]))
    path.chmod(0)
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:  # whom no mode keeps out
        for parent in tmp_path.parents:  # as pytest makes them
            if parent.stat().st_uid == 0 and "pytest" in parent.name:
                parent.chmod(0o755)
        os.seteuid(65534)
    try:
        images = sources.Streamed(sources.Files([path]), SHAPE, fit)
        with pytest.raises(ConfigError, match=r"secret.png cannot be read: .*denied"):
            images[0]
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
