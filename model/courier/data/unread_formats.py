"""Images in formats that are known and not read, by their first bytes."""

import re
from io import BytesIO

from PIL import features
from PIL.TiffImagePlugin import TiffImageFile

# Why they are not: QOI and the like are unpacked by Python, in seconds a megapixel; an icon may hold a larger picture
# than its header says, JPEG 2000 more than its box; a TGA has no signature, and what is damaged would pass for one.
SIGNATURES = (
    ("icon", rb"\0\0[\x01\x02]\0[^\0]\0"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("QOI", rb"qoif"),
    # Palette or none and a kind to match, two corners, a size that is not nothing, 8 to 32 bits.
    ("TGA", rb".(?:\0[\x02\x03\x0a\x0b]|\x01[\x01\x09]).{5}.{4}(?!\0\0)..(?!\0\0)..[\x08\x0f\x10\x18\x20]"),
    ("HEIC", rb".{4}ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)"),
    *(() if features.check("avif") else (("AVIF", rb".{4}ftypavi[fs]"),)),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    ("PSD", rb"8BPS"),
    ("PNM", rb"P[1-7]\s[\d#W]"),
    ("PCX", rb"\n[\0\x02\x03\x05]\x01[\x01\x02\x04\x08]"),
    ("DDS", rb"DDS \x7c"),
)


def name(data: bytes) -> str | None:
    """The format's name, of bytes that are no image in a format that is read; None where it is not known either."""
    known = next((said for said, pattern in SIGNATURES if re.match(pattern, data, re.DOTALL)), None)
    return "TIFF of a rare layout" if known is None and _is_tiff(data) else known


def _is_tiff(data: bytes) -> bool:
    """Whether it is a TIFF with a whole header, of samples that Pillow has no mode for, such as colours in floats."""
    try:
        TiffImageFile(BytesIO(data))
    except SyntaxError as error:
        return str(error) == "unknown pixel mode"
    except Exception:  # as with any other hostile header
        return False
    return False
