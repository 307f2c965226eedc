"""PNGs are read where their pixels are whole, whatever their words; a transparent colour is white at any depth."""

import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from model.courier.data import images
from model.courier.data.images import ImageRefused
from model.courier.data.png import without_words

SIZE = 9
ROWS = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, -1)
HEADER = b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
PIXELS = b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in ROWS))
END = b"IEND", b""
TWO_MEGABYTES = zlib.compress(b"y" * 2_000_000)
XMP = b"XML:com.adobe.xmp\0"


def chunk(name, body, crc=None):
    """https://www.w3.org/TR/png/#5Chunk-layout; the right checksum unless another is given."""
    return (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


PLAIN = png(HEADER, PIXELS, END)

WORDS = {
    "an unpacked text of 2 MB": (b"iTXt", XMP + b"\1\0\0\0" + TWO_MEGABYTES),
    "a packed text of 2 MB": (b"zTXt", b"Comment\0\0" + TWO_MEGABYTES),
    "a profile of 2 MB": (b"iCCP", b"ICC\0\0" + TWO_MEGABYTES),
    "a text with a wrong checksum": (b"tEXt", b"a\0b", 0),
    "a packed text with a wrong checksum": (b"zTXt", b"a\0\0" + zlib.compress(b"b"), 0),
    "a profile with a wrong checksum": (b"iCCP", b"ICC\0\0" + zlib.compress(b"b"), 0),
    "a moment with a wrong checksum": (b"tIME", bytes(7), 0),
    "a packing that nobody knows": (b"zTXt", b"a\0\7b"),
    "a size in print that is cut short": (b"pHYs", bytes(3)),
    "a way up with a wrong checksum": (b"eXIf", b"MM\0*", 0),
    "a chunk of somebody's own with a wrong checksum": (b"prVt", b"a", 0),
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("place", [1, 2])
def test_a_picture_is_that_of_its_pixels_whatever_its_words(words, place):
    chunks = [HEADER, PIXELS, END]
    chunks.insert(place, WORDS[words])
    image, facts = images.open_image(png(*chunks))
    assert (np.asarray(image).reshape(SIZE, -1) == ROWS).all()
    assert facts == images.open_image(PLAIN)[1]


def test_what_a_program_wrote_with_a_long_text_is_read_too():
    text, stream = PngImagePlugin.PngInfo(), BytesIO()
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>" + "y" * 2_000_000 + "</x:xmpmeta>", zip=True)
    drawn = Image.fromarray(ROWS.reshape(SIZE, SIZE, 3))
    drawn.save(stream, "PNG", pnginfo=text)
    assert (np.asarray(images.decode(stream.getvalue())) == np.asarray(drawn)).all()


def test_the_way_up_is_kept_beside_damaged_words():
    exif = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # orientation 6
    for words in ([], [WORDS["a text with a wrong checksum"]]):
        assert images.open_image(png(HEADER, *words, (b"eXIf", exif), PIXELS, END))[1].orientation == 6


def refusal(data):
    with pytest.raises(ImageRefused) as caught:
        images.decode(data)
    return caught.value.reason


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        ([HEADER, (b"IDAT", PIXELS[1][:40]), END], "truncated"),
        ([HEADER, (b"IDAT", PIXELS[1][:20] + bytes(20) + PIXELS[1][40:]), END], "truncated"),
        ([HEADER, END], "not_an_image"),
        ([(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), PIXELS, END], "too_many_pixels"),
        ([(b"IHDR", struct.pack(">IIBBBBB", 7, 100, 8, 2, 0, 0, 0)), PIXELS, END], "too_small"),
    ],
)
def test_pixels_that_are_not_whole_or_too_many_stay_refused_beside_damaged_words(chunks, reason):
    assert refusal(png(*chunks)) in (reason, "truncated")
    assert refusal(png(chunks[0], WORDS["a text with a wrong checksum"], *chunks[1:])) in (reason, "truncated")


def test_a_text_of_80_megabytes_is_not_unpacked():
    bomb = b"zTXt", b"c\0\0" + zlib.compress(bytes(80_000_000), 9)
    data = png(HEADER, bomb, bomb, PIXELS, END)
    images.decode(PLAIN)
    tracemalloc.start()
    assert (np.asarray(images.decode(data)).reshape(SIZE, -1) == ROWS).all()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_nothing_but_pixels_and_what_they_depend_on_is_left():
    kept = [HEADER, (b"PLTE", b"abc"), (b"tRNS", b"\0"), (b"eXIf", b"MM\0*"), PIXELS, PIXELS, END]
    words = [WORDS["a packed text of 2 MB"], (b"gAMA", bytes(4))]
    assert without_words(png(HEADER, *words, *kept[1:5], *words, *kept[5:])) == png(*kept)
    assert without_words(PLAIN + b"more") == PLAIN
    assert without_words(PLAIN[:50]) == PLAIN[:50]


# --- a transparent colour -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "colour_type", "transparent", "rows", "opaque"),
    [
        (1, 0, [1], [b"\xff", b"\x00"], 0),
        (1, 0, [0], [b"\x00", b"\xff"], 255),
        (2, 0, [1], [b"\x55\x55", b"\xaa\xaa"], 170),
        (4, 0, [3], [b"\x33" * 4, b"\x66" * 4], 102),
        (8, 0, [33], [b"\x21" * 8, b"\x42" * 8], 66),
        (16, 0, [0x1234], [b"\x12\x34" * 8, b"\x12\x35" * 8], 18),
        (8, 2, [33] * 3, [b"\x21" * 24, b"\x42" * 24], 66),
        (16, 2, [0x1234] * 3, [b"\x12\x34" * 24, b"\x42\x34" * 24], 66),
    ],
)
def test_the_transparent_colour_is_white_at_any_depth_and_another_is_as_it_is(
    depth, colour_type, transparent, rows, opaque
):
    header = b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, colour_type, 0, 0, 0)
    transparency = b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)
    pixels = b"IDAT", zlib.compress(b"".join(b"\0" + rows[n % 2] for n in range(8)))
    found = np.asarray(images.decode(png(header, transparency, pixels, END)))
    assert (found[0::2] == 255).all()
    assert (found[1::2] == opaque).all()
