"""Turn untrusted bytes into the pixels an encoder reads: verify, decode, resize.

One road for the offline job, for training and for a picture uploaded to the search, so that the same file gives the
same pixels everywhere.
"""

import ctypes
import logging
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from PIL import ExifTags, GifImagePlugin, Image, ImageOps, UnidentifiedImageError, _imaging, features

from model.courier.data import grey, png, unread_formats
from model.errors import CourierError

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MIN_SIDE = 8  # pixels
MAX_SIDE = 32_768  # pixels; the pixels allowed would also fit into a strip of 8 by six million

# Pillow also opens formats that start other programs (EPS) or that no shop sends; a narrow door is easier to guard.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
CODES = (
    *("empty", "not_an_image", "format_not_read", "truncated", "unsupported"),
    *("too_large", "too_many_pixels", "too_long", "too_small"),
)

WHITE = (255, 255, 255, 255)
MAX_PAGES = 1000  # looking for a loop, Pillow compares each page of a TIFF with all before it
# Pixels; of a photograph, recompressed or resized, the hash by boxes stays as near as the one by Lanczos.
HASHED_SIDE = 32
# The 8 lowest frequencies of a type 2 discrete cosine transform, (8, 32): what numpy rounds off counts for nothing.
COSINES = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(HASHED_SIDE) + 1) / (2 * HASHED_SIDE))
ROUNDED = 6  # decimals


class ImageRefused(CourierError):
    """These bytes are not an image that can be used; `reason` is one of CODES, the message one sentence."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason

    def __reduce__(self) -> tuple[type["ImageRefused"], tuple[str, str]]:
        return ImageRefused, (self.reason, str(self))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a file says of its image; width and height are those of the upright image, in pixels."""

    width: int
    height: int
    mode: str  # as stored, in Pillow's words: https://pillow.readthedocs.io/en/stable/handbook/concepts.html#modes
    frames: int  # more than one: an animation, or a file of several pages or page_views
    orientation: int  # as stored in EXIF, 1 to 8; 1 where there is none


def decode(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    max_side: int = MAX_SIDE,
) -> Image.Image:
    """The image these bytes hold, upright, over white, in RGB; the first frame of an animation.

    What counts is the content, not a name. The size is checked before a pixel is decoded. Raises ImageRefused.
    """
    return _rgb(_upright(_stored(data, max_bytes, max_pixels, min_side, max_side)))


def open_image(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    max_side: int = MAX_SIDE,
) -> tuple[Image.Image, ImageFacts]:
    """The very image that `decode` gives, and what its file says of it. Raises ImageRefused."""
    stored = _stored(data, max_bytes, max_pixels, min_side, max_side)
    mode, orientation, frames = stored.mode, _orientation(stored), _frames(stored, data)
    image = _rgb(_upright(stored))
    return image, ImageFacts(image.width, image.height, mode, frames, orientation)


def squash(image: Image.Image, size: int) -> Image.Image:
    """The whole image as a square of this side in pixels, bicubic; what else its file said is dropped."""
    square = image.resize((size, size), Image.Resampling.BICUBIC)
    square.info.clear()  # else a PNG of it holds the file's colour profile
    return square


def resize(image: Image.Image, size: int) -> Pixels:
    """The pixels of `squash`: (size, size, 3)."""
    return np.array(squash(image, size))


