"""``agit translate``: one image, a folder, a zip, a Parquet URI or a video file.

Inputs and outputs are local paths or ``s3://`` URIs. Each translation is written atomically under its source's name,
so an interrupted run can be resumed: ``.agit-translate.json`` in the output folder records the model, direction and
input of its files. Unreadable inputs are reported and skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agit_core import Translator, model_folder
from agit_core.errors import BadInput
from agit_core.translator import TILE_PIXELS
from pipeline import storage
from pipeline.data.litter import SIDECAR
from pipeline.inference import outputs
from pipeline.inference.image_items import Outcome, translate_items
from pipeline.inference.inputs import IMAGES, VIDEOS, Inputs, Item, find, suffix_of
from pipeline.inference.outputs import JOURNAL, pack, single
from pipeline.inference.settings import Settings

Progress = Callable[[dict[str, Any]], None]


@dataclass
class _Counts:
    translated: int = 0
    skipped: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    work_side: int | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Translate everything in ``input``.

    Args:
        input: an image, a folder (searched recursively), a ``.zip``, a ``.parquet`` file or folder of them
            (Hugging Face image column), or a video; local or ``s3://``.
        output: for one image or video a file, or a folder; otherwise a folder, or a ``.zip``.
        model: path, ``s3://`` URI or ``models:/name@alias``.
        direction: ``a2b`` or ``b2a``.
        masks: also write each attention mask, as ``NAME.mask.png`` beside the image (videos: a second video).
        overwrite: replace existing files.
        batch: distribute the images over a Ray cluster (``RAY_ADDRESS``, or else a private local one).
        workers: Ray actors of a batch; default: one per GPU, or without GPUs one per two CPUs.
        smooth: temporal smoothing of videos, in [0, 1): share of the previous frame's change that static pixels
            keep. 0 translates each frame independently, 0.8 removes most flicker.
        device, autocast, tile_pixels, work_side, threshold: see :class:`agit_core.translator.Translator`.
        progress: called with ``done``, ``total``, ``unit``, ``message``, ``images_per_s``, ``eta_s``.

    Returns:
        JSON-ready: ``input``, ``output``, ``model``, ``direction``, ``unit`` (``images`` or ``frames``),
        ``translated``, ``skipped`` (finished by an earlier run), ``failed`` (``name`` and ``reason`` of every other
        file), ``notes`` (what was assumed or left out), ``seconds``.

    Raises:
        BadInput: nothing readable to translate, an output that would be overwritten, or no model.
        RunFailed: the storage failed; the same call resumes.
    """
    began = time.monotonic()
    head = {"input": input, "output": output, "model": model, "direction": direction}
    if workers is not None and not batch:
        raise BadInput("--workers needs --batch; add it, or leave --workers out")
    # absolute and resolved: workers have other working directories, and an alias may be moved meanwhile
    input, output = _absolute(input.rstrip("/") or "/"), _absolute(output)
    settings = Settings(
        _absolute(model_folder.resolve(model)),
        direction,
        masks,
        device,
        autocast,
        tile_pixels,
        work_side,
        threshold,
    )
    found = find(input)
    # in a batch, the GPUs belong to the workers
    translator = (replace(settings, device="cpu") if batch else settings).translator()
    translator.maps(direction)
    if found.kind == "video":
        from pipeline.inference.video import translate_video

        if batch:
            raise BadInput("a video is translated frame by frame; leave --batch out")
        head["output"] = target = single(input, output, VIDEOS, masks, overwrite)
        done = translate_video(translator, input, target, direction, smooth, masks, progress)
        return {**head, "unit": "frames", "skipped": 0, **done, "seconds": _since(began)}
    if smooth:
        raise BadInput("--smooth applies only to videos; leave it out for images")
    if found.kind == "image" and suffix_of(output) != ".zip":
        head["output"] = target = single(input, output, IMAGES, masks, overwrite)
        counts = _Counts()
        if progress is not None:
            translator.watch = _Meter(progress, 0, "rows").at
        _run([(found.items[0], target)], counts, settings, translator, batch, workers, progress)
    else:
        counts = _many(found, input, output, settings, translator, overwrite, batch, workers, progress)
    if not counts.translated and not counts.skipped:
        first = min(counts.failed, key=lambda item: item["reason"] == SIDECAR)
        many = f"any of the {len(counts.failed)} files in {input}" if len(counts.failed) > 1 else input
        raise BadInput(f"cannot translate {many}: {first['name']} {first['reason']}")
    return {
        **head,
        "unit": "images",
        "translated": counts.translated,
        "skipped": counts.skipped,
        "failed": counts.failed,
        "notes": counts.notes,
        "seconds": _since(began),
    }


