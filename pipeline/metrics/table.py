"""The scores as rows for people: one line per score, both directions, doing nothing beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.metrics.names import network

NOTHING = "do_nothing_"
_LABELS = {
    "kid_target": "KID x100, against the target domain",
    "kid_source": "KID x100, against the source domain",
    "kid_mean": "KID x100, mean of both",
    "fid": "FID",
    "attention_coverage": "attention coverage",
    "attention_iou": "attention IoU with the masks",
    "attention_inside": "mean attention inside the masks",
    "attention_outside": "mean attention outside the masks",
    "background_l1": "background change (L1)",
}
_SUFFIX = re.compile(r"_(a2b|b2a|a|b)$")


@dataclass(frozen=True)
class Row:
    """One score; None where it does not exist. Column a2b also holds what belongs to domain a."""

    label: str
    a2b: float | None
    b2a: float | None
    nothing_a2b: float | None
    nothing_b2a: float | None


def rows(metrics: Mapping[str, Any]) -> list[Row]:
    """The headline scores of the flat ``metrics`` of an evaluation, in a fixed order."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        base = key.removeprefix(NOTHING)
        match = _SUFFIX.search(base)
        name = base[: match.start()] if match else base
        if match is None or name not in _LABELS or not isinstance(value, int | float):
            continue
        column = "a2b" if match[1].startswith("a") else "b2a"
        column = f"nothing_{column}" if key != base else column
        found.setdefault(name, {})[column] = 100 * value if name.startswith("kid") else value
    columns = ("a2b", "b2a", "nothing_a2b", "nothing_b2a")
    return [
        Row(label, *(found[name].get(column) for column in columns))
        for name, label in _LABELS.items()
        if name in found
    ]


def markdown(title: str, evaluation: Mapping[str, Any]) -> str:
    """The same of an evaluation as a Markdown page."""
    counts, inception = evaluation.get("counts") or {}, evaluation.get("inception")
    lines = [f"# {title}", "", "| score | a2b | b2a | doing nothing, a2b | doing nothing, b2a |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in rows(evaluation["metrics"]):
        values = (row.a2b, row.b2a, row.nothing_a2b, row.nothing_b2a)
        lines.append(f"| {row.label} | {' | '.join(map(figure, values))} |")
    if counts:
        lines += ["", "Images: " + ", ".join(f"{key} {value}" for key, value in counts.items())]
    if inception:
        lines += ["", f"FID and KID: features of {network(inception)}"]
    return "\n".join(lines)


def figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