def to_png(image: Image.Image) -> bytes:
    """An RGB image as a PNG; lossless."""
    stream = BytesIO()
    # Runs alone: in filtered photographs nearly as small as level 6, and faster than level 1. docs/LOG.md
    image.save(stream, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return stream.getvalue()


def pixel_hash(image: Image.Image) -> str:
    """32 hex digits that two images share only if mode, size and every pixel agree."""
    # Of a photograph it takes a third of SHA-256's time, and nobody can make two images meet either.
    digest = blake3(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest(length=16)


def is_blank(image: Image.Image) -> bool:
    """Whether an RGB image is of one colour."""
    return image.getcolors(1) is not None  # which stops at the second


def perceptual_hash(image: Image.Image) -> str:
    """16 hex digits (64 bits) that stay nearly the same where an image is resized, recompressed or slightly retouched.

    The signs of the lowest 8 x 8 frequencies of the image's brightness against their median; colour does not count.
    https://www.hackerfactor.com/blog/index.php?/archives/432-Looks-Like-It.html
    """
    # Without this step the hash of a 1500-pixel photograph takes 8.6 ms, half of its decoding; with it 1.8 ms.
    small = image.reduce((max(1, image.width // HASHED_SIDE), max(1, image.height // HASHED_SIDE)))
    grey = small.convert("L").resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.LANCZOS)
    # ImageHash gives the same bits in three times the time, a thirtieth of what a photograph costs in all. docs/LOG.md
    found = (COSINES @ np.asarray(grey, np.float64) @ COSINES.T).ravel().round(ROUNDED)
    ordered = np.sort(found)
    bits = found > (ordered[31] + ordered[32]) / 2
    return np.packbits(bits).tobytes().hex()


# --- decoding -------------------------------------------------------------------------------------------------------


@cache
def _quiet_decoders() -> None:
    """Keep what decoders write to stderr off it, in this process: what becomes of an image is told by its reason."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # Pillow silences libtiff's warnings and not its errors. https://libtiff.gitlab.io/libtiff/functions/TIFFError.html
    with suppress(OSError, AttributeError):  # a Pillow with libtiff inside shows its functions to nobody
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _stored(data: bytes, max_bytes: int, max_pixels: int, min_side: int, max_side: int) -> Image.Image:
    """The image as its file holds it, loaded."""
    _quiet_decoders()
    limits = (max_bytes, max_pixels, min_side, max_side)
    try:
        image = _load(_checked(data, *limits))
    except ImageRefused as refused:
        bare = png.without_words(data) if data.startswith(png.SIGNATURE) else data
        if refused.reason not in ("not_an_image", "truncated") or bare == data:
            raise
        image = _load(_checked(bare, *limits))
    if image.format == "PNG":
        png.fit_transparency(image, data)
    return image


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRefused("too_many_pixels", f"the image has more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        if (name := unread_formats.name(data)) is not None:
            raise ImageRefused("format_not_read", f"the file is an image whose format is not read ({name})") from None
        raise ImageRefused("not_an_image", "the file is not an image in a known format") from None
    except Exception as error:  # a hostile header can make Pillow raise nearly anything
        raise ImageRefused("not_an_image", f"the file's header cannot be read ({type(error).__name__})") from None


def _checked(data: bytes, max_bytes: int, max_pixels: int, min_side: int, max_side: int) -> Image.Image:
    if not data:
        raise ImageRefused("empty", "the file is empty")
    if len(data) > max_bytes:
        raise ImageRefused("too_large", f"the file is larger than {max_bytes} bytes")
    image = _open(data, max_pixels)
    _check_size(image, max_pixels, min_side, max_side)
    return image


def _check_size(image: Image.Image, max_pixels: int, min_side: int, max_side: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRefused("too_many_pixels", f"the image has {width}x{height} pixels, more than {max_pixels}")
    if min(width, height) < min_side:
        raise ImageRefused("too_small", f"the image has {width}x{height} pixels, a side below {min_side}")
    if max(width, height) > max_side:
        raise ImageRefused("too_long", f"the image has {width}x{height} pixels, a side above {max_side}")


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception:  # as above: damaged data raises OSError, SyntaxError, struct.error, IndexError ...
        raise ImageRefused("truncated", "the image's data is cut short or damaged") from None
    return image


def _orientation(image: Image.Image) -> int:
    try:
        stored = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _upright
        return 1
    return stored if stored in range(1, 9) else 1


def _frames(image: Image.Image, data: bytes) -> int:
    """How many frames or pages there are before any damage; of a TIFF's pages at most MAX_PAGES are counted."""
    if image.format not in ("GIF", "TIFF"):  # the others know it from their header
        return int(getattr(image, "n_frames", 1))
    with Image.open(BytesIO(data), formats=FORMATS) as copy:  # counting moves, and damage could stop it half way
        with suppress(Exception):
            if isinstance(copy, GifImagePlugin.GifImageFile):
                return copy.n_frames  # unlike seek, it unpacks no pixels
            for page in range(1, MAX_PAGES):
                copy.seek(page)
        return copy.tell() + 1


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # unreadable EXIF names no orientation, and the picture is there all the same
        return image
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    try:
        if image.mode.startswith(("I", "F")):
            image = grey.eight_bit(image)
        if image.has_transparency_data:
            ours = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", ours.size, WHITE), ours)
        return image.convert("RGB")
    except ValueError:
        raise ImageRefused("unsupported", f"the image's colours ({image.mode}) cannot be turned into RGB") from None