def _many(
    found: Inputs,
    source: str,
    output: str,
    settings: Settings,
    translator: Translator,
    overwrite: bool,
    batch: bool,
    workers: int | None,
    progress: Progress | None,
) -> _Counts:
    """Translate a list of images into a folder, and pack that for a ``.zip`` output."""
    zipped = suffix_of(output) == ".zip" and not output.endswith("/")
    # into a folder first: a zip could not be resumed after an interruption
    folder = f"{output}.parts" if zipped else output
    packed = zipped and not overwrite and storage.exists(output)
    conflict = BadInput(f"{output} exists; give another output or --overwrite")
    if packed and not storage.exists(storage.join(folder, JOURNAL)):
        raise conflict
    identity = {
        "model": translator.model.digest,
        "direction": settings.direction,
        "side": settings.work_side,
        "threshold": translator.model.method.threshold_at_test,
    }
    plan = outputs.plan(found, source, folder, settings.masks, identity, overwrite)
    counts = _Counts(skipped=plan.skipped, failed=[*found.refused, *plan.refused])
    if packed:
        if plan.finished is None:
            raise conflict
        storage.remove(folder)  # the previous run was interrupted between packing and clean-up
        return replace(counts, failed=plan.finished)
    _run(plan.todo, counts, settings, translator, batch, workers, progress)
    if counts.translated or counts.skipped:
        storage.sweep(folder)
        storage.write_json(storage.join(folder, JOURNAL), {**plan.journal, "failed": counts.failed})
        if zipped:
            pack(folder, output)
    return counts


def _run(
    todo: list[tuple[Item, str]],
    counts: _Counts,
    settings: Settings,
    translator: Translator,
    batch: bool,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Translate the items and record the outcome of each."""
    results: Iterator[Outcome]
    if batch and todo:
        from pipeline.inference.cluster import run

        results = run(todo, settings, workers)
    else:
        results = translate_items(translator, todo, settings.direction, settings.masks)
    meter = _Meter(progress, len(todo))
    for outcome in results:
        name = outcome.item.name
        if outcome.failed is None:
            counts.translated += 1
        else:
            counts.failed.append({"name": name, "reason": outcome.failed})
        if outcome.note:
            counts.notes.append(f"{name}: {outcome.note}")
        meter.tick(name)


def _absolute(uri: str) -> str:
    """Make a local path absolute, keeping a trailing slash."""
    return uri if storage.is_remote(uri) else f"{storage.local_path(uri)}{'/' if uri.endswith('/') else ''}"


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


class _Meter:
    """Converts counts into progress events."""

    def __init__(self, progress: Progress | None, total: int, unit: str = "images") -> None:
        self.progress, self.total, self.unit = progress, total, unit
        self.done, self.began = 0, time.monotonic()

    def tick(self, name: str) -> None:
        self.done += 1
        if self.progress is not None and self.total > 1:
            rate = self.done / max(time.monotonic() - self.began, 1e-6)
            self.progress({**self._event(self.done, self.total), "message": name, "images_per_s": rate})

    def at(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(self._event(done, total))

    def _event(self, done: int, total: int) -> dict[str, Any]:
        left = (time.monotonic() - self.began) * (total - done) / max(done, 1)
        return {"done": done, "total": total, "unit": self.unit, "eta_s": left}
