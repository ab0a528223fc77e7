"""Terminal table of an evaluation: each metric with its interval, the identity baseline and the champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.cli import console
from pipeline.logs import printable
from pipeline.metrics import catalog
from pipeline.metrics.catalog import Metric
from pipeline.metrics.format import Opponent, network

if TYPE_CHECKING:
    from pipeline.records import Evaluation

_VERDICT = {"better": "[green]better[/green]", "worse": "[red]worse[/red]", "noise": "noise"}


def show(evaluation: Evaluation) -> None:
    """Print an evaluation as a table."""
    champion = evaluation.champion
    table = console.plain_table()
    table.add_column("score", min_width=20)
    for column in [
        "value",
        "95 %",
        "doing nothing",
        *([f"champion {champion.version}"] if champion else []),
    ]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(evaluation):
        table.add_row(*row)
    console.write(table)
    counts = evaluation.counts
    images = ", ".join(f"{name} {counts[name]}" for name in ("test_a", "test_b") if name in counts)
    if images:
        console.write(f"images: {images}", soft_wrap=True)
    if evaluation.inception:
        console.write(
            f"FID and KID: features of {network(evaluation.inception)}", markup=False, soft_wrap=True
        )
    console.write(
        "better, worse: the score differs from that column's by more than the 95 % interval; noise: by less"
    )
    for warning in evaluation.protocol.get("warnings", []):
        console.write(printable(f"note: {warning}"), markup=False, soft_wrap=True)


def rows(evaluation: Evaluation) -> list[list[str]]:
    """Rows of text: score, value, interval, doing nothing with verdict and, if there is one, champion with verdict."""
    metrics, baseline = evaluation.metrics, evaluation.baseline
    champion, intervals = evaluation.champion, evaluation.intervals
    mine = Opponent(metrics, intervals)
    table = []
    for metric in catalog.METRICS:
        for place in metric.places:
            name = f"{metric.name}_{place}"
            if name not in metrics:
                continue
            tested, estimate = intervals.get(name) or {}, mine.estimate(name)
            row = [f"{metric.label}, {place}", metric.text(metrics[name])]
            row.append(estimate.interval(metric) if estimate else "")
            row.append(_rival(metric, baseline.get(name), tested.get("do_nothing")))
            if champion:
                row.append(_rival(metric, champion.metrics.get(name), tested.get("champion")))
            table.append(row)
    return table


def _rival(metric: Metric, value: float | None, tested: Mapping[str, Any] | None) -> str:
    return f"{metric.text(value)} {_VERDICT[tested['verdict']] if tested else ''}".strip()
