"""Files that are no image, or none that is taken."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these (name, content), sums included: https://www.w3.org/TR/png/#5Chunk-layout."""
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(width: int, height: int) -> tuple[bytes, bytes]:
    """The first chunk of a PNG of 8-bit RGB."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def make_broken_images() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, the reason for which they are refused under the limits of model.courier.data.images)."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    jpeg, lossless, moving = encoded(photo, "JPEG"), encoded(photo, "PNG"), encoded(photo, "GIF")
    frame = jpeg.index(b"\xff\xc0") + 5  # the sizes of a JPEG follow its marker: ITU T.81, B.2.2
    middle = len(lossless) // 2
    no_pixels, end = (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    text_bomb = (b"zTXt", b"c\0\0" + zlib.compress(bytes(80_000_000), 9))
    return {
        "empty.jpg": (b"", "empty"),
        "page.jpg": (b"<!doctype html><title>404 Not Found</title>", "not_an_image"),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not_an_image"),
        "document.jpeg": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "not_an_image"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        "zeros.png": (bytes(4096), "not_an_image"),
        "signature.png": (lossless[:8], "not_an_image"),
        "no_width.png": (png(png_header(0, 60), no_pixels, end), "not_an_image"),
        "text_bomb.png": (png(png_header(9, 9), text_bomb, no_pixels, end), "truncated"),
        "icon.ico": (encoded(photo, "ICO"), "format_not_read"),
        "cut.jpg": (jpeg[: len(jpeg) * 9 // 10], "truncated"),
        "cut.PNG": (lossless[:middle], "truncated"),
        "cut.Gif": (moving[: len(moving) // 2], "truncated"),
        "damaged.png": (lossless[:middle] + bytes(64) + lossless[middle + 64 :], "truncated"),
        "no_pixels.png": (png(png_header(60, 60), no_pixels, end), "truncated"),
        "bomb.png": (png(png_header(60_000, 60_000), no_pixels, end), "too_many_pixels"),
        "flood.jpg": (jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :], "too_many_pixels"),
        "strip.png": (encoded(Image.new("1", (8, 40_000)), "PNG"), "too_long"),
        "dot.gif": (encoded(Image.new("P", (1, 1)), "GIF"), "too_small"),
        "heavy.bmp": (encoded(photo, "BMP") + bytes(20_000_000), "too_large"),
    }


@pytest.fixture(scope="session")
def broken_images() -> dict[str, tuple[bytes, str]]:
    """Files broken in twenty ways: name -> (bytes, reason)."""
    return make_broken_images()
