"""Published scores on horse2zebra, to stand beside ours: KID × 100 on the test sets."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.report.run_data import Run

_UGATIT = "U-GAT-IT's published table"
_PAPER = "the paper's own Table 1, from memory"
ROWS = (
    {"method": "U-GAT-IT", "a2b": "7.06 ± 0.80", "b2a": "7.47 ± 0.71", "source": _UGATIT, "verified": True},
    {
        "method": "this method (AGGAN there)",
        "a2b": "7.58 ± 0.71",
        "b2a": "8.80 ± 0.66",
        "source": _UGATIT,
        "verified": True,
    },
    {"method": "CycleGAN", "a2b": "8.05 ± 0.72", "b2a": "8.00 ± 0.66", "source": _UGATIT, "verified": True},
    {"method": "AGIT", "a2b": "6.93 ± 0.27", "b2a": "8.87 ± 0.26", "source": _PAPER, "verified": False},
    {"method": "CycleGAN", "a2b": "10.25 ± 0.25", "b2a": "11.44 ± 0.38", "source": _PAPER, "verified": False},
)
CAPTION = (
    "KID × 100 on the test images, as published. The protocols differ from each other and perhaps from ours "
    "(subsets, image counts, and whether the score is the mean of both sides), so read them as a scale, not "
    "as a ranking. Figures marked [unverified] could not be checked in a primary source."
)
_SIZES = {"trainA": 1067, "trainB": 1334, "testA": 120, "testB": 140}


def table(config: Config, run: Run) -> dict[str, Any] | None:
    """The published numbers when the data set is horse2zebra, else None."""
    return {"caption": CAPTION, "rows": list(ROWS)} if is_horse2zebra(config, run) else None


def is_horse2zebra(config: Config, run: Run) -> bool:
    """By the source's name, or by the sizes of the four splits of a set of horses and zebras."""
    manifest = run.manifest or {}
    sources = (config.data.source, str(manifest.get("source") or ""))
    if any("horse2zebra" in source.lower() for source in sources):
        return True
    splits = manifest.get("splits") or {}
    return {name: (splits.get(name) or {}).get("files_in") for name in _SIZES} == _SIZES
