"""From whatever bytes a file holds to an upright sRGB image of the stored size, or a reason why not."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError

from agit_core.grey import grey_of_wide
from pipeline.data.prepare.masks import foreground

VERSION = 2
"""Raised when the same files would be stored differently: an older set is then neither found nor built upon."""

Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "ICO", "TGA")
    if name in Image.OPEN
)
"""What is read. Not EPS and its like, which would start another program."""

_HEIF = {b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")}
_TRANSPOSED_BY_EXIF = {5, 6, 7, 8}
_LOSSY = {"JPEG", "WEBP", "AVIF", "JPEG2000"}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

ImageFile.LOAD_TRUNCATED_IMAGES = False
# Pillow warns at 90 million pixels and refuses twice as many (a few bytes can claim any size): refusing is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
        width, height: of the upright original.
        look: 16 bytes that change little when the picture changes little (two difference hashes).
    """

    data: bytes
    mask: bytes | None
    mask_refused: str | None
    width: int
    height: int
    look: bytes

    @property
    def sha256(self) -> str:
        """Of ``data``."""
        return hashlib.sha256(self.data).hexdigest()


class Unusable(ValueError):
    """Why an image is quarantined, in a few words."""


def store(data: bytes, mask: bytes | None, policy: ImagePolicy) -> StoredImage:
    """Reads, turns, converts and resizes one image and its mask.

    Greyscale, CMYK, 16 bit, palette and alpha (over white) all become 8-bit sRGB; of an animation the first
    frame is taken; the EXIF orientation is applied. Resizing is bicubic with antialiasing.

    Raises:
        Unusable: not an image, truncated, broken, too small or too large.
    """
    image, orientation = _open(data)
    width, height = (image.height, image.width) if orientation in _TRANSPOSED_BY_EXIF else image.size
    if min(width, height) < policy.minimum_size:
        raise Unusable(f"{width} x {height} pixels is smaller than minimum_size {policy.minimum_size}")
    plain = _fits_as_it_is(image, policy)
    try:
        if image.format == "JPEG" and min(image.size) >= 3 * policy.size:
            # libjpeg scales by powers of two while decoding; what it leaves is still resized below
            image.draft("RGB", (2 * policy.size, 2 * policy.size))
        pixels = policy.fit(_upright_rgb(image), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow's decoders let through whatever a broken file makes of them
        raise Unusable(_reason(error)) from None
    stored_mask, refused = _store_mask(mask, (width, height), orientation, policy) if mask else (None, None)
    return StoredImage(
        data=data if plain else _encode(pixels, policy),
        mask=stored_mask,
        mask_refused=refused,
        width=width,
        height=height,
        look=look(pixels),
    )


def look(image: Image.Image) -> bytes:
    """Difference hashes of an RGB image along rows and columns: 128 bits, compared by Hamming distance."""
    grey = image.convert("L")
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    columns = np.asarray(grey.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    bits = np.concatenate([(rows[:, 1:] > rows[:, :-1]).ravel(), (columns[1:] > columns[:-1]).ravel()])
    return np.packbits(bits).tobytes()


def _open(data: bytes) -> tuple[Image.Image, int]:
    """The first frame, not decoded yet, and its EXIF orientation."""
    if not data:
        raise Unusable("the file is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        return image, _orientation(image)
    except UnidentifiedImageError:
        if data[4:12] in _HEIF:
            raise Unusable("HEIC is not read; convert it to JPEG or PNG") from None
        raise Unusable("not an image") from None
    except Image.DecompressionBombError:
        raise Unusable("more than 178 million pixels") from None
    except Exception as error:  # Pillow's plugins let through whatever a broken file makes of them
        raise Unusable(_reason(error)) from None


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(0x0112, 1))
        return value if 1 <= value <= 8 else 1
    except (OSError, ValueError, SyntaxError, TypeError):
        return 1  # unreadable EXIF says nothing about the pixels


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"cannot be decoded: {text}" if text else f"cannot be decoded: {type(error).__name__}"


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


def _upright_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    oriented = ImageOps.exif_transpose(image) or image
    oriented.load()
    if oriented.mode in {"I;16", "I;16B", "I;16L", "I;16N"}:
        return Image.fromarray((np.asarray(oriented) >> 8).astype(np.uint8)).convert("RGB")
    if oriented.mode in {"I", "F"}:
        return Image.fromarray(grey_of_wide(np.asarray(oriented, dtype=np.float64))).convert("RGB")
    if profile and oriented.mode in {"RGB", "L", "CMYK"}:
        converted = _to_srgb(oriented, profile)
        if converted is not None:
            return converted
    if "A" in oriented.getbands() or "transparency" in oriented.info:
        layered = oriented.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return oriented if oriented.mode == "RGB" else oriented.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The image in sRGB, or None when its profile says nothing new."""
    transform = _transform(profile, image.mode)
    if transform is None:
        return None
    try:
        return ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


@lru_cache(maxsize=64)  # building a transform takes longer than decoding, and a set has few profiles
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None when the profile is broken or is sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


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
        mask, own_orientation = _open(data)
        grey = foreground(ImageOps.exif_transpose(mask), lossless=mask.format not in _LOSSY)
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
