"""From the bytes of an image file to pixels: the one way that photographs are read.

Training, scoring, evaluation and the preparation of data sets read every image file by
`decode`, and bring it to the size of the model by `fit`.
"""

import io
import math
import re
import warnings

import numpy as np
from PIL import Image

# What Pillow decodes by itself, in this process. Its other readers may start programs,
# such as Ghostscript for PostScript, or read what holds no single picture.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Names end so; anything else is a picture only if it begins as one of `_BEGINNINGS`.
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jpe", ".jpeg", ".jpg", ".jfif", ".mpo", ".apng", ".png",
    ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# Without TIFF: what cameras call raw begins as it does, and shows a thumbnail.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")

MOST_BYTES = 2**29  # of a file
MOST_PIXELS = 2**27  # of a picture; those of telephones have up to 108 million
LONGEST_SIDE = 2**16 - 1  # in pixels, as in JPEG
_LONGEST_CUT = 16  # times the size that a picture is fitted to

_TURNS = {  # what a camera says, and what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # a tag of EXIF
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF

# Pillow warns of large pictures by a limit of its own; `_check_size` refuses them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def begins_as_picture(beginning: bytes) -> bool:
    r"""Says whether the first bytes of a file, 16 or more, are those of a picture.

    Example:
      >>> begins_as_picture(b"\x89PNG\r\n\x1a\n" + bytes(8))
      True
      >>> begins_as_picture(b"%!PS-Adobe-3.0 EPSF")
      False
    """
    webp = beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"
    return webp or beginning.startswith(_BEGINNINGS)


def decode(data: bytes, channels: int) -> Image.Image:
    """Decodes an image file to 8-bit grey or RGB, turned as its camera says.

    The content alone says which of `FORMATS` it is; of several frames the first one is
    read. 16 bits are scaled to 8, palettes and CMYK are converted, transparency is
    dropped.

    Raises:
      ValueError: for another format, for pixels without a known range, and for more
        pixels than `MOST_PIXELS`, before any is decoded.
      Exception: what Pillow raises on damaged files is of many kinds.

    Example:
      >>> buffer = io.BytesIO()
      >>> Image.new("RGBA", (4, 2), (255, 0, 0, 128)).save(buffer, "png")
      >>> image = decode(buffer.getvalue(), channels=1)
      >>> image.mode, image.size, image.getpixel((0, 0))
      ('L', (4, 2), 76)
    """
    try:
        with Image.open(io.BytesIO(data), formats=_known_formats()) as opened:
            _check_size(opened)
            opened.load()
            turn = _TURNS.get(opened.getexif().get(_ORIENTATION, 1))
            return as_mode(opened if turn is None else opened.transpose(turn), channels)
    except Image.UnidentifiedImageError:
        raise ValueError(f"it is damaged, or none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:  # by a larger limit of Pillow's own
        size = max(map(int, re.findall(r"\d+", str(error))))  # that limit is in it too
        raise _too_large(f"{size:,}") from None


def _known_formats():
    """Returns those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _check_size(opened):
    """Refuses by its header what would take too much memory."""
    width, height = opened.size
    tags = getattr(opened, "tag_v2", {})  # a tile is decoded whole, whatever is shown
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
    if max(width * height, tile) > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise _too_large(f"{width:,} x {height:,}")


def _too_large(size):
    return ValueError(
        f"it has {size} pixels, and at most {MOST_PIXELS:,} are read, "
        f"{LONGEST_SIDE:,} a side"
    )


def as_mode(image: Image.Image, channels: int) -> Image.Image:
    """Converts an image to 8-bit grey or RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode!r} have no known range")
        rounded = (values.astype(np.int32) + 128) // 257  # 65535 becomes 255
        image = Image.fromarray(rounded.astype(np.uint8))
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, place: float, size: tuple[int, int]) -> Image.Image:
    """Scales an image until it just covers `size`, width and height, and cuts it there.

    By triangles with antialiasing: what the published codes call bilinear. `place`,
    from 0 to 1, says which part stays of what is too long, .5 the middle.

    Example:
      >>> fit(Image.new("L", (200, 100)), 0.5, (64, 64)).size
      (64, 64)
    """
    if image.size == size:
        return image
    # A thin picture would be scaled to many times what is left of it.
    image = _cut(image, place, _longest(image.size, size))
    scale = max(size[0] / image.width, size[1] / image.height)
    scaled = (
        max(size[0], round(scale * image.width)),
        max(size[1], round(scale * image.height)),
    )
    return _cut(image.resize(scaled, Image.Resampling.BILINEAR), place, size)


def _longest(shape, size):
    """Returns what of an image of this shape may be scaled to make one of `size`."""
    scale = max(size[0] / shape[0], size[1] / shape[1])
    return [math.ceil(_LONGEST_CUT * side / scale) for side in size]


def _cut(image, place, size):
    """Cuts an image where it is longer than `size`."""
    width, height = min(image.width, size[0]), min(image.height, size[1])
    left = _offset(place, image.width - width)
    top = _offset(place, image.height - height)
    return image.crop((left, top, left + width, top + height))


def _offset(place, longest):
    return min(int(place * (longest + 1)), longest)  # each as likely as any other
