import os
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.data import decoding, sources
from experiments.errors import ConfigError
from tests.data_files import encoded, random_images, write_lmdb

SIZE = (8, 6)  # width, height
SHAPE = (6, 8, 3)


def fit(image, place):
    return decoding.fit(image, place, SIZE)


def streamed(encoded_images, **options):
    return sources.Streamed(sources.Encoded(encoded_images), SHAPE, fit, **options)


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
    with pytest.raises(ConfigError, match="it has 48 pixels, and at most"):
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
    files = sources.Files(tmp_path, sorted(f.name for f in tmp_path.iterdir()))
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
        images = sources.Streamed(sources.Files(tmp_path, [path.name]), SHAPE, fit)
        with pytest.raises(ConfigError, match=r"secret.png cannot be read: .*denied"):
            images[0]
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
