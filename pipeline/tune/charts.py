"""Charts of a search: scores over the steps, one panel per setting, and all settings in parallel coordinates.

The parallel coordinates are drawn as plain lines: Plotly's trace type needs ``eval``, which the page's policy forbids.
"""

from __future__ import annotations

import html
import math
from typing import Any

from pipeline.report.charts import BLUE, GREEN, GREY, VERMILLION, Chart, blank
from pipeline.tune import space
from pipeline.tune.search import Search, Trial

_COLOURS = {"finished": BLUE, "stopped": GREY, "collapsed": VERMILLION, "failed": VERMILLION}


def all_of(search: Search, trials: list[Trial], best: Trial | None) -> list[Chart]:
    """All charts of a search; empty before the first score."""
    scored = [trial for trial in trials if trial.value(search.config.tune.metric) is not None]
    if not scored:
        return []
    return [
        _over_steps(search, scored, best),
        _parallel(search, scored, best),
        *(_by_setting(search, scored, best, i) for i in range(len(search.ranges))),
    ]


def values_of(search: Search, trial: Trial) -> dict[str, Any]:
    """Every searched setting of a trial by key; trial 0 has the configuration's values."""
    config = search.config_of(trial.number)
    return {one.key: space.value_of(config, one.key) for one in search.ranges}


def _over_steps(search: Search, trials: list[Trial], best: Trial | None) -> Chart:
    metric, drawn = search.config.tune.metric, blank()
    for trial in trials:
        points = [(row["resource"], row["metrics"].get(metric)) for row in trial.scores]
        points = [(x, y) for x, y in points if y is not None]
        drawn.add_scatter(
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines+markers",
            name=f"trial {trial.number}",
            line={"color": _colour(trial, best), "width": 3 if trial is best else 1.5},
            marker={"size": 9 if trial is best else 7, "symbol": _symbol(trial)},
            hovertemplate=f"trial {trial.number} ({trial.state})<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
        )
    drawn.update_layout(height=340, hovermode="closest", showlegend=False)
    drawn.update_xaxes(title="step", type="log" if len(search.rungs) > 2 else "linear", tickvals=search.rungs)
    drawn.update_yaxes(title={"text": metric, "standoff": 14})
    summary = "; ".join(f"trial {t.number} {t.value(metric):.4g} after {t.step} steps" for t in trials)
    caption = "One line per trial, the best in green; a line that ends early was stopped."
    return Chart("tune-steps", f"{metric} over the steps", caption, summary, drawn)


def _parallel(search: Search, trials: list[Trial], best: Trial | None) -> Chart:
    metric, drawn = search.config.tune.metric, blank()
    names = [*(one.key for one in search.ranges), metric]
    rows = {t.number: [*values_of(search, t).values(), t.value(metric)] for t in trials}
    places = [
        _places([rows[t.number][i] for t in trials], i < len(search.ranges) and search.ranges[i].logarithmic)
        for i in range(len(names))
    ]
    for at, trial in enumerate(trials):
        labels = [f"{html.escape(n)}: {text(v)}" for n, v in zip(names, rows[trial.number], strict=True)]
        drawn.add_scatter(
            x=list(range(len(names))),
            y=[axis[at] for axis in places],
            mode="lines+markers",
            name=f"trial {trial.number}",
            line={"color": _colour(trial, best), "width": 3 if trial is best else 1.5},
            marker={"size": 7, "symbol": _symbol(trial)},
            opacity=1.0 if trial is best else 0.65,
            hovertext=[f"trial {trial.number} ({trial.state})<br>{label}" for label in labels],
            hoverinfo="text",
            connectgaps=True,
        )
    for i in range(len(names)):
        ends = [rows[t.number][i] for t in trials]
        low, high = _ends(ends, places[i])
        for y, end, anchor in ((-0.04, low, "top"), (1.04, high, "bottom")):
            style = {"size": 11, "color": GREY}
            drawn.add_annotation(x=i, y=y, text=end, showarrow=False, yanchor=anchor, font=style)
        drawn.add_vline(x=i, line={"color": GREY, "width": 1}, layer="below", opacity=0.5)
    ticks = [html.escape(name).rsplit(".", 1)[-1].replace("_", "<br>") for name in names]
    drawn.update_layout(height=400, hovermode="closest", showlegend=False)
    drawn.update_xaxes(tickmode="array", tickvals=list(range(len(names))), ticktext=ticks, showgrid=False)
    drawn.update_xaxes(range=[-0.3, len(names) - 0.7])
    drawn.update_yaxes(visible=False, range=[-0.16, 1.16])
    caption = "One line per trial through its settings, ending at its last score; the best in green."
    summary = "; ".join(f"trial {t.number}: {', '.join(map(text, rows[t.number]))}" for t in trials)
    return Chart("tune-parallel", "All settings side by side", caption, summary, drawn)


