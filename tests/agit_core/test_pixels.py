"""One reading of pixels: profiles, orientation, depth, whatever the mode and the file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from agit_core import pixels


def reopened(image: Image.Image, format: str = "PNG", **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def linear(name: str = "Linear sRGB") -> bytes:
    """sRGB's primaries with a straight tone curve, whose description says sRGB all the same."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = data.index(b"para", 128)
    start = int.from_bytes(data[data.index(b"rTRC") + 4 : data.index(b"rTRC") + 8])
    assert data[start : start + 4] == b"para", at
    data[start : start + 32] = (b"curv\0\0\0\0\0\0\0\0").ljust(32, b"\0")
    return bytes(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
def test_a_profile_counts_in_every_mode_and_not_its_name(mode: str) -> None:
    image = Image.new("RGB", (8, 8), (51, 51, 51)).convert(mode)
    seen = pixels.read(reopened(image, icc_profile=linear()))
    plain = pixels.read(reopened(image))
    assert plain.colour.getpixel((1, 1)) == (51, 51, 51)
    # a fifth of the light is 0.48 of sRGB's range
    assert np.abs(np.asarray(seen.colour).astype(int) - 124).max() <= 3
    assert (seen.alpha is not None) == (mode in {"RGBA", "LA"})


def test_srgb_itself_changes_no_value() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    assert np.array_equal(pixels.read(reopened(image, icc_profile=srgb)).colour, image)
    assert np.array_equal(pixels.read(reopened(image, icc_profile=b"broken")).colour, image)


@pytest.mark.parametrize("format", ["TIFF", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("loaded", [False, True])
def test_every_format_is_turned_once(format: str, loaded: bool) -> None:
    corner = Image.new("L", (40, 24))
    corner.paste(255, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = reopened(corner.convert("RGB"), format, exif=exif)
    if loaded:
        image.load()
    seen = np.asarray(pixels.read(image).colour)[..., 0]
    want = np.rot90(np.asarray(corner), -1)
    assert seen.shape == want.shape
    assert (np.abs(seen.astype(int) - want) < 60).mean() > 0.95


@pytest.mark.parametrize(("top", "bits"), [(255, 8), (1023, 10), (4095, 12), (2047, 12), (16383, 14)])
def test_deep_grey_fills_the_range_that_its_values_need(top: int, bits: int) -> None:
    ramp = np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.uint16)
    seen = pixels.read(reopened(Image.fromarray(ramp)))
    assert np.asarray(seen.colour).max() == round(top / (2**bits - 1) * 255)
    assert seen.note == f"largest value {top}: read as {bits} bits"
    assert pixels.read(reopened(Image.fromarray(ramp * (65535 // top)))).note is None or top == 1023


def tagged(image: Image.Image, tag: int, old: int, new: int) -> Image.Image:
    """The image as a TIFF of which one tag has another value than Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    before, after = (struct.pack("<HHIH", tag, 3, 1, value) for value in (old, new))
    assert buffer.getvalue().count(before) == 1
    return Image.open(io.BytesIO(buffer.getvalue().replace(before, after)))


@pytest.mark.parametrize(("top", "bits"), [(255, 8), (4095, 16), (65535, 16)])
def test_a_tiff_in_which_zero_is_white_is_no_negative(top: int, bits: int) -> None:
    ramp = np.linspace(0, top, 64 * 64).reshape(64, 64)
    image = Image.fromarray(ramp.astype(np.uint8 if bits == 8 else np.uint16))
    seen = np.asarray(pixels.read(tagged(image, 262, 1, 0)).colour)[..., 0]
    assert np.abs(255 - np.linspace(0, 255, 64 * 64).reshape(64, 64) - seen).max() <= 1


def test_a_tiff_that_pillow_misreads_is_refused() -> None:
    image = tagged(Image.new("RGB", (8, 8)), 284, 1, 2)
    assert pixels.read(image).colour.mode == "RGB"
    image = tagged(Image.new("RGB", (8, 8)), 284, 1, 2)
    image.tag_v2[258] = (16, 16, 16)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="in separate planes"):
        pixels.read(image)


def test_sixteen_bit_colour_that_is_next_to_black_is_named() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(top: int) -> Image.Image:
        rows = np.linspace(0, top, 8 * 8 * 3).reshape(8, 24).astype(">u2")
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
        parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
        return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts))

    assert np.asarray(pixels.read(png(65535)).colour).max() == 255
    with pytest.raises(ValueError, match="nearly black"):
        pixels.read(png(4095))
