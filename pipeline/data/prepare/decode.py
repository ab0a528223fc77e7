"""Decoding: the bytes of a file become an upright sRGB image of the stored size, or are refused with a reason."""

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
"""Part of a data set's identity. Increase it when the same files would be stored differently: sets of an older version
are then neither found nor built upon."""

_TRANSPOSED_BY_EXIF = {5, 6, 7, 8}
_LOSSY = {"JPEG", "WEBP", "AVIF", "JPEG2000"}


@dataclass(frozen=True)
class ImagePolicy:
    """How images are stored.

    Attributes:
        size: side of the stored square in pixels.
        encoding: ``jpeg`` or ``png``.
        jpeg_quality: quality of newly encoded JPEGs (4:4:4); a JPEG that already fits is stored unchanged.
        minimum_size: images with a shorter side are refused.
        resize: ``squash`` resizes to a square regardless of the aspect ratio, as in the paper; ``crop`` takes the
            largest central square and keeps the proportions.
    """

    size: int
    encoding: str
    jpeg_quality: int
    minimum_size: int
    resize: str = "squash"

    def fit(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Resize an image to the stored square."""
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
    """A decoded image in the form of a shard's row.

    Attributes:
        data: JPEG or PNG, RGB, ``size`` x ``size``.
        mask: PNG, greyscale, 0 or 255, same geometry; or None.
        mask_refused: why the image's mask was not used; or None.
        notes: assumptions and omissions, such as further frames of an animation.
        width, height: size of the upright original in pixels.
        dhash: perceptual hash (:func:`difference_hash`), 16 bytes.
    """

    data: bytes
    mask: bytes | None
    mask_refused: str | None
    notes: tuple[str, ...]
    width: int
    height: int
    dhash: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of ``data``."""
        return hashlib.sha256(self.data).hexdigest()


def store(data: bytes, mask: bytes | None, policy: ImagePolicy) -> StoredImage:
    """Decode, orient, convert and resize an image and its mask.

    Pixels are read by :func:`agit_core.pixels.read` and composited over white; only the first frame of an animation is
    used. Resizing is bicubic with antialiasing.

    Raises:
        Unusable: not an image, truncated, broken, too small or too large.
    """
    image = open_image(data)
    orientation = _orientation(image)
    # for TIFF, Pillow reports the size after rotation
    sideways = orientation in _TRANSPOSED_BY_EXIF and image.format != "TIFF"
    width, height = image.size[::-1] if sideways else image.size
    if min(width, height) < policy.minimum_size:
        raise Unusable(f"{width} x {height} pixels is smaller than minimum_size {policy.minimum_size}")
    unchanged = _stored_unchanged(image, policy)
    try:
        if image.format == "JPEG" and min(image.size) >= 3 * policy.size:
            # libjpeg scales by powers of two while decoding; what it leaves is still resized below
            image.draft("RGB", (2 * policy.size, 2 * policy.size))
        found = pixels.read(image)
        square = policy.fit(pixels.over_white(found), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions for broken files
        raise Unusable(reason(error)) from None
    stored_mask, refused = _store_mask(mask, (width, height), orientation, policy) if mask else (None, None)
    return StoredImage(
        data=data if unchanged else _encode(square, policy),
        mask=stored_mask,
        mask_refused=refused,
        notes=tuple(note for note in (frames_note(image), found.note) if note),
        width=width,
        height=height,
        dhash=difference_hash(square),
    )


def difference_hash(image: Image.Image) -> bytes:
    """Perceptual hash of an RGB image: difference hashes along rows and columns, 128 bits.

    Similar images have a small Hamming distance.
    """
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
        return 1  # unreadable EXIF does not make the image unusable


def _stored_unchanged(image: Image.Image, policy: ImagePolicy) -> bool:
    """Whether the file's bytes can be stored as they are, which avoids the loss of re-encoding.

    Only a JPEG without metadata qualifies: no colour profile that readers would ignore, no personal data.
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
    image.info = {}  # or Pillow would write the original's comments and profiles
    if policy.encoding == "jpeg":
        image.save(buffer, "JPEG", quality=policy.jpeg_quality, subsampling=0)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _store_mask(
    data: bytes, image_size: tuple[int, int], orientation: int, policy: ImagePolicy
) -> tuple[bytes | None, str | None]:
    """Decode and resize a mask: (PNG, None), or (None, reason) if it is refused.

    Args:
        image_size: width and height of the upright image.
        orientation: EXIF orientation of the image's file.
    """
    try:
        mask = open_image(data)
        own_orientation = _orientation(mask)
        grey = foreground(pixels.turned(mask), lossless=mask.format not in _LOSSY)
    except Exception as error:
        return None, f"the mask cannot be read: {error}"
    upright = own_orientation != 1 or (orientation in _TRANSPOSED_BY_EXIF and grey.size != image_size[::-1])
    if orientation != 1 and not upright:
        return (
            None,
            "the image is rotated by its EXIF orientation, but it is ambiguous whether the mask is too",
        )
    if abs(grey.width * image_size[1] - grey.height * image_size[0]) > max(*grey.size, *image_size):
        return (
            None,
            f"the mask is {grey.width} x {grey.height} but the image {image_size[0]} x {image_size[1]}",
        )
    resized = policy.fit(grey, Image.Resampling.BOX)
    buffer = io.BytesIO()
    resized.point(lambda value: 255 if value >= 128 else 0).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue(), None