def _by_setting(search: Search, trials: list[Trial], best: Trial | None, index: int) -> Chart:
    one, metric, drawn = search.ranges[index], search.config.tune.metric, blank()
    unset = sum(values_of(search, trial)[one.key] is None for trial in trials)
    trials = [trial for trial in trials if values_of(search, trial)[one.key] is not None]
    xs = [values_of(search, trial)[one.key] for trial in trials]
    categories = one.kind == "choice" or not all(_is_number(x) for x in xs)
    drawn.add_scatter(
        x=[str(x) for x in xs] if categories else xs,
        y=[trial.value(metric) for trial in trials],
        mode="markers",
        marker={
            "color": [_colour(trial, best) for trial in trials],
            "symbol": [_symbol(trial) for trial in trials],
            "size": [13 if trial is best else 9 for trial in trials],
        },
        hovertext=[
            f"trial {t.number} ({t.state}, step {t.step})<br>{text(x)}"
            for t, x in zip(trials, xs, strict=True)
        ],
        hovertemplate="%{hovertext}: %{y:.4g}<extra></extra>",
    )
    drawn.update_layout(hovermode="closest", showlegend=False)
    kind = "category" if categories else "log" if one.logarithmic else "linear"
    drawn.update_xaxes(type=kind, categoryorder="array", categoryarray=[str(x) for x in one.arguments])
    drawn.update_yaxes(title={"text": metric, "standoff": 14})
    if one.logarithmic:
        low, high = min([*xs, one.arguments[0]]), max([*xs, one.arguments[1]])
        ticks = [low, math.sqrt(low * high), high]
        drawn.update_xaxes(tickvals=ticks, ticktext=[f"{tick:.2g}" for tick in ticks])
        drawn.update_xaxes(range=[math.log10(low) - 0.05, math.log10(high) + 0.05])
    summary = "; ".join(f"{text(x)}: {t.value(metric):.4g}" for t, x in zip(trials, xs, strict=True))
    caption = f"{one}. The last score of every trial; stopped trials have trained for fewer steps."
    caption += " Trials that leave it unset are not shown." if unset else ""
    return Chart(f"tune-setting-{index}", one.key, caption, summary, drawn)


def _colour(trial: Trial, best: Trial | None) -> str:
    return GREEN if best is not None and trial.number == best.number else _COLOURS.get(trial.state, GREY)


def _symbol(trial: Trial) -> str:
    return {"finished": "circle", "collapsed": "x", "failed": "x"}.get(trial.state, "circle-open")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(values: list[Any], logarithmic: bool) -> list[float | None]:
    """Positions of the values on an axis from 0 to 1; None for unset values."""
    given = [value for value in values if value is not None]
    if all(_is_number(value) for value in given):
        numbers = [math.log(value) if logarithmic and value > 0 else float(value) for value in given]
    else:
        order = sorted({str(value) for value in given})
        numbers = [float(order.index(str(value))) for value in given]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    positions = iter([0.5 if high == low else (number - low) / (high - low) for number in numbers])
    return [None if value is None else next(positions) for value in values]


def _ends(values: list[Any], places: list[float | None]) -> tuple[str, str]:
    """Labels for the lower and the upper end of an axis."""
    pairs = [(place, value) for place, value in zip(places, values, strict=True) if place is not None]
    if not pairs:
        return "", ""
    pairs.sort(key=lambda pair: pair[0])
    return text(pairs[0][1]), text(pairs[-1][1])


def text(value: Any) -> str:
    """Format a setting's value for display, HTML-escaped."""
    if value is None:
        return "not set"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
