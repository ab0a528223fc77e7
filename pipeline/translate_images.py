"""One encoded image in, the encoded translation out."""

from __future__ import annotations

import io
import warnings
from typing import Any

from PIL import Image

from agit_core import Translator
from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.data.images import FORMATS
from pipeline.translate_inputs import VIDEOS, Item, suffix_of

_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}


def output_name(name: str) -> str:
    """A translation keeps its source's name; formats that are only read become PNG: ``a.gif.png``."""
    return name if suffix_of(name) in _WRITTEN else f"{name}.png"


def mask_name(name: str) -> str:
    """The mask of the translation ``name``, beside it: an image, or a video for a video."""
    suffix = suffix_of(name)
    return f"{name}.mask{suffix}" if suffix in VIDEOS else f"{name}.mask.png"


def decode(data: bytes) -> Image.Image:
    """An image of any format that is safe to read, first frame.

    Raises:
        BadInput: not an image, a truncated one, or one of absurd size.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at 90 million pixels and refuses twice as many: refusing is enough
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
            return image
    except Exception as error:  # decoders raise anything on damaged files
        reason = str(error) if "BytesIO" not in str(error) else "not an image"
        raise BadInput(f"cannot be read: {' '.join(reason.split()) or type(error).__name__}") from None


def encode(image: Image.Image, name: str) -> bytes:
    """The image in the format that the name's suffix says; the colour profile is kept.

    Raises:
        BadInput: a suffix that cannot be written, or transparency in a format without it.
    """
    suffix = suffix_of(name)
    if suffix not in _WRITTEN:
        raise BadInput(f"cannot write {name}: use one of {', '.join(_WRITTEN)}")
    kind, options = _WRITTEN[suffix]
    if kind == "JPEG" and image.mode == "RGBA":
        raise BadInput(f"{name} would lose the image's transparency; name the output .png or .webp")
    buffer = io.BytesIO()
    if profile := image.info.get("icc_profile"):
        options = options | {"icc_profile": profile}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def translate_item(
    translator: Translator, item: Item, target: str, direction: str, masks: bool
) -> str | None:
    """Reads, translates and writes one image; the mask first, so that the image's presence means finished.

    Returns:
        None, or the reason why the item cannot be translated. A failing storage raises.
    """
    try:
        data = item.read()
    except RunFailed:
        raise
    except Exception as error:  # a missing or damaged file or archive member
        return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
    try:
        result = translator.translate(decode(data), direction)
        image = encode(result.image, target)
    except BadInput as error:
        return str(error)
    if masks:
        storage.write_bytes(mask_name(target), encode(result.mask, mask_name(target)))
    storage.write_bytes(target, image)
    return None
