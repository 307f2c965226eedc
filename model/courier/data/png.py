"""What Pillow leaves undone with PNGs: to pass over damaged words, and to fit a transparent colour to 8-bit pixels."""

import zlib

from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of all chunks those that pixels, their order and the way up depend on: https://www.w3.org/TR/png/#4Concepts.FormatTypes
PICTURE = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT", b"eXIf"))


def without_words(data: bytes) -> bytes:
    """A PNG without the texts, profiles and other chunks that its pixels do without, however they may be damaged.

    Nothing is unpacked. Of eXIf, which may say which way is up, a damaged one is left out.
    """
    kept, start = [data[: len(SIGNATURE)]], len(SIGNATURE)
    while start < len(data):
        length, name = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 12 + length
        if name in PICTURE and (name != b"eXIf" or _is_whole(data[start:end])):
            kept.append(data[start:end])
        start = len(data) if name == b"IEND" else end
    return b"".join(kept)


def _is_whole(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def fit_transparency(image: Image.Image, data: bytes) -> None:
    """Turn the transparent colour of a loaded PNG, `data`, which Pillow keeps as stored, into that of its pixels.

    Grey of 2 or 4 bits is spread over 8. Of colours of 16 bits Pillow keeps the upper 8, and so what differs in the
    lower ones alone from the transparent colour is transparent too.
    """
    depth, stored = data[24], image.info.get("transparency")
    if image.mode == "L" and isinstance(stored, int):
        image.info["transparency"] = stored * 255 // (2**depth - 1)
    elif image.mode == "RGB" and isinstance(stored, tuple) and depth == 16:
        image.info["transparency"] = tuple(colour >> 8 for colour in stored)
