"""Charts of the report as Plotly figures; the page draws them from JSON with the bundled plotly.js.

Figures use the light palette; in dark mode, the page replaces each colour by its counterpart in ``DARK``. The palette
(Okabe and Ito) is safe for all kinds of colour vision; domains also differ in dash.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from agit_core.stages import HEALTH_KEYS
from pipeline.metrics import catalog
from pipeline.metrics.format import Estimate

BLUE, VERMILLION, GREEN, GREY, PURPLE = "#0072b2", "#c04f00", "#00795a", "#6b7280", "#a1497c"
DARK = {BLUE: "#63b8ea", VERMILLION: "#f08c4a", GREEN: "#3ecfa0", GREY: "#9aa3b2", PURPLE: "#dd9bc2"}
A, B = BLUE, VERMILLION
MOST_POINTS = 600  # per curve
_SMOOTHED_FROM = 40  # points; shorter curves are drawn unsmoothed


@dataclass(frozen=True)
class Chart:
    """A figure with its caption and a ``summary`` as alternative text."""

    key: str
    title: str
    caption: str
    summary: str
    figure: go.Figure

    def plain(self) -> dict[str, Any]:
        figure = json.loads(self.figure.to_json())
        return {"data": figure["data"], "layout": figure["layout"]}


@dataclass(frozen=True)
class Line:
    """One quantity over the steps: ``value`` extracts a number or None from a row of the metrics."""

    name: str
    value: Callable[[dict[str, Any]], Any]
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class Series:
    """One of the compared models in a chart of intervals."""

    name: str
    colour: str
    symbol: str
    points: Sequence[Estimate | None]


@functools.cache
def bundle() -> tuple[str, str]:
    """plotly.js from the installed package: (base64 of its gzip, base64 of its SHA-256 for the page's policy).

    The package contains only the full bundle (4.8 MB, 2 MB compressed); browsers decompress it natively.
    """
    text = get_plotlyjs().encode()
    packed = base64.b64encode(gzip.compress(text, 9, mtime=0)).decode()
    return packed, base64.b64encode(hashlib.sha256(text).digest()).decode()


def curves(rows: list[dict[str, Any]], names: tuple[str, str], switch: int | None) -> list[Chart]:
    """Charts of losses, learning rate and speed over the steps; charts without data are left out."""
    a, b = names
    arrow = {"ab": f"{a} → {b}", "ba": f"{b} → {a}"}
    specifications = [
        (
            "generator",
            "Generator loss",
            "How well each generator deceives its discriminator; lower is better.",
            [
                Line(arrow["ab"], _loss("generator_ab"), A),
                Line(arrow["ba"], _loss("generator_ba"), B, "dash"),
            ],
        ),
        (
            "discriminator",
            "Discriminator loss",
            "Near 0 the discriminator always wins; balanced training stays well above.",
            [Line(a, _loss("discriminator_a"), A), Line(b, _loss("discriminator_b"), B, "dash")],
        ),
        (
            "cycle",
            "Cycle error",
            "Mean absolute difference between an image and its reconstruction, on [-1, 1].",
            [
                Line(f"{a} → {b} → {a}", _loss("cycle_a"), A),
                Line(f"{b} → {a} → {b}", _loss("cycle_b"), B, "dash"),
            ],
        ),
        (
            "identity",
            "Identity error",
            "How much a generator changes an image that is already in its target domain.",
            [Line(a, _loss("identity_a"), A), Line(b, _loss("identity_b"), B, "dash")],
        ),
        (
            "learning-rate",
            "Learning rate",
            "Constant, then linear decay to zero.",
            [Line("learning rate", _top("learning_rate"), GREEN)],
        ),
        (
            "speed",
            "Images per second",
            "Over all workers; dips are checkpoints, samples or a busy machine.",
            [Line("images per second", _top("images_per_s"), PURPLE)],
        ),
    ]
    charts = []
    for key, title, caption, lines in specifications:
        if key == "identity" and not any(line.value(row) for line in lines for row in rows):
            continue  # all zeros: the loss is off
        chart = over_steps(key, title, caption, lines, rows, switch, smooth=key not in {"learning-rate"})
        if chart:
            charts.append(chart)
    return charts


def mask_health(
    rows: list[dict[str, Any]],
    names: tuple[str, str],
    switch: int | None,
    limits: tuple[float, float],
) -> list[Chart]:
    """Charts of mask health over the steps.

    Args:
        limits: coverage below the first or above the second value counts as a collapse.
    """
    charts = []
    for key in HEALTH_KEYS:
        metric = catalog.get(f"attention_{key}")
        caption = f"{metric.hint[:1].upper()}{metric.hint[1:]}."
        if key == "coverage":
            caption += " Values in the shaded bands are a collapse, to all zeros or all ones."
        lines = [
            Line(names[0], _health(f"{key}_a"), A),
            Line(names[1], _health(f"{key}_b"), B, "dash"),
        ]
        chart = over_steps(f"mask-{key}", metric.label, caption, lines, rows, switch, smooth=False)
        if chart is None:
            continue
        if key != "spread":
            chart.figure.update_yaxes(range=[-0.02, 1.02], tickformat=".0%")
        if key == "coverage":
            for low, high in ((-0.02, limits[0]), (limits[1], 1.02)):
                chart.figure.add_hrect(y0=low, y1=high, fillcolor=VERMILLION, opacity=0.18, line_width=0)
        charts.append(chart)
    return charts


def intervals(
    key: str,
    title: str,
    caption: str,
    groups: Sequence[str],
    series: Sequence[Series],
) -> Chart:
    """Chart of points with intervals, one row per group.

    Args:
        groups: row labels, top to bottom.
        series: the compared models, each with one estimate per group, or None.
    """
    figure = blank()
    spread = 0.5 / max(len(series), 1)
    for index, one in enumerate(series):
        drawn = [(i, e) for i, e in enumerate(one.points) if e is not None]
        # the first series on top of its row
        rows = [-(i + (index - (len(series) - 1) / 2) * spread) for i, _ in drawn]
        reach = [e.reach for _, e in drawn]
        error = {"array": [up for _, up in reach], "arrayminus": [down for down, _ in reach]}
        style = {"type": "data", "symmetric": False, "color": one.colour, "thickness": 2, "width": 5}
        figure.add_scatter(
            x=[e.value for _, e in drawn],
            y=rows,
            mode="markers",
            name=html.escape(one.name),
            marker={"color": one.colour, "symbol": one.symbol, "size": 10},
            error_x=error | style if any(up or down for up, down in reach) else None,
            hovertemplate="%{x:.2f}",
        )
    figure.update_layout(height=90 + 62 * len(groups), hovermode="closest")
    figure.update_xaxes(rangemode="tozero", zeroline=True)
    figure.update_yaxes(
        tickmode="array",
        tickvals=[-i for i in range(len(groups))],
        ticktext=[html.escape(g).replace("\n", "<br>") for g in groups],
        range=[-(len(groups) - 0.45), 0.55],
        zeroline=False,
    )
    summary = "; ".join(
        f"{group}: " + ", ".join(f"{one.name} {e.value:.2f}" for one in series if (e := one.points[i]))
        for i, group in enumerate(groups)
    )
    return Chart(key, title, caption, summary, figure)


def _loss(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: (row.get("losses") or {}).get(key)


def _health(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: (row.get("mask_health") or {}).get(key)


def _top(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row.get(key)


def over_steps(
    key: str,
    title: str,
    caption: str,
    lines: list[Line],
    rows: list[dict[str, Any]],
    switch: int | None,
    smooth: bool,
) -> Chart | None:
    """Lines over the steps, marked where the stage switched; None without any number."""
    figure = blank()
    summaries = []
    for line in lines:
        points = [(int(row["step"]), float(v)) for row in rows if _finite(v := line.value(row))]
        if not points:
            continue
        steps, values = thin(points, MOST_POINTS)
        style = {"color": line.colour, "dash": line.dash, "width": 2}
        name = html.escape(line.name)  # plotly interprets some HTML in names
        if smooth and len(values) >= _SMOOTHED_FROM:
            faint = {"color": line.colour, "width": 1}
            figure.add_scatter(
                x=steps, y=values, mode="lines", line=faint, opacity=0.28, showlegend=False, hoverinfo="skip"
            )
            values = smoothed(values)
        figure.add_scatter(x=steps, y=values, mode="lines", name=name, line=style)
        summaries.append(f"{line.name} from {points[0][1]:.3g} to {points[-1][1]:.3g}")
    if not summaries:
        return None
    if switch is not None:
        figure.add_vline(x=switch, line={"color": GREY, "width": 1.5, "dash": "dot"})
        figure.add_annotation(
            x=switch,
            y=1,
            yref="paper",
            yanchor="bottom",
            text="attention frozen",
            showarrow=False,
            font={"size": 11, "color": GREY},
        )
    figure.update_layout(showlegend=len(summaries) > 1)
    return Chart(key, title, caption, f"{title}: " + "; ".join(summaries) + ".", figure)


def blank() -> go.Figure:
    """Create an empty figure in the report's style."""
    figure = go.Figure()
    figure.update_layout(
        template=None,
        height=260,
        margin={"l": 8, "r": 12, "t": 26, "b": 8},
        hovermode="x unified",
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    figure.update_xaxes(automargin=True, zeroline=False, nticks=7)
    figure.update_yaxes(automargin=True, zeroline=False, nticks=6)
    return figure


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thin(points: list[tuple[int, float]], most: int) -> tuple[list[int], list[float]]:
    """Reduce to at most ``most`` points by averaging bins of equal size; a bin is placed at its last step."""
    if len(points) > most:
        width = math.ceil(len(points) / most)
        bins = [points[i : i + width] for i in range(0, len(points), width)]
        points = [(b[-1][0], sum(v for _, v in b) / len(b)) for b in bins]
    return [s for s, _ in points], [float(f"{v:.5g}") for _, v in points]


def smoothed(values: list[float]) -> list[float]:
    """Centred moving average over about a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    out = []
    for i in range(len(values)):
        window = values[max(0, i - reach) : i + reach + 1]
        out.append(float(f"{sum(window) / len(window):.5g}"))
    return out
