"""Integers and floats become pixels as bright as their file or their values say."""

import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

from model.courier.data import images

RAMP = np.linspace(0, 255, 300).astype(np.uint8).reshape(15, 20)


def tiff(values, **options):
    """A TIFF of these numbers, (height, width), uncompressed unless the options say otherwise."""
    stream = BytesIO()
    Image.fromarray(values).save(stream, "TIFF", **options)
    return bytearray(stream.getvalue())


def entry(data, tag):
    """Where the value of a tag stands, which comes after the tag, its type and its count."""
    return data.index(tag.to_bytes(2, sys.byteorder) + b"\3\0\1\0") + 8


def grey(data):
    found = np.asarray(images.decode(bytes(data)))
    assert (found == found[..., :1]).all()
    return found[..., 0]


@pytest.mark.parametrize(
    "values",
    [
        RAMP,
        RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 257,
        RAMP.astype(np.int32) * (2**31 // 256) + 2**22,
        RAMP.astype(np.uint16),
        RAMP.astype(np.uint16) * 257,
        RAMP.astype(np.float32),
        RAMP.astype(np.float32) / 255,
        RAMP.astype(np.float32) * 257,
    ],
    ids=["8 bits", "int32", "int32 of 16 bits", "int32 of 31 bits", "uint16 of 8 bits", "uint16", "float", "float to 1"]
    + ["float of 16 bits"],
)
def test_a_tiff_is_as_bright_as_its_values_say(values):
    assert (grey(tiff(values)) == RAMP).all()


@pytest.mark.parametrize("values", [RAMP.astype(np.int32), RAMP.astype(np.float32) / 255])
def test_a_tiff_that_is_packed_or_lies_on_its_side_is_as_bright(values):
    assert (grey(tiff(values, compression="tiff_lzw")) == RAMP).all()
    assert (grey(tiff(values, tiffinfo={274: 6})) == np.rot90(RAMP, -1)).all()  # orientation 6: to be turned clockwise


def test_unsigned_integers_of_32_bits_keep_their_upper_half():
    data = tiff((RAMP.astype(np.uint32) * (2**24 + 2**16 + 2**8 + 1)).view(np.int32))
    data[entry(data, SAMPLEFORMAT)] = 1
    assert (grey(data) == RAMP).all()


def test_negative_values_are_black_and_what_is_no_number_too():
    assert (grey(tiff(np.where(RAMP > 99, RAMP.astype(np.int32), -7))) == np.where(RAMP > 99, RAMP, 0)).all()
    values = RAMP.astype(np.float32) / 255
    values[0, :3] = np.nan, -np.inf, np.inf
    found = grey(tiff(values))
    assert found[0, :3].tolist() == [0, 0, 255]
    assert (found[1:] == RAMP[1:]).all()


def test_a_float_a_little_above_white_is_white_and_does_not_darken_the_rest():
    values = RAMP.astype(np.float32) / 255
    values[-1, -1] = 1.05
    assert (grey(tiff(values)) == RAMP).all()


def test_a_picture_without_any_number_is_black():
    assert not grey(tiff(np.full((9, 9), np.nan, np.float32))).any()
    assert not grey(tiff(np.zeros((9, 9), np.int32))).any()


def test_where_white_is_zero_the_picture_is_turned():
    data = tiff(RAMP.astype(np.uint16) * 257)
    data[entry(data, PHOTOMETRIC_INTERPRETATION)] = 0
    assert (grey(data) == 255 - RAMP).all()


def test_twelve_bits_have_their_own_white():
    data = tiff(np.zeros((8, 16), np.uint16))
    data[entry(data, BITSPERSAMPLE)] = 12
    data[-256:-64] = b"\x00\x0f\xff" * 64  # the pixels come last: 0 and 4095 in turns, two in three bytes
    assert (grey(data) == [[0, 255] * 8] * 8).all()


def test_a_png_of_sixteen_bits_is_never_brightened():
    stream = BytesIO()
    Image.fromarray(np.full((9, 9), 255, np.uint16)).save(stream, "PNG")
    assert (grey(stream.getvalue()) == 1).all()
