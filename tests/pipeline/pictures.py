"""Small pictures that look like photographs to a codec, for tests."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (40, 40), mode: str = "RGB") -> Image.Image:
    """Smooth random colours: no two seeds look alike."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def folder(
    root: Path, counts: dict[str, int], size: tuple[int, int] = (40, 40), seed: int = 0, masks: bool = False
) -> Path:
    """``counts`` JPEG files per split, all different; with ``masks`` also for the training splits."""
    for split, count in counts.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = picture(zlib.crc32(f"{seed}{split}{i}".encode()), size)
            (root / split / f"{split}-{i:03d}.jpg").write_bytes(encoded(image, "JPEG", quality=92))
            if masks and split.startswith("train"):
                mask = Image.new("L", size)
                mask.paste(255, (0, 0, size[0] // 2, size[1]))
                (root / "masks" / split).mkdir(parents=True, exist_ok=True)
                mask.save(root / "masks" / split / f"{split}-{i:03d}.png")
    return root


FOUR = {"trainA": 8, "trainB": 7, "testA": 4, "testB": 3}
