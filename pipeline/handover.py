"""What one stage hands to the next: prepared data, and a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

START = "start.json"
"""File of a run that started from a model's weights: ``uri`` and ``digest`` of that model."""


@dataclass(frozen=True)
class Data:
    """Prepared images: where they are and what their manifest says."""

    uri: str
    manifest: dict[str, Any]
    reused: bool


@dataclass(frozen=True)
class Run:
    """A training run and what has become of it so far."""

    run_id: str
    uri: str
    result: dict[str, Any]
    reused: bool = False
