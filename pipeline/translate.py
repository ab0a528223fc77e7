"""``agit translate``: one image, a folder, a zip, a Parquet URI or a video file.

Inputs and outputs are local paths or ``s3://`` URIs. Each translation appears whole or not at all under its
source's name, so an interrupted run goes on where it was: ``.agit-translate.json`` in the output folder says
which model, direction and input its files belong to. What cannot be read is listed and skipped.
"""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from agit_core import Translator
from agit_core.errors import BadInput
from agit_core.translator import TILE_PIXELS
from pipeline import storage
from pipeline.translate_images import mask_name, output_name, translate_item
from pipeline.translate_inputs import IMAGES, VIDEOS, Inputs, Item, find, suffix_of

JOURNAL = ".agit-translate.json"
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """How to translate; small and plain, so that it travels to workers."""

    model: str
    direction: str = "a2b"
    masks: bool = False
    device: str = "auto"
    autocast: Literal["auto", "bf16", "off"] = "off"
    tile_pixels: int = TILE_PIXELS

    def translator(self) -> Translator:
        return Translator.load(self.model, self.device, self.autocast, self.tile_pixels)


@dataclass
class _Outcome:
    translated: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)


def translate(
    input: str,
    output: str,
    model: str,
    direction: str = "a2b",
    *,
    masks: bool = False,
    overwrite: bool = False,
    batch: bool = False,
    workers: int | None = None,
    smooth: float = 0.0,
    device: str = "auto",
    autocast: Literal["auto", "bf16", "off"] = "off",
    tile_pixels: int = TILE_PIXELS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Translates everything in ``input``.

    Args:
        input: an image, a folder (searched recursively), a ``.zip``, a ``.parquet`` file or folder of them
            (Hugging Face image column), or a video; local or ``s3://``.
        output: for one image or video a file, or a folder; otherwise a folder, or a ``.zip``.
        model: path, ``s3://`` URI or ``models:/name@alias``.
        direction: ``a2b`` or ``b2a``.
        masks: also write each attention mask, as ``NAME.mask.png`` beside the image (videos: a second video).
        overwrite: replace files that are there.
        batch: spread the images over a Ray cluster (``RAY_ADDRESS``, or a local one of this process's own).
        workers: Ray actors of a batch; default: one per GPU, without GPUs one per two CPUs.
        smooth: videos: share of the previous frame's change that unmoved pixels keep, in [0, 1): 0 translates
            each frame alone, 0.8 removes most flicker.
        device, autocast, tile_pixels: see :class:`agit_core.translator.Translator`.
        progress: called with ``done``, ``total``, ``unit``, ``message``, ``images_per_s``, ``eta_s``.

    Returns:
        JSON-ready: ``input``, ``output``, ``model``, ``direction``, ``translated``, ``skipped`` (finished by
        an earlier run), ``failed`` (``name`` and ``reason`` each), ``seconds``; videos also ``notes``.

    Raises:
        BadInput: nothing to translate or none of it readable, an output that would be overwritten, no model.
        RunFailed: the storage failed in the middle; the same call goes on.
    """
    began = time.monotonic()
    settings = Settings(model, direction, masks, device, autocast, tile_pixels)
    found = find(input)
    # the workers of a batch have the GPUs
    translator = (replace(settings, device="cpu") if batch else settings).translator()
    translator.maps(direction)
    head = {"input": input, "output": output, "model": model, "direction": direction}
    if found.kind == "video":
        from pipeline.translate_video import translate_video

        target = _single_target(input, output, VIDEOS, masks, overwrite)
        counts = translate_video(translator, input, target, direction, smooth, masks, progress)
        return {**head, "output": target, "skipped": 0, **counts, "seconds": _since(began)}
    if smooth:
        raise BadInput("smooth is for videos; leave it out for images")
    if found.kind == "image":
        target = _single_target(input, output, IMAGES, masks, overwrite)
        todo, skipped = [(found.items[0], target)], 0
        head["output"] = target
    else:
        folder = f"{output}.parts" if suffix_of(output) == ".zip" else output
        if folder != output and storage.exists(output) and not overwrite:
            raise BadInput(f"{output} exists; name another output or allow it to be overwritten")
        todo, skipped = _plan(found, input, folder, settings, translator.model.digest, overwrite)
    outcome = _Outcome(failed=list(found.refused))
    meter = _Meter(progress, len(todo))
    for item, reason in _run(todo, settings, translator, batch, workers):
        if reason is None:
            outcome.translated += 1
        else:
            outcome.failed.append({"name": item.name, "reason": reason})
        meter.tick(item.name)
    if not outcome.translated and not skipped:
        first = outcome.failed[0]
        many = f"none of the {len(outcome.failed)} images in {input}" if len(outcome.failed) > 1 else input
        raise BadInput(f"cannot translate {many}: {first['name']} {first['reason']}")
    if found.kind != "image" and folder != output:
        _pack(folder, output)
    return {
        **head,
        "translated": outcome.translated,
        "skipped": skipped,
        "failed": outcome.failed,
        "seconds": _since(began),
    }


def _run(
    todo: list[tuple[Item, str]], settings: Settings, translator: Translator, batch: bool, workers: int | None
) -> Iterator[tuple[Item, str | None]]:
    """Translates and yields each item with None or the reason why it failed, in any order."""
    if batch and todo:
        from pipeline.translate_batch import run

        yield from run(todo, settings, workers)
        return
    for item, target in todo:
        yield item, translate_item(translator, item, target, settings.direction, settings.masks)


def _single_target(source: str, output: str, suffixes: tuple[str, ...], masks: bool, overwrite: bool) -> str:
    """Where the translation of one file goes: the output itself, or a file in it when it is a folder."""
    named = suffix_of(output) in suffixes and not output.endswith("/")
    name = storage.name(source)
    target = output if named else storage.join(output, name if suffixes is VIDEOS else output_name(name))
    if _real(target) == _real(source):
        raise BadInput(f"the output {target} is the input itself; name another output")
    for uri in [target, *([mask_name(target)] if masks else [])]:
        if storage.exists(uri) and not overwrite:
            raise BadInput(f"{uri} exists; name another output or allow it to be overwritten")
    return target


def _plan(
    found: Inputs, source: str, folder: str, settings: Settings, digest: str, overwrite: bool
) -> tuple[list[tuple[Item, str]], int]:
    """Which items are still to be translated and where to, and how many an earlier run has finished."""
    inside, outside = _real(source), _real(folder)
    if outside == inside or outside.startswith(inside.rstrip("/") + "/"):
        raise BadInput(f"the output {folder} lies in the input; name another output")
    targets = {storage.join(folder, output_name(item.name)): item for item in found.items}
    there = set(storage.list_(folder, recursive=True))
    journal_uri = storage.join(folder, JOURNAL)
    journal = {"format": 1, "model": digest, "direction": settings.direction, "input": source}
    resumed = journal_uri in there and storage.read_json(journal_uri) == journal and not overwrite

    def files(target: str) -> list[str]:
        return [target, mask_name(target)] if settings.masks else [target]

    taken = [uri for target in targets for uri in files(target) if uri in there]
    if taken and not resumed:
        if not overwrite:
            raise BadInput(
                f"{taken[0]} exists and is not of this model, direction and input; "
                "name another output or allow it to be overwritten"
            )
        # removed at once: should this run be interrupted, what is there is its own
        for uri in [journal_uri, *taken]:
            storage.remove(uri)
        there -= set(taken)
    if found.items:
        storage.write_json(journal_uri, journal)
    todo = [(item, target) for target, item in targets.items() if not there.issuperset(files(target))]
    return todo, len(targets) - len(todo)


def _pack(folder: str, output: str) -> None:
    """The finished translations as one zip, which takes the folder's place."""
    start = len(storage.join(folder)) + 1
    with tempfile.TemporaryDirectory(prefix="agit-zip-") as scratch:
        packed = Path(scratch) / "out.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:  # images do not compress twice
            for uri in storage.list_(folder, recursive=True):
                if storage.name(uri) != JOURNAL:
                    file.writestr(uri[start:], storage.read_bytes(uri))
        storage.upload_file(packed, output)
    storage.remove(folder)


def _real(uri: str) -> str:
    return uri.rstrip("/") if storage.is_remote(uri) else os.path.realpath(storage.local_path(uri))


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


class _Meter:
    """Turns finished items into progress events."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done, self.began = progress, total, 0, time.monotonic()

    def tick(self, name: str) -> None:
        self.done += 1
        if self.progress is None:
            return
        rate = self.done / max(time.monotonic() - self.began, 1e-6)
        self.progress(
            {
                "done": self.done,
                "total": self.total,
                "unit": "images",
                "message": name,
                "images_per_s": rate,
                "eta_s": (self.total - self.done) / rate,
            }
        )
