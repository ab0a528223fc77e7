from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps

from agit_core.errors import BadInput
from agit_core.pictures import open_picture
from pipeline.data.prepare.decode import ImagePolicy, StoredImage, Unusable, difference_hash, store
from pipeline.inference.image_items import decode
from tests.pipeline.pictures import encoded, picture

SIZE = 40
PNG = ImagePolicy(SIZE, "png", 95, 16)
JPEG = ImagePolicy(SIZE, "jpeg", 95, 16)


def pixels(stored: StoredImage) -> np.ndarray:
    image = Image.open(io.BytesIO(stored.data))
    assert image.mode == "RGB"
    assert image.size == (SIZE, SIZE)
    return np.asarray(image).astype(int)


def grey16() -> bytes:
    values = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    return encoded(Image.fromarray(values))


def palette_with_hole() -> bytes:
    image = picture(1).quantize(16)
    return encoded(image, "PNG", transparency=0)


def animated() -> bytes:
    frames = [picture(seed) for seed in range(3)]
    return encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: encoded(picture(1)), lambda: picture(1)),
        (lambda: encoded(picture(1, mode="L")), lambda: picture(1, mode="L").convert("RGB")),
        (lambda: encoded(picture(1).convert("1")), lambda: picture(1).convert("1").convert("RGB")),
        (grey16, lambda: Image.fromarray(np.linspace(0, 255.99, 1600).reshape(40, 40).astype(np.uint8))),
        (animated, lambda: picture(0)),
        (lambda: encoded(picture(1), "TIFF"), lambda: picture(1)),
        (lambda: encoded(picture(1), "BMP"), lambda: picture(1)),
        (lambda: encoded(picture(1), "WEBP", lossless=True), lambda: picture(1)),
        (lambda: encoded(picture(1).quantize(255)), lambda: picture(1).quantize(255).convert("RGB")),
    ],
    ids=["rgb", "grey", "bilevel", "16 bit", "animated", "tiff", "bmp", "webp", "palette"],
)
def test_everything_becomes_rgb(make: Callable[[], bytes], expected: Callable[[], Image.Image]) -> None:
    want = np.asarray(expected().convert("RGB")).astype(int)
    assert np.abs(pixels(store(make(), None, PNG)) - want).max() <= 1


def test_cmyk_jpeg_has_the_right_colours() -> None:
    red = Image.new("CMYK", (SIZE, SIZE), (0, 255, 255, 0))
    assert np.abs(pixels(store(encoded(red, "JPEG", quality=95), None, PNG)) - [255, 0, 0]).max() < 8


def test_alpha_lies_over_white() -> None:
    image = Image.new("RGBA", (SIZE, SIZE), (200, 0, 0, 0))
    image.paste((0, 100, 0, 255), (0, 0, 20, SIZE))
    out = pixels(store(encoded(image), None, PNG))
    assert (out[:, :20] == [0, 100, 0]).all()
    assert (out[:, 20:] == 255).all()
    hole = pixels(store(palette_with_hole(), None, PNG))
    where = np.asarray(picture(1).quantize(16)) == 0
    assert where.any()
    assert (hole[where] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = picture(3, (60, 40))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    turned = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = store(encoded(turned, "PNG", exif=exif), None, PNG)
    want = np.asarray(upright.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(stored) - want).max() <= 6
    assert (stored.width, stored.height) == (60, 40)


def test_a_colour_profile_is_converted_to_srgb() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "xBGR".encode("utf-16-be"))
    out = pixels(store(encoded(picture(1), icc_profile=swapped), None, PNG))
    assert np.abs(out - np.asarray(picture(1)).astype(int)[..., ::-1]).max() < 8, "red and blue change places"
    assert (pixels(store(encoded(picture(1), icc_profile=srgb), None, PNG)) == np.asarray(picture(1))).all()
    broken = encoded(picture(1), icc_profile=b"not a profile")
    assert (pixels(store(broken, None, PNG)) == np.asarray(picture(1))).all()


