"""How an evaluation looks to a person: every figure with its interval, doing nothing and the champion beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.cli import console
from pipeline.logs import printable
from pipeline.metrics.names import network

_LABELS = {
    "kid_target": "KID x100 target",
    "kid_source": "KID x100 source",
    "kid_mean": "KID x100 mean",
    "fid": "FID",
    "attention_coverage": "attention coverage",
    "attention_iou": "attention IoU",
    "attention_precision": "attention precision",
    "attention_recall": "attention recall",
    "attention_inside": "attention on the object",
    "attention_outside": "attention elsewhere",
    "attention_opacity": "attention above tau",
    "background_l1": "background L1",
    "background_psnr": "background PSNR",
    "background_ssim": "background SSIM",
    "cycle_l1": "cycle L1",
}
_PLACES = ("a2b", "b2a", "a", "b")
_VERDICT = {"better": "[green]better[/green]", "worse": "[red]worse[/red]", "noise": "noise"}


def show(evaluation: Mapping[str, Any]) -> None:
    """Prints the table of an ``evaluation.json``'s content."""
    champion = evaluation.get("champion")
    table = console.plain_table()
    table.add_column("score", no_wrap=True)
    for column in [
        "value",
        "95 %",
        "doing nothing",
        *([f"champion {champion['version']}"] if champion else []),
    ]:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows(evaluation):
        table.add_row(*row)
    console.write(table)
    counts = evaluation.get("counts") or {}
    images = ", ".join(f"{name} {counts[name]}" for name in ("test_a", "test_b") if name in counts)
    if images:
        console.write(f"images: {images}", soft_wrap=True)
    if evaluation.get("inception"):
        console.write(
            f"FID and KID: features of {network(evaluation['inception'])}", markup=False, soft_wrap=True
        )
    console.write(
        "better, worse: than that one, by more than the 95 % interval of the difference; noise: by less"
    )
    for warning in (evaluation.get("protocol") or {}).get("warnings", []):
        console.write(printable(f"note: {warning}"), markup=False, soft_wrap=True)


def rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    """Score, value, interval, doing nothing and verdict (, champion and verdict) as text."""
    metrics, baseline = evaluation["metrics"], evaluation.get("baseline") or {}
    champion, intervals = evaluation.get("champion"), evaluation.get("intervals") or {}
    found = []
    for stem, label in _LABELS.items():
        scale = 100 if stem.startswith("kid") else 1
        for place in _PLACES:
            name = f"{stem}_{place}"
            if name not in metrics:
                continue
            told = intervals.get(name) or {}
            row = [f"{label}, {place}", _figure(metrics[name], scale), _interval(told, scale)]
            row.append(_rival(baseline.get(name), scale, told.get("do_nothing")))
            if champion:
                row.append(_rival(champion["metrics"].get(name), scale, told.get("champion")))
            found.append(row)
    return found


def _rival(value: Any, scale: int, told: Mapping[str, Any] | None) -> str:
    return f"{_figure(value, scale)} {_VERDICT[told['verdict']] if told else ''}".strip()


def _figure(value: Any, scale: int) -> str:
    return "" if value is None else re.sub(r"^-(0(\.0+)?)$", r"\1", f"{scale * value:.4g}")


def _interval(told: Mapping[str, Any], scale: int) -> str:
    return f"{scale * told['low']:.3g} .. {scale * told['high']:.3g}" if "low" in told else ""
