"""Opening of encoded images, common to preparation, translation and serving."""

from __future__ import annotations

import importlib
import io
import re
import warnings

import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

from agit_core import pixels

_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "AVIF": "Avif",
    "BMP": "Bmp",
    "GIF": "Gif",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "JPEG2000": "Jpeg2K",
    "ICO": "Ico",
    "TGA": "Tga",
}
for _name in _PLUGINS.values():  # Image.init() would load four times as many
    importlib.import_module(f"PIL.{_name}ImagePlugin")
FORMATS = tuple(name for name in _PLUGINS if name in Image.OPEN)
"""Supported formats, recognised by content. EPS and the like are excluded, because they would start a program."""

_HEIF = {
    b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
}
_PADDING = 64
"""Largest number of padding bytes that some cameras write after a JPEG's scan; more of them means lost pixels."""
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker")

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns from 90 million pixels and refuses twice as many (a header can claim any size); the limit is enough
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Unusable(ValueError):
    """An image cannot be used; the message is a short reason."""


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open the first frame of an image, checked but not decoded yet.

    Raises:
        Unusable: not an image, damaged, or too large.
    """
    if not data:
        raise Unusable("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        if data[4:12] in _HEIF:
            raise Unusable("HEIC is not read; convert it to JPEG or PNG") from None
        raise Unusable("not an image") from None
    except Image.DecompressionBombError:
        raise Unusable("more than 178 million pixels") from None
    except Exception as error:  # Pillow's plugins raise arbitrary exceptions for broken files
        raise Unusable(reason(error)) from None
    image.info[pixels.DEEP] = pixels.deep_colour(image)
    _refuse_damaged(data, image)
    return image


def frames_note(image: Image.Image) -> str | None:
    """Note that only the first frame of an animation, or page of a document, is used; None for a single frame."""
    try:
        count = int(getattr(image, "n_frames", 1))
    except Exception:  # counting reads the whole file, of which only the beginning is needed
        return None
    return f"only the first of its {count} frames is used" if count > 1 else None


def reason(error: BaseException) -> str:
    """A decoder's error on one line."""
    text = " ".join(str(error).split())
    return f"cannot be decoded: {text or type(error).__name__}"


def _refuse_damaged(data: bytes, image: Image.Image) -> None:
    """Detect damage that Pillow ignores: truncated JPEGs (libjpeg only warns) and wrong checksums in PNGs."""
    if image.format in {"JPEG", "MPO"}:
        colours = {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode, "RGB")
        try:
            # at an eighth of the size: reads the whole file at little cost
            simplejpeg.decode_jpeg(data, colours, min_height=1, min_width=1, min_factor=8, strict=True)
        except ValueError as error:
            text = " ".join(str(error).split())
            if not text.startswith(("Corrupt", "Premature", "Inconsistent")):
                return
            padding = _EXTRANEOUS.search(text)
            if padding is None or int(padding[1]) > _PADDING:
                raise Unusable(f"cannot be decoded: {text}") from None
    elif image.format == "PNG":
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as again:
                again.verify()
        except Exception as error:
            raise Unusable(reason(error)) from None
