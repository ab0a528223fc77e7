"""Score tables: one row per metric with both directions and the identity baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.metrics import catalog
from pipeline.metrics.catalog import BLOB, IOU, KID_TARGET, NOTHING
from pipeline.metrics.format import network, number


@dataclass(frozen=True)
class Row:
    """One metric as text, empty where there is no value. Column a2b also holds what belongs to domain a."""

    label: str
    a2b: str
    b2a: str
    nothing_a2b: str
    nothing_b2a: str

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        return self.label, self.a2b, self.b2a, self.nothing_a2b, self.nothing_b2a


@dataclass(frozen=True)
class Curve:
    """Scores of the checkpoint of a step as text."""

    step: int
    cells: tuple[str, ...]
    best: bool


def rows(metrics: Mapping[str, Any]) -> list[Row]:
    """All metrics in the flat ``metrics`` of an evaluation that have a value, in the catalogue's order."""
    found = []
    for metric in catalog.METRICS:
        keys = [f"{prefix}{metric.name}_{place}" for prefix in ("", NOTHING) for place in metric.places]
        values = [number(metrics.get(key)) for key in keys]
        if any(value is not None for value in values):
            found.append(Row(metric.label, *map(metric.text, values)))
    return found


SHOWN_WHILE_TRAINING = (KID_TARGET, IOU, BLOB, catalog.get("background_l1"))


def validation(scores: Mapping[int, Mapping[str, Any]], best: int | None = None) -> list[Curve]:
    """Scores of checkpoints by step, of the few metrics that show how a training proceeds.

    Args:
        best: the step whose checkpoint is the model.
    """
    found = []
    for step, metrics in scores.items():
        cells = tuple(
            metric.text(number(metrics.get(f"{metric.name}_{place}")))
            for metric in SHOWN_WHILE_TRAINING
            for place in metric.places
        )
        found.append(Curve(step, cells, step == best))
    return found


def validation_head() -> list[str]:
    """Headings of :func:`validation`'s cells."""
    return [f"{metric.label}, {place}" for metric in SHOWN_WHILE_TRAINING for place in metric.places]


def validation_markdown(scores: Mapping[int, Mapping[str, Any]], best: int | None) -> str:
    """The same as Markdown, the model's step in bold; empty without scores."""
    if not scores:
        return ""
    head = ["step", *validation_head()]
    lines = ["", "", "## On validation images, while it trained", "", f"| {' | '.join(head)} |"]
    lines.append("|" + "---:|" * len(head))
    for row in validation(scores, best):
        step = f"**{row.step}**" if row.best else str(row.step)
        lines.append(f"| {' | '.join([step, *row.cells])} |")
    return "\n".join(lines)


def markdown(
    title: str, metrics: Mapping[str, Any], counts: Mapping[str, Any], inception: Mapping[str, Any]
) -> str:
    """Metrics, numbers of images and feature network of an evaluation as a Markdown page."""
    lines = [f"# {title}", "", "| score | a2b | b2a | doing nothing, a2b | doing nothing, b2a |"]
    lines.append("|---|---:|---:|---:|---:|")
    lines += [f"| {' | '.join(row.cells)} |" for row in rows(metrics)]
    if counts:
        lines += ["", "Images: " + ", ".join(f"{key} {value}" for key, value in counts.items())]
    if inception:
        lines += ["", f"FID and KID: features of {network(inception)}"]
    return "\n".join(lines)
