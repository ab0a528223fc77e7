"""Translation of encoded images, with reading and writing in the background."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from agit_core import Result, Translator, pixels
from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.data.images import Unusable, frames_note, open_image
from pipeline.inference.inputs import VIDEOS, Item, suffix_of

_WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
_ANIMATED = {"PNG", "WEBP", "TIFF"}
_PIXELS_OF_FRAMES = 2**28
_READ_AHEAD = 8
"""Images read in advance: enough to hide an object store's latency."""
_WRITE_BEHIND = 8
"""Translations queued for writing."""
_PIXELS_BEHIND = 32 * 2**20
"""Total pixels of the translations queued for writing; a single one may be larger."""


def output_name(name: str) -> str:
    """File name of a translation: the source's name, with ``.png`` appended for read-only formats (``a.gif.png``)."""
    return name if suffix_of(name) in _WRITTEN else f"{name}.png"


def mask_name(name: str) -> str:
    """File name of the mask of translation ``name``: an image, or a video for a video."""
    suffix = suffix_of(name)
    return f"{name}.mask{suffix}" if suffix in VIDEOS else f"{name}.mask.png"


def check_writable(name: str) -> None:
    """Check that the suffix of an output names a writable format.

    Raises:
        BadInput: it does not; the message lists the writable ones.
    """
    if suffix_of(name) not in _WRITTEN:
        raise BadInput(f"cannot write {name}: use one of {', '.join(_WRITTEN)}")


def decode(data: bytes) -> Image.Image:
    """Decode the first frame of an image of any safe format.

    Raises:
        BadInput: not an image, truncated, or too large.
    """
    try:
        image = open_image(data)
        image.load()
        return image
    except Unusable as error:
        raise BadInput(f"cannot be read: {error}") from None
    except Exception as error:  # decoders raise arbitrary types for damaged files
        raise BadInput(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    Attributes:
        failed: why there is no translation, or None.
        note: what was assumed or left out, or None.
    """

    item: Item
    failed: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class _Frames:
    """Translations of all frames of a file (usually one), with durations in ms."""

    results: list[Result[Image.Image]]
    durations: list[int]
    note: str | None


def encode(images: list[Image.Image], name: str, durations: list[int] | None = None) -> bytes:
    """Encode an image, or all frames of an animation, in the format of the name's suffix.

    Raises:
        BadInput: an unsupported suffix; transparency, frames or a size that the format does not support.
    """
    check_writable(name)
    image, *more = images
    kind, options = _WRITTEN[suffix_of(name)]
    if kind == "JPEG" and image.mode == "RGBA":
        raise BadInput(f"{name} would lose the image's transparency; name the output .png or .webp")
    if more:
        if kind not in _ANIMATED:
            raise BadInput(f"{name} would lose {len(more)} frames; name the output .png, .webp or .tif")
        options = options | {"save_all": True, "append_images": more}
        if kind != "TIFF":
            options |= {"duration": durations, "loop": 0}
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError) as error:  # largest side: 16383 pixels for WebP, 65535 for JPEG
        size = f"{image.width} x {image.height}"
        raise BadInput(f"{name} of {size} pixels cannot be written as {kind} ({error})") from None
    return buffer.getvalue()


def translate_items(
    translator: Translator, todo: Iterable[tuple[Item, str]], direction: str, masks: bool
) -> Iterator[Outcome]:
    """Translate items; yield the outcome of each once it is written or has failed.

    Args:
        todo: items and the URIs of their translations.

    Raises:
        RunFailed: the storage failed, or the device is out of memory.
    """
    waiting = iter(todo)
    reading: deque[tuple[Item, str, Future[bytes]]] = deque()
    writing: deque[tuple[int, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(_READ_AHEAD, "translate-io") as pool:
        try:
            while True:
                for item, target in itertools.islice(waiting, _READ_AHEAD - len(reading)):
                    reading.append((item, target, pool.submit(_read, item)))
                if not reading:
                    break
                item, target, data = reading.popleft()
                try:
                    result = _translated(translator, data.result(), item, direction)
                except BadInput as error:
                    yield Outcome(item, str(error))
                    continue
                size = sum(one.image.width * one.image.height for one in result.results)
                writing.append((size, pool.submit(_write, item, result, target, masks)))
                del result
                while len(writing) > _WRITE_BEHIND or _heavy(writing):
                    yield writing.popleft()[1].result()
            while writing:
                yield writing.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _heavy(writing: deque[tuple[int, Future[Outcome]]]) -> bool:
    return len(writing) > 1 and sum(pixels for pixels, _ in writing) > _PIXELS_BEHIND


def _read(item: Item) -> bytes:
    try:
        return item.read()
    except RunFailed:
        raise
    except Exception as error:  # a missing or damaged file or archive member
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadInput(f"cannot be read: {' '.join(text.split()) or type(error).__name__}") from None


def _translated(translator: Translator, data: bytes, item: Item, direction: str) -> _Frames:
    image = decode(data)
    # further images of an MPO are previews or other views of the same scene
    count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    if count > 1 and count * image.width * image.height > _PIXELS_OF_FRAMES:
        raise BadInput(f"its {count} frames do not fit into memory together; convert it to a video first")
    note = frames_note(image) if count == 1 else None
    results, durations = [], []
    try:
        if image.mode.startswith(("I", "F")):
            note = pixels.read(image).note
        for number in range(count):
            if count > 1:
                image.seek(number)
                image.load()  # before it, the duration is the frame's before
            durations.append(int(image.info.get("duration") or 100))
            results.append(translator.translate(image, direction))
        return _Frames(results, durations, note)
    except (OSError, SyntaxError, ValueError) as error:
        frame = f"frame {len(results)} " if count > 1 else ""
        raise BadInput(f"{frame}cannot be read: {error}") from None
    except torch.OutOfMemoryError:
        raise RunFailed(
            f"{translator.device} ran out of memory on {item.name}; use smaller tiles (--tile-pixels) or "
            "--device cpu"
        ) from None


def _write(item: Item, frames: _Frames, target: str, masks: bool) -> Outcome:
    """Write the mask, then the image, whose presence marks the item as finished."""
    try:
        image = encode([result.image for result in frames.results], target, frames.durations)
        if masks:
            mask = encode([result.mask for result in frames.results], mask_name(target), frames.durations)
            storage.write_bytes(mask_name(target), mask)
    except BadInput as error:
        return Outcome(item, str(error))
    storage.write_bytes(target, image)
    return Outcome(item, note=frames.note)
