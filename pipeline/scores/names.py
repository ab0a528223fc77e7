"""What the scores of the contract are called, and which end of each is good."""

from __future__ import annotations

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


def lower_is_better(metric: str) -> bool | None:
    """True for distances and errors, False for agreement, None where neither end is good (coverage)."""
    if metric.startswith(_HIGHER_IS_BETTER):
        return False
    return True if metric.startswith(_LOWER_IS_BETTER) else None
