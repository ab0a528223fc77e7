"""Published scores on horse2zebra for comparison: KID x 100 and FID, with protocol and source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.records import Manifest, Split
from pipeline.report.run_data import Run


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published result; values that were not published are empty.

    Attributes:
        protocol: the compared image sets and the measured checkpoint.
        source: the publication.
        verified: checked in that source; otherwise quoted from memory.
    """

    method: str
    kid_a2b: str = ""
    kid_b2a: str = ""
    fid_a2b: str = ""
    fid_b2a: str = ""
    protocol: str
    source: str
    verified: bool = True


_TO_TARGET = "KID and FID to the target, 256 px; best in training"
_UNSB = "UNSB (Kim et al. 2024), table of results, read from its image"
_TO_BOTH = "KID, mean of target and source; the code was changed later"
_UGATIT = "U-GAT-IT (Kim et al. 2020), table of results"
_EARLY = "KID, mean of target and source, 10 subsets of 50"
_PAPER = "Mejjati et al. 2018, Table 1, from memory"
ROWS = (
    Row(method="UNSB", kid_a2b="0.587", fid_a2b="35.7", protocol=_TO_TARGET, source=_UNSB),
    Row(method="CUT", kid_a2b="0.541", fid_a2b="45.5", protocol=_TO_TARGET, source=_UNSB),
    Row(method="CycleGAN", kid_a2b="1.957", fid_a2b="77.2", protocol=_TO_TARGET, source=_UNSB),
    Row(
        method="CycleGAN",
        fid_a2b="64.5",
        fid_b2a="141.2",
        protocol="FID to the target, 256 px",
        source="mmagic's model zoo",
    ),
    Row(method="U-GAT-IT", kid_a2b="7.06 ± 0.80", kid_b2a="7.47 ± 0.71", protocol=_TO_BOTH, source=_UGATIT),
    Row(
        method="this method (AGGAN there)",
        kid_a2b="7.58 ± 0.71",
        kid_b2a="8.80 ± 0.66",
        protocol=_TO_BOTH,
        source=_UGATIT,
    ),
    Row(method="CycleGAN", kid_a2b="8.05 ± 0.72", kid_b2a="8.00 ± 0.66", protocol=_TO_BOTH, source=_UGATIT),
    Row(
        method="AGIT",
        kid_a2b="6.93 ± 0.27",
        kid_b2a="8.87 ± 0.26",
        protocol=_EARLY,
        source=_PAPER,
        verified=False,
    ),
    Row(
        method="CycleGAN",
        kid_a2b="10.25 ± 0.25",
        kid_b2a="11.44 ± 0.38",
        protocol=_EARLY,
        source=_PAPER,
        verified=False,
    ),
)
CAPTION = (
    "KID × 100 and FID on the test images, as published. Rows to the target stand beside “KID to the target” and "
    "“FID to the target”, rows of the mean beside “KID, target and source”; one kind says nothing about the other: "
    "CycleGAN has 1.957 and 8.05. “Best in training” is the best of many checkpoints, picked by these very figures; "
    "reproductions end higher, at an FID of 61.7 to 68 for CUT and 38.9 for UNSB. FID depends on the number of images, "
    "both on their size and on the feature network. Figures marked [unverified] could not be checked in a primary "
    "source."
)
_SIZES = {"trainA": 1067, "trainB": 1334, "testA": 120, "testB": 140}
_SIDE = 256


def table(config: Config, run: Run) -> dict[str, Any] | None:
    """The published scores and their comparability with this run; None for data other than horse2zebra."""
    if not is_horse2zebra(config, run):
        return None
    return {"caption": CAPTION, "comparable": comparable(config, run), "rows": list(ROWS)}


def comparable(config: Config, run: Run) -> str:
    """One sentence on whether this run's scores are comparable with the published ones."""
    counts = run.evaluation.counts if run.evaluation else {}
    images = [counts.get(f"test_{domain}") for domain in "ab"]
    expected = [_SIZES["testA"], _SIZES["testB"]]
    if config.data.image_size != _SIDE:
        return (
            f"This run works at {config.data.image_size} px: none of its figures may be compared with these, which "
            f"are of {_SIDE} px. Compare it with doing nothing, and with other runs of its size and images."
        )
    if images != expected:
        found = " and ".join("no" if count is None else str(count) for count in images)
        return (
            f"This run was scored on {found} test images and not on all {expected[0]} and {expected[1]}: its FID may "
            "not be compared with these, its KID only roughly."
        )
    return (
        "This run was scored at 256 px on all test images with the 2015-12-05 Inception network: its figures to the "
        "target may be compared with the rows to the target, as far as those used the same network and resizing."
    )


def is_horse2zebra(config: Config, run: Run) -> bool:
    """Whether the data is horse2zebra, judging by the source's name or the sizes of the four splits."""
    manifest = run.manifest or Manifest()
    sources = (config.data.source, manifest.source)
    if any("horse2zebra" in source.lower() for source in sources):
        return True
    return {name: manifest.splits.get(name, Split()).files_in for name in _SIZES} == _SIZES
