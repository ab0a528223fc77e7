"""Decoding of untrusted uploaded images within limits, with one-sentence errors."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image

from agit_core import pixels
from agit_core.errors import BadInput
from pipeline.data.images import Unusable, open_image

LARGEST_BYTES = 20 * 2**20
LARGEST_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")


def decode(data: bytes) -> Image.Image:
    """Decode an image and turn it upright by its EXIF orientation.

    Raises:
        BadInput: empty, too large, not an image, or damaged.
    """
    if not data:
        raise BadInput("the image is empty; send an encoded picture (PNG, JPEG, WebP)")
    if len(data) > LARGEST_BYTES:
        raise BadInput(
            f"the image is a file of {len(data) / 2**20:.0f} MiB; the limit is {LARGEST_BYTES // 2**20} MiB"
        )
    try:
        picture = open_image(data, FORMATS)
        if picture.width * picture.height > LARGEST_PIXELS:
            raise BadInput(
                f"the image is of {picture.width} x {picture.height} pixels; "
                f"the limit is {LARGEST_PIXELS // 1_000_000} million"
            )
        return pixels.turned(picture)
    except BadInput:
        raise
    except Unusable as error:
        if str(error) == "not an image":
            raise BadInput(
                "this is not an image that can be read; send PNG, JPEG, WebP, TIFF or BMP"
            ) from None
        raise BadInput(f"the image is damaged ({error}); save it again") from None
    except Exception as error:  # decoders raise arbitrary types
        raise BadInput(f"the image is damaged ({error}); save it again") from None


def decode_colours(data: bytes) -> Image.Image:
    """An encoded picture as it is to be seen, RGB or RGBA: upright, in sRGB, in 8 bits.

    Raises:
        BadInput: what :func:`decode` refuses, or values that cannot be scaled.
    """
    picture = decode(data)
    try:
        found = pixels.read(picture)
    except Exception as error:  # decoders raise anything on damaged files
        raise BadInput(f"the image cannot be read: {' '.join(str(error).split())}") from None
    colour = found.colour.copy()
    if found.alpha is not None:
        colour.putalpha(found.alpha)
    return colour


def decode_base64(text: object) -> Image.Image:
    """Decode an image from a base64 string or a ``data:`` URI.

    Raises:
        BadInput: invalid base64, or an image that :func:`decode` refuses.
    """
    if not isinstance(text, str):
        raise BadInput("an image is a string: the picture's file as base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadInput("the image is not valid base64") from None
    return decode(data)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def png_base64(picture: Image.Image) -> str:
    return base64.b64encode(png(picture)).decode("ascii")
