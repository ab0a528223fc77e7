"""From whatever bytes a file holds to an upright sRGB image of the stored size, or a reason why not."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from agit_core import pixels
from pipeline.data.images import Unusable, frames_note, open_image, reason
from pipeline.data.prepare.masks import foreground

VERSION = 3
"""Raised when the same files would be stored differently: an older set is then neither found nor built upon."""

_TRANSPOSED_BY_EXIF = {5, 6, 7, 8}
_LOSSY = {"JPEG", "WEBP", "AVIF", "JPEG2000"}


@dataclass(frozen=True)
class ImagePolicy:
    """How images are stored.

    Attributes:
        size: side of the stored square.
        encoding: ``jpeg`` or ``png``.
        jpeg_quality: of newly encoded JPEGs (4:4:4); a JPEG that already fits is stored as it came.
        minimum_size: images with a shorter side are refused.
        resize: ``squash`` makes any shape a square, as the paper does; ``crop`` takes the largest square in the
            middle and keeps the proportions.
    """

    size: int
    encoding: str
    jpeg_quality: int
    minimum_size: int
    resize: str = "squash"

    def fit(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """The square that is stored."""
        size = (self.size, self.size)
        if image.size == size:
            return image
        return image.resize(size, resampling, self._box(*image.size))

    def _box(self, width: int, height: int) -> tuple[float, float, float, float]:
        if self.resize == "squash":
            return 0, 0, width, height
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


@dataclass(frozen=True)
class StoredImage:
    """What a row of a shard holds about one image.

    Attributes:
        data: JPEG or PNG, RGB, ``size`` x ``size``.
        mask: PNG, greyscale, 0 or 255, the same geometry, or None.
        mask_refused: why a mask that was there is not carried along, or None.
        notes: what was assumed or left out, such as the further frames of an animation.
    width, height: of the upright original.
        look: 16 bytes that change little when the picture changes little (two difference hashes).
    """

    data: bytes
    mask: bytes | None
    mask_refused: str | None
    notes: tuple[str, ...]
    width: int
    height: int
    look: bytes

    @property
    def sha256(self) -> str:
        """Of ``data``."""
        return hashlib.sha256(self.data).hexdigest()


def store(data: bytes, mask: bytes | None, policy: ImagePolicy) -> StoredImage:
    """Reads, turns, converts and resizes one image and its mask.

    The pixels are read as :func:`agit_core.pixels.read` says, and laid over white; of an animation the first frame
    is taken. Resizing is bicubic with antialiasing.

    Raises:
        Unusable: not an image, truncated, broken, too small or too large.
    """
    image = open_image(data)
    orientation = _orientation(image)
    # Pillow gives the size of a TIFF as it is looked at
    sideways = orientation in _TRANSPOSED_BY_EXIF and image.format != "TIFF"
    width, height = image.size[::-1] if sideways else image.size
    if min(width, height) < policy.minimum_size:
        raise Unusable(f"{width} x {height} pixels is smaller than minimum_size {policy.minimum_size}")
    plain = _fits_as_it_is(image, policy)
    try:
        if image.format == "JPEG" and min(image.size) >= 3 * policy.size:
            # libjpeg scales by powers of two while decoding; what it leaves is still resized below
            image.draft("RGB", (2 * policy.size, 2 * policy.size))
        found = pixels.read(image)
        square = policy.fit(pixels.over_white(found), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders let through whatever a broken file makes of them
        raise Unusable(reason(error)) from None
    stored_mask, refused = _store_mask(mask, (width, height), orientation, policy) if mask else (None, None)
    return StoredImage(
        data=data if plain else _encode(square, policy),
        mask=stored_mask,
        mask_refused=refused,
        notes=tuple(note for note in (frames_note(image), found.note) if note),
        width=width,
        height=height,
        look=look(square),
    )


def look(image: Image.Image) -> bytes:
    """Difference hashes of an RGB image along rows and columns: 128 bits, compared by Hamming distance."""
    grey = image.convert("L")
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    columns = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(rows[:, 1:] > rows[:, :-1]).ravel(), (columns[1:] > columns[:-1]).ravel()])
    return np.packbits(bits).tobytes()


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(0x0112, 1))
        return value if 1 <= value <= 8 else 1
    except (OSError, ValueError, SyntaxError, TypeError):
        return 1  # unreadable EXIF says nothing about the pixels


def _fits_as_it_is(image: Image.Image, policy: ImagePolicy) -> bool:
    """Whether the bytes can be stored unchanged: encoding again would only lose quality.

    Only a JPEG without metadata qualifies: no profile that others would ignore, nothing about its author.
    """
    return (
        policy.encoding == "jpeg"
        and image.format == "JPEG"
        and image.mode == "RGB"
        and image.size == (policy.size, policy.size)
        and not {"exif", "icc_profile", "xmp", "photoshop", "comment"} & set(image.info)
    )


def _encode(image: Image.Image, policy: ImagePolicy) -> bytes:
    buffer = io.BytesIO()
    image.info = {}  # Pillow would write comments and profiles of the original
    if policy.encoding == "jpeg":
        image.save(buffer, "JPEG", quality=policy.jpeg_quality, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _store_mask(
    data: bytes, image_size: tuple[int, int], orientation: int, policy: ImagePolicy
) -> tuple[bytes | None, str | None]:
    """The mask as PNG or why it is refused; ``image_size``, ``orientation``: of the upright image, of its file."""
    try:
        mask = open_image(data)
        own_orientation = _orientation(mask)
        grey = foreground(pixels.turned(mask), lossless=mask.format not in _LOSSY)
    except Exception as error:
        return None, f"the mask cannot be read: {error}"
    upright = own_orientation != 1 or (orientation in _TRANSPOSED_BY_EXIF and grey.size != image_size[::-1])
    if orientation != 1 and not upright:
        return None, "the image is turned by its EXIF orientation, and whether the mask is cannot be told"
    if abs(grey.width * image_size[1] - grey.height * image_size[0]) > max(*grey.size, *image_size):
        return (
            None,
            f"the mask is {grey.width} x {grey.height} but the image {image_size[0]} x {image_size[1]}",
        )
    resized = policy.fit(grey, Image.Resampling.BOX)
    buffer = io.BytesIO()
    resized.point(lambda value: 255 if value >= 128 else 0).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue(), None
