"""What the scores of the contract are called, and which end of each is good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agit_core.errors import BadInput

DIRECTIONS = ("a2b", "b2a")
DISTANCES = ("kid_target", "kid_source", "kid_mean", "fid")
_HIGHER_IS_BETTER = (
    "attention_iou",
    "attention_precision",
    "attention_recall",
    "attention_inside",
    "background_psnr",
    "background_ssim",
)
_LOWER_IS_BETTER = (*DISTANCES, "attention_outside", "background_l1", "cycle_l1")
_DECIDING = {
    name
    for stem in (*_HIGHER_IS_BETTER, *_LOWER_IS_BETTER)
    for parts in (("a", "b") if stem.startswith(("attention", "cycle")) else DIRECTIONS,)
    for name in (stem, *(f"{stem}_{part}" for part in parts))
}
"""Scores with a better end, of one direction or domain, or without one: the mean of both."""


def check_deciding(setting: str, metric: str) -> None:
    """Whether one of two models can be the better one by this metric.

    Raises:
        BadInput: no such score, or neither end of it is good.
    """
    if metric not in _DECIDING:
        raise BadInput(
            f"{setting} '{metric}' is no score or has no better end; use kid_target, kid_mean, fid, attention_iou_a "
            "or another score of the evaluation"
        )


def lower_is_better(metric: str) -> bool | None:
    """True for distances and errors, False for agreement, None where neither end is good (coverage)."""
    if metric.startswith(_HIGHER_IS_BETTER):
        return False
    return True if metric.startswith(_LOWER_IS_BETTER) else None


def network(inception: Mapping[str, Any]) -> str:
    """Which feature network stands behind FID and KID: scores of different ones cannot be compared."""
    return f"{inception['name']} (SHA-256 {inception['sha256'][:12]})"
