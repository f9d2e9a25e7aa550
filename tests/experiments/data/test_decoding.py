import io
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from experiments.data.decoding import decode, fit
from tests.data_files import random_images

SIZE = (8, 6)  # width, height
SHAPE = (6, 8, 3)


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
    rgb = np.asarray(decode(data, channels=3))
    assert rgb.shape == SHAPE
    assert rgb.dtype == np.uint8
    expected = np.broadcast_to(np.array(colour), SHAPE)
    np.testing.assert_allclose(rgb.astype(int), expected, atol=tolerance)
    grey = np.asarray(decode(data, channels=1)).astype(int)
    assert grey.shape == SHAPE[:2]
    luma = round(np.dot(colour, [0.299, 0.587, 0.114]))
    np.testing.assert_allclose(grey, luma, atol=tolerance + 1)


def test_pixels_without_a_known_range_are_refused():
    for values in (np.ones((6, 8), np.float32), np.full((6, 8), 70000, np.int32)):
        with pytest.raises(ValueError, match="no known range"):
            decode(of_array(values, "tiff"), channels=3)


def test_photographs_are_turned_as_the_camera_says():
    image = Image.new("L", (4, 2))
    image.paste(255, (0, 0, 2, 2))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    buffer = io.BytesIO()
    image.save(buffer, "png", exif=exif)
    turned = np.asarray(decode(buffer.getvalue(), channels=1))
    assert turned.tolist() == [[255, 255]] * 2 + [[0, 0]] * 2


@pytest.mark.parametrize("size", [(8, 6), (80, 60), (100, 6), (9, 300), (3, 2), (1, 1)])
def test_images_of_any_size_are_brought_to_one(size):
    for place in (0.0, 0.5, 1.0):
        assert fit(Image.new("RGB", size), place, SIZE).size == SIZE


def test_what_is_too_long_is_cut_at_the_place():
    wide = np.zeros((6, 24, 1), np.uint8)
    wide[:, :8], wide[:, 8:16], wide[:, 16:] = 10, 20, 30
    image = Image.fromarray(wide[..., 0])
    for place, value in ((0.0, 10), (0.5, 20), (1.0, 30)):
        assert np.unique(fit(image, place, SIZE)).tolist() == [value]
    image = Image.fromarray(wide[..., 0].T.repeat(8, 1).repeat(2, 0)[:, :8])
    for place, value in ((0.0, 10), (0.5, 20), (1.0, 30)):  # a high one, 8 x 48
        assert np.unique(fit(image, place, (8, 6))).tolist() == [value]


def test_scaling_averages_over_what_it_covers():
    image = Image.fromarray(random_images(1, (64, 64))[0])
    small = np.asarray(fit(image, 0.5, (4, 4))).astype(float)
    # Mean of noise, uniform in 0..255, over at least 16 x 16 pixels: 255/sqrt(12)/16.
    assert abs(small - 127.5).max() < 5 * 4.6


def test_cutting_of_thin_pictures_is_the_same_as_of_all_others():
    """Longer than 16 times the size a picture is cut before it is scaled, too."""
    stripes = np.arange(320, dtype=np.uint8)[:, None] // 16 * 10
    image = Image.fromarray(stripes)  # 1 x 320, to be 4 x 4: a pixel four times
    for place in (0.0, 0.3, 0.5, 1.0):
        whole = image.resize((4, 1280), Image.Resampling.BILINEAR)
        top = min(int(place * 1277), 1276)
        expected = np.asarray(whole.crop((0, top, 4, top + 4))).astype(int)
        found = np.asarray(fit(image, place, (4, 4))).astype(int)
        assert abs(found - expected).max() <= 10  # one stripe beside it


def bomb():
    """A PNG of 20,000 x 20,000 pixels, in 120 bytes."""

    def chunk(name, data):
        sum_ = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + sum_

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def huge_tile():
    """A TIFF of 8 x 8 pixels, stored as a tile of 40,000 x 40,000."""
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 40_000, 323: 40_000}
    tags |= {324: 200, 325: 50}  # where the tile is, and its bytes
    entries = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return header.ljust(200, b"\0") + zlib.compress(bytes(10_000))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bomb(), "it has 400,000,000 pixels, and at most 134,217,728 are read"),
        (flat(1, "1", "bmp", (12_000, 12_000)), "12,000 x 12,000 pixels, and at most"),
        (flat(1, "1", "png", (1, 70_000)), "at most .* 65,535 a side"),
        (huge_tile(), "at most 134,217,728 are read"),
    ],
    ids=["bomb", "large", "thin", "tile"],
)
def test_what_takes_too_much_memory_is_refused_by_its_header(data, words, monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", decoded.append)
    with pytest.raises(Exception, match=words):
        decode(data, 3)
    assert not decoded


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (3, 60_000)])
def test_memory_of_a_thin_picture_is_that_of_what_is_left_of_it(size, monkeypatch):
    sizes, resize = [], Image.Image.resize

    def noting(self, size, *arguments):
        sizes.append(size)
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noting)
    image = decode(flat((10, 20, 30), size=size), 3)
    assert np.unique(np.asarray(fit(image, 0.5, (64, 64)))).tolist() == [10, 20, 30]
    assert max(width * height for width, height in sizes) <= 20 * 64 * 64


def test_of_many_frames_the_first_one_is_read():
    frames = [Image.new("L", SIZE, 5 * i) for i in range(40)]
    for kind in ("gif", "png", "tiff", "webp"):
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "webp" else {}
        frames[3].save(buffer, kind, save_all=True, append_images=frames[4:], **options)
        assert np.unique(np.asarray(decode(buffer.getvalue(), 1))).tolist() == [15]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"


@pytest.mark.parametrize(
    "data",
    [POSTSCRIPT, b"%PDF-1.4", b"\x89HDF\r\n\x1a\n" + bytes(40), b"", b"a text"],
    ids=["PostScript", "PDF", "HDF5", "nothing", "text"],
)
def test_only_what_pillow_decodes_itself_is_opened(data, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    with pytest.raises(ValueError, match="it is damaged, or none of AVIF, BMP"):
        decode(data, 3)
    assert not started
