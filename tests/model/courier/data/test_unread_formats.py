"""What is known and not read is called so; and nothing that is read or is no image at all is called so."""

import struct
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from model.courier.data import images
from model.courier.data.images import ImageRefused
from model.courier.data.unread_formats import name

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


def encoded(form, image=PHOTO, **options):
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def float_colours():
    """A TIFF of 8 x 8 pixels, each of three floats, as scientific programs write it: TIFF 6.0, sections 2 and 19."""
    short, long, behind = 3, 4, 8 + 2 + 10 * 12 + 4  # the types, and where the directory of ten entries ends
    entries = [(256, short, 1, 8), (257, short, 1, 8), (258, short, 3, behind), (259, short, 1, 1), (262, short, 1, 2)]
    entries += [(273, long, 1, behind + 12), (277, short, 1, 3), (278, short, 1, 8), (279, long, 1, 768)]
    entries += [(339, short, 3, behind + 6)]
    directory = struct.pack("<H", 10) + b"".join(struct.pack("<HHII", *one) for one in entries) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<6H", 32, 32, 32, 3, 3, 3) + bytes(768)


UNREAD = {
    "icon": [encoded("ICO"), b"\0\0\2\0\1\0" + bytes(30)],
    "JPEG 2000": [encoded("JPEG2000"), encoded("JPEG2000", no_jp2=True)],
    "QOI": [encoded("QOI")],
    "TGA": [
        encoded("TGA"),
        encoded("TGA", PHOTO.convert("P")),
        encoded("TGA", PHOTO.convert("L"), compression="tga_rle"),
    ],
    "HEIC": [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)],
    "JPEG XL": [b"\xff\x0a" + bytes(99), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)],
    "PSD": [b"8BPS\0\1" + bytes(99)],
    "PNM": [encoded("PPM"), encoded("PPM", PHOTO.convert("L"))],
    "PCX": [encoded("PCX")],
    "DDS": [encoded("DDS")],
    "TIFF of a rare layout": [float_colours()],
}


@pytest.mark.parametrize(("form", "data"), [(form, data) for form, files in UNREAD.items() for data in files])
def test_an_image_in_a_format_that_is_not_read_is_refused_by_its_name(form, data):
    assert name(data) == form
    with pytest.raises(ImageRefused, match=form) as caught:
        images.decode(data)
    assert caught.value.reason == "format_not_read"


@pytest.mark.parametrize("form", images.FORMATS)
def test_what_is_read_is_none_of_them(form):
    assert name(encoded(form)) is None


@pytest.mark.parametrize(
    "data", [b"", b"\0", bytes(4096), b"<!doctype html>", b"P1 is a page", b"BM", b"II*\0", b"MM\0*" + bytes(99)]
)
def test_what_is_no_image_is_none_of_them(data):
    assert name(data) is None


DAMAGED = """
import sys
from io import BytesIO
import numpy as np
from PIL import Image
from model.courier.data import images

rng = np.random.default_rng(0)
photo = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
exif = Image.Exif()
exif[0x0112] = 6
ways = [("TIFF", {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "zstd")]
ways += [("JPEG", {"exif": exif}), ("PNG", {"save_all": True, "append_images": [photo]}), ("WEBP", {}), ("GIF", {})]
refused = 0
for form, options in ways:
    stream = BytesIO()
    photo.save(stream, form, **options)
    for _ in range(60):
        data = bytearray(stream.getvalue())
        start = int(rng.integers(8, len(data)))
        data[start : start + 6] = rng.integers(0, 256, 6, np.uint8).tobytes()
        try:
            images.open_image(bytes(data))
        except images.ImageRefused:
            refused += 1
print(refused)
"""


def test_no_decoder_writes_to_stderr_whatever_it_is_given():
    done = subprocess.run([sys.executable, "-W", "default", "-c", DAMAGED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100
    assert done.stderr == ""