def test_a_jpeg_that_fits_is_stored_as_it_came() -> None:
    data = encoded(picture(1), "JPEG", quality=80)
    assert store(data, None, JPEG).data == data
    assert store(data, None, PNG).data != data
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    private = encoded(picture(1), "JPEG", quality=80, exif=exif, comment=b"my garden")
    assert b"my garden" in private
    stored = store(private, None, JPEG).data
    assert b"camera" not in stored
    assert b"my garden" not in stored
    grey = encoded(picture(1, mode="L"), "JPEG")
    assert Image.open(io.BytesIO(store(grey, None, JPEG).data)).mode == "RGB"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        (encoded(picture(1, (200, 200)), "JPEG")[:900], "cannot be decoded"),
        (encoded(picture(1, (200, 200)), "PNG")[:400], "cannot be decoded"),
        (encoded(picture(1, (200, 12))), "200 x 12 pixels is smaller than minimum_size 16"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_unusable_files_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        store(data, None, JPEG)


def test_a_bomb_is_refused() -> None:
    bomb = encoded(Image.new("1", (20000, 20000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(Unusable, match="pixels"):
        store(bomb, None, JPEG)


def test_a_large_jpeg_is_close_to_full_decoding() -> None:
    large = picture(5, (400, 300))
    want = np.asarray(large.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(pixels(store(encoded(large, "JPEG", quality=95), None, PNG)) - want).mean() < 2


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_what_is_no_square_is_squashed_or_cropped(resize: str, tall: bool) -> None:
    """A white disc in the middle of a picture twice as long as it is high, with its mask."""
    disc = Image.new("L", (160, 80))
    ImageDraw.Draw(disc).ellipse((50, 10, 110, 70), fill=255)
    disc = disc.transpose(Image.Transpose.ROTATE_90) if tall else disc
    policy = replace(PNG, resize=resize)
    stored = store(encoded(disc.convert("RGB")), encoded(disc), policy)
    assert stored.mask is not None
    for image in (pixels(stored)[..., 0], np.asarray(Image.open(io.BytesIO(stored.mask)))):
        rows, columns = (np.flatnonzero((image > 127).any(axis)) for axis in (1, 0))
        across, along = (np.ptp(columns), np.ptp(rows)) if tall else (np.ptp(rows), np.ptp(columns))
        assert across == pytest.approx(29, abs=2)
        assert along == pytest.approx(29 if resize == "crop" else 15, abs=2)


def test_the_mask_follows_the_image() -> None:
    mask = Image.new("L", (80, 60))
    mask.paste(255, (0, 0, 40, 60))
    stored = store(encoded(picture(1, (80, 60))), encoded(mask), JPEG)
    assert stored.mask is not None
    out = np.asarray(Image.open(io.BytesIO(stored.mask)))
    assert out.shape == (SIZE, SIZE)
    assert set(np.unique(out)) == {0, 255}
    assert (out[:, :20] == 255).all()
    assert (out[:, 20:] == 0).all()
    other = store(encoded(picture(1, (80, 60))), encoded(mask.resize((60, 80))), JPEG)
    assert other.mask is None
    assert "60 x 80" in (other.mask_refused or "")
    broken = store(encoded(picture(1)), b"no mask", JPEG)
    assert broken.mask is None
    assert "mask" in (broken.mask_refused or "")


def _of_classes(kind: str) -> Image.Image:
    """An object on the left half; class 1 by default."""
    classes = np.zeros((60, 80), np.uint16)
    classes[:, :40] = 1
    if kind == "palette":
        image = Image.fromarray(classes.astype(np.uint8))
        image.putpalette([0, 0, 0, 128, 0, 0, *[255] * 762])  # the first class of Pascal VOC, a dark red
        return image
    if kind == "palette with void":
        classes[:, 38:42] = 255
        image = Image.fromarray(classes.astype(np.uint8))
        image.putpalette([0, 0, 0, 128, 128, 0, *[9] * 759, 224, 224, 192])
        return image
    if kind == "colours":
        pixels = np.zeros((60, 80, 3), np.uint8)
        pixels[:30, :40], pixels[30:, :40] = (
            (220, 20, 60),
            (250, 250, 30),
        )  # two classes, one dark, one bright
        return Image.fromarray(pixels)
    if kind == "16 bit objects":
        classes[:30, :40], classes[30:, :40] = 5, 300
    return Image.fromarray(classes if "16 bit" in kind else classes.astype(np.uint8))


@pytest.mark.parametrize(
    "kind", ["8 bit", "16 bit", "16 bit objects", "palette", "palette with void", "colours"]
)
def test_a_mask_of_classes_is_no_black_mask(kind: str) -> None:
    stored = store(encoded(picture(1, (80, 60))), encoded(_of_classes(kind)), JPEG)
    assert stored.mask is not None
    out = np.asarray(Image.open(io.BytesIO(stored.mask)))
    edge = 18 if "void" in kind else 20
    assert (out[:, :edge] == 255).all()
    assert (out[:, 20:] == 0).all()


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_bright_values_mean_the_object_where_edges_are_soft(mode: str) -> None:
    ramp = np.zeros((60, 80), np.uint16)
    ramp[:, :30] = 255
    ramp[:, 30:50] = np.linspace(255, 0, 20)
    mask = Image.fromarray(ramp * 257 if mode == "I;16" else ramp.astype(np.uint8))
    stored = store(encoded(picture(1, (80, 60))), encoded(mask), JPEG)
    out = np.asarray(Image.open(io.BytesIO(stored.mask or b"")))
    assert (out[:, :19] == 255).all()
    assert (out[:, 21:] == 0).all()


@pytest.mark.parametrize("kind", ["class 1 and 255 to ignore", "colours without black"])
def test_a_mask_that_may_mean_two_things_is_not_guessed(kind: str) -> None:
    if kind.startswith("class"):
        values = np.zeros((60, 80), np.uint8)
        values[:, :40], values[:, 40:44] = 1, 255
        mask = Image.fromarray(values)
    else:
        mask = Image.new("RGB", (80, 60), "blue")
        mask.paste("yellow", (0, 0, 40, 60))
    stored = store(encoded(picture(1, (80, 60))), encoded(mask), JPEG)
    assert stored.mask is None
    assert re.search("mix classes with bright values|colours but no black", stored.mask_refused or "")


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("drawn", ["before", "after", "before, and says so"])
@pytest.mark.parametrize("size", [(60, 60), (80, 60)])
def test_no_mask_lies_otherwise_than_its_image(orientation: int, drawn: str, size: tuple[int, int]) -> None:
    """A bright corner, and the mask of it: drawn before or after the image is turned as its EXIF says."""
    shape = Image.new("L", size)
    shape.paste(255, (0, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = encoded(shape.convert("RGB"), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("L")
    mask = {
        "before": encoded(shape),
        "after": encoded(upright),
        "before, and says so": encoded(shape, exif=exif),
    }[drawn]
    stored = store(photo, mask, PNG)
    told = (
        orientation in {0, 1}
        or "says" in drawn
        or (drawn == "after" and orientation >= 5 and size[0] != size[1])
    )
    assert (stored.mask is not None) == told
    if stored.mask is None:
        assert "it is ambiguous whether the mask is too" in str(stored.mask_refused)
    else:
        assert (np.asarray(Image.open(io.BytesIO(stored.mask))) == 255).mean() > 0.1
        assert (
            (pixels(stored)[..., 0] > 127) == (np.asarray(Image.open(io.BytesIO(stored.mask))) > 127)
        ).mean() > 0.97


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_cut_outs_mask_is_its_opacity(mode: str) -> None:
    opacity = Image.new("L", (80, 60))
    opacity.paste(255, (0, 0, 40, 60))
    cut = picture(1, (80, 60)).convert(mode)
    cut.putalpha(opacity)
    for image in (cut, _opaque(opacity, mode)):
        stored = store(encoded(picture(1, (80, 60))), encoded(image), JPEG)
        assert stored.mask is not None
        out = np.asarray(Image.open(io.BytesIO(stored.mask)))
        assert (out[:, :20] == 255).all()
        assert (out[:, 20:] == 0).all()


def _opaque(mask: Image.Image, mode: str) -> Image.Image:
    image = mask.convert(mode)
    image.putalpha(255)
    return image


def test_a_jpegs_near_blacks_are_no_classes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 9, (60, 80), np.uint8))
    stored = store(encoded(picture(1, (80, 60))), encoded(noise, "JPEG"), JPEG)
    assert not np.asarray(Image.open(io.BytesIO(stored.mask or b""))).any()


def test_whatever_a_decoder_raises_makes_an_image_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    def upset(image: Image.Image) -> None:
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", upset)
    with pytest.raises(Unusable, match="required argument is not an integer"):
        store(encoded(picture(1)), None, JPEG)


def test_looks_of_copies_are_close_and_others_far() -> None:
    def bits(one: bytes, other: bytes) -> int:
        return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()

    original = picture(7, (120, 90))
    again = Image.open(io.BytesIO(encoded(original.resize((100, 75)), "JPEG", quality=70)))
    assert bits(difference_hash(original), difference_hash(again)) <= 3
    assert (
        min(
            bits(difference_hash(original), difference_hash(picture(seed, (120, 90))))
            for seed in range(8, 40)
        )
        > 20
    )


def _noisy() -> bytes:
    noise = np.random.default_rng(2).integers(0, 256, (120, 160, 3), np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", quality=85, progressive=False)


@pytest.mark.parametrize("mend", ["end put back", "filled with zeros", "PNG with a wrong checksum"])
def test_what_decodes_with_warnings_only_is_damaged(mend: str) -> None:
    data = _noisy()
    third = len(data) // 3
    store(data, None, PNG)
    if mend == "end put back":
        data = data[:third] + b"\xff\xd9"
    elif mend == "filled with zeros":
        data = data[:third] + bytes(len(data) - third - 2) + b"\xff\xd9"
    else:
        broken = bytearray(encoded(picture(1)))
        broken[-14] ^= 1
        data = bytes(broken)
    with pytest.raises(Unusable, match="cannot be decoded"):
        store(data, None, PNG)


def test_padding_that_cameras_write_is_no_damage() -> None:
    data = _noisy()
    store(data[:-2] + bytes(16) + data[-2:], None, PNG)


def test_further_frames_and_assumed_ranges_are_noted() -> None:
    assert store(animated(), None, PNG).notes == ("only the first of its 3 frames is used",)
    deep = Image.fromarray(np.linspace(0, 4095, 1600).reshape(40, 40).astype(np.uint16))
    assert "read as 12 bits" in store(encoded(deep), None, PNG).notes[0]
    assert store(encoded(picture(1)), None, PNG).notes == ()


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow reads but does not write; RGB, or with alpha."""
    height, width, channels = values.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("alpha", [False, True])
def test_deep_colours_are_scaled_or_refused_but_never_black(alpha: bool) -> None:
    """Pillow keeps the upper eight of 16 bits: of twelve, the upper four."""
    colours = np.asarray(picture(1)).astype(np.uint16)
    opaque = np.full((*colours.shape[:2], 1), 65535, np.uint16)
    full, twelve = (np.dstack([colours * k, opaque] if alpha else [colours * k]) for k in (257, 16))
    assert (pixels(store(png16(full), None, PNG)) == colours).all()
    assert np.array_equal(np.asarray(decode(png16(full)).convert("RGB")), colours)
    with pytest.raises(Unusable, match="nearly black; scale them to 16 bits"):
        store(png16(twelve), None, PNG)
    with pytest.raises(BadInput, match="nearly black"):
        open_picture(decode(png16(twelve)))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_tiff_and_its_mask_are_turned_alike(orientation: int) -> None:
    shape = Image.new("L", (80, 60))
    shape.paste(255, (0, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = store(encoded(shape.convert("RGB"), "TIFF", exif=exif), encoded(shape, "TIFF", exif=exif), PNG)
    assert (stored.width, stored.height) == ((80, 60) if orientation == 3 else (60, 80))
    assert stored.mask is not None
    mask = np.asarray(Image.open(io.BytesIO(stored.mask))) > 127
    assert ((pixels(stored)[..., 0] > 127) == mask).mean() > 0.97
