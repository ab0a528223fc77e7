"""Settings of a translation, sent from the command to every worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agit_core import Translator
from agit_core.translator import TILE_PIXELS


@dataclass(frozen=True)
class Settings:
    """Settings of a translation; picklable. See :class:`agit_core.translator.Translator`."""

    model: str
    direction: str = "a2b"
    masks: bool = False
    device: str = "auto"
    autocast: Literal["auto", "bf16", "off"] = "off"
    tile_pixels: int = TILE_PIXELS
    work_side: int | None = None
    threshold: float | None = None

    def translator(self) -> Translator:
        return Translator.load(
            self.model, self.device, self.autocast, self.tile_pixels, self.work_side, self.threshold
        )
