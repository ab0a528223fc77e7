"""Report section on validation: curves of the checkpoints' scores, and a comparison of the best and the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.metrics import catalog, table
from pipeline.metrics.catalog import BLOB, IOU, KID_TARGET, Metric
from pipeline.metrics.format import Opponent, Scores, number
from pipeline.records import Validation
from pipeline.report.charts import GREY, A, B, Chart, Line, over_steps
from pipeline.report.run_data import Run


def charts(rows: list[dict[str, Any]], names: tuple[str, str]) -> list[Chart]:
    """Charts of the checkpoints' validation scores over the steps."""
    a, b = names
    arrows = {"a2b": f"{a} → {b}", "b2a": f"{b} → {a}", "a": a, "b": b}
    drawn = []
    for key, title, metrics in (
        ("kid", KID_TARGET.label, (KID_TARGET,)),
        ("iou", IOU.label, (IOU, BLOB)),
        ("background", "Background change, L1", (catalog.get("background_l1"),)),
    ):
        lines = [
            Line(
                arrows[place] if metric is metrics[0] else f"a fixed blob, {arrows[place]}",
                _validated(metric, place),
                colour if metric is metrics[0] else GREY,
                dash,
            )
            for metric in metrics
            for place, colour, dash in zip(metric.places, (A, B), ("solid", "dash"), strict=True)
        ]
        caption = f"On validation images, which no step saw: {metrics[0].hint}."
        chart = over_steps(f"validation-{key}", title, caption, lines, rows, None, smooth=False)
        if chart is not None:
            drawn.append(chart)
    return drawn


def section(run: Run, names: tuple[str, str]) -> dict[str, Any] | None:
    """The best and the last checkpoint on validation images: ``lead``, ``columns``, ``rows``; None without scores."""
    summary = run.result.validation if run.result else None
    scored = {int(row["step"]): row["validation"] for row in run.metrics if row.get("validation")}
    if summary is None and not scored:
        return None
    best, last = (summary.best_step, summary.last_step) if summary else (None, None)
    selected = summary is not None and summary.metric is not None
    shown = [step for step in (best, last) if step in scored] or [max(scored, default=0)]
    columns = [
        f"{'best, ' if selected and step == best else ''}{'last, ' if step == last else ''}step {step:,}"
        for step in dict.fromkeys(shown)
    ]
    labels = Scores({}, {}, Opponent({}, {}), Opponent({}, {}), names)
    rows = []
    for metric in table.SHOWN_WHILE_TRAINING:
        for place in metric.places:
            figures = [
                number(scored.get(step, {}).get(f"{metric.name}_{place}")) for step in dict.fromkeys(shown)
            ]
            if any(figure is not None for figure in figures):
                rows.append((f"{metric.label}, {labels.label(place)}", [metric.text(f) for f in figures]))
    return {"lead": _lead(summary, len(scored), names), "columns": columns, "rows": rows}


def _lead(summary: Validation | None, count: int, names: tuple[str, str]) -> str:
    if summary is None:
        return f"{count} checkpoints have been scored so far."
    images = " and ".join(
        f"{summary.images.get(f'train_{d}')} of {name}" for d, name in zip("ab", names, strict=True)
    )
    text = f"Held out of the training: {images}. {summary.scored} checkpoints were scored in {summary.seconds:,.0f} s. "
    if summary.metric is None:
        return text + "The scores did not choose the model: it is the last checkpoint."
    same = summary.best_step == summary.last_step
    how = "the last one" if same else f"that of step {summary.best_step:,}"
    return text + f"The model is the best checkpoint by {summary.metric}, {how}."


def _validated(metric: Metric, place: str) -> Callable[[dict[str, Any]], Any]:
    def value(row: dict[str, Any]) -> float | None:
        found = number((row.get("validation") or {}).get(f"{metric.name}_{place}"))
        return None if found is None else found * metric.scale

    return value
