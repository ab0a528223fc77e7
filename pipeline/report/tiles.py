"""Pictures of the report: strips cut into tiles, attention as an overlay, within a size budget.

A strip is one PNG with the :data:`pipeline.report.run_data.COLUMNS` side by side. The page overlays the tiles with
sliders, so they are cut apart; the attention tile becomes a single colour with the mask as opacity.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, UnidentifiedImageError

from pipeline import storage
from pipeline.report.run_data import COLUMNS, Run, SampleStep

LARGEST_TILE = 256
"""Largest side of a tile in pixels; larger ones are downscaled."""
LOSSLESS_TILE = 96
"""Tiles up to this side are stored as PNG."""
VIEWER_BUDGET = 8_000_000
"""Budget in base64 bytes for the sample images over all checkpoints; steps are thinned evenly to stay below it."""
MOST_STEPS = 40
OVERLAY_COLOUR = (255, 0, 170)
"""Magenta: rare in photographs, and distinct in lightness from both dark and light surroundings."""
_QUALITY = 84  # of WebP
_LARGEST_PIXELS = 64_000_000


@dataclass(frozen=True)
class Tiles:
    """The tiles of one sample image as data URIs; ``overlay`` is transparent where attention is zero."""

    real: str
    overlay: str
    translated: str
    reconstructed: str
    coverage: float
    """Mean of the attention tile, in [0, 1]."""

    @property
    def bytes(self) -> int:
        return sum(len(uri) for uri in (self.real, self.overlay, self.translated, self.reconstructed))


@dataclass
class Viewer:
    """The sample images over training: ``directions[d]["images"][i]["steps"][k]`` belongs to ``steps[k]``."""

    steps: list[int] = field(default_factory=list)
    saved_steps: int = 0
    directions: list[dict[str, Any]] = field(default_factory=list)
    tile: int = 0

    @property
    def empty(self) -> bool:
        return not self.directions


def cut(data: bytes, columns: Sequence[str] = COLUMNS) -> Tiles | None:
    """Cut a strip (any format Pillow reads, columns of equal width) into tiles; None if it is unreadable."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > _LARGEST_PIXELS:
                return None
            strip = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None
    width = strip.width // len(columns)
    if width < 1:
        return None
    tiles = {
        name: _reduced(strip.crop((i * width, 0, (i + 1) * width, strip.height)))
        for i, name in enumerate(columns)
    }
    if not set(COLUMNS) <= set(tiles):
        return None
    mask = tiles["attention"].convert("L")
    histogram = mask.histogram()
    covered = sum(value * count for value, count in enumerate(histogram)) / (255 * sum(histogram))
    overlay = Image.new("RGB", mask.size, OVERLAY_COLOUR)
    overlay.putalpha(mask)
    return Tiles(
        real=_encoded(tiles["real"]),
        overlay=_encoded(overlay),
        translated=_encoded(tiles["translated"]),
        reconstructed=_encoded(tiles["reconstructed"]),
        coverage=covered,
    )


def viewer(run: Run, labels: dict[str, str]) -> Viewer:
    """Pictures for the checkpoint slider.

    Args:
        run: the run's data; unreadable pictures are noted in ``run.missing``.
        labels: labels of the directions ``a2b`` and ``b2a``.
    """
    if not run.samples:
        return Viewer()
    last = run.samples[-1]
    finished = {name: tiles for name in last.strips if (tiles := _cut_uri(last.strips[name], last.columns))}
    if not finished:
        run.missing.append("The sample pictures could not be read.")
        return Viewer()
    changing = sum(t.bytes - len(t.real) for t in finished.values())
    room = (VIEWER_BUDGET - sum(len(t.real) for t in finished.values())) // max(changing, 1)
    steps = thinned([s.step for s in run.samples], int(min(max(room, 2), MOST_STEPS)))
    by_step = {s.step: s for s in run.samples}
    view = Viewer(steps=steps, saved_steps=len(run.samples), tile=_side(finished))
    cuts = {step: finished if step == last.step else _cut_step(by_step[step]) for step in steps}
    for direction in ("a2b", "b2a"):
        names = [name for name in last.strips if name in finished and name.startswith(f"{direction}-")]
        images = [
            {
                "name": name.rsplit(".", 1)[0],
                "real": finished[name].real,
                "steps": [_frame(cuts[step].get(name)) for step in steps],
            }
            for name in names
        ]
        if images:
            view.directions.append({"key": direction, "label": labels[direction], "images": images})
    return view


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """Select at most ``most`` of the sorted steps, evenly by position, including the first and the last."""
    if len(steps) <= most:
        return list(steps)
    if most < 2:
        return list(steps[-1:])
    positions = sorted({round(i * (len(steps) - 1) / (most - 1)) for i in range(most)})
    return [steps[p] for p in positions]


def strip_tiles(run: Run, name: str | None) -> Tiles | None:
    """Tiles of a strip stored by the evaluation, by its base name (with or without ``.png``)."""
    if not name:
        return None
    uri = run.pictures.get(name) or run.pictures.get(f"{name}.png")
    return _cut_uri(uri, COLUMNS) if uri else None


def _cut_step(sample: SampleStep) -> dict[str, Tiles]:
    names = list(sample.strips)
    tiles = storage.each(lambda name: _cut_uri(sample.strips[name], sample.columns), names)
    return {name: cut_ for name, cut_ in zip(names, tiles, strict=True) if cut_}


def _cut_uri(uri: str, columns: Sequence[str]) -> Tiles | None:
    try:
        return cut(storage.read_bytes(uri), columns)
    except (FileNotFoundError, IsADirectoryError):
        return None


def _frame(tiles: Tiles | None) -> dict[str, Any] | None:
    if tiles is None:
        return None
    return {
        "overlay": tiles.overlay,
        "translated": tiles.translated,
        "reconstructed": tiles.reconstructed,
        "coverage": round(tiles.coverage, 4),
    }


def _side(tiles: dict[str, Tiles]) -> int:
    first = next(iter(tiles.values()))
    with Image.open(io.BytesIO(base64.b64decode(first.real.split(",", 1)[1]))) as image:
        return int(image.width)


def _reduced(tile: Image.Image) -> Image.Image:
    if max(tile.size) <= LARGEST_TILE:
        return tile
    scale = LARGEST_TILE / max(tile.size)
    size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
    return tile.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image) -> str:
    """Encode an image as a data URI.

    WebP, because it compresses photographs well and supports transparency. Small tiles are lossless PNG, because a
    browser enlarges them and any artefacts with them.
    """
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS_TILE:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "WEBP", quality=_QUALITY, alpha_quality=80, method=2)
        kind = "webp"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
