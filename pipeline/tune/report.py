"""Report of a search: the best trial and its margin, a table of all trials, and charts of the settings."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import yaml
from markupsafe import Markup

from pipeline import records, storage
from pipeline.metrics.format import network
from pipeline.redact import redact
from pipeline.report import build as report
from pipeline.report import charts as report_charts
from pipeline.report import tiles
from pipeline.tune import charts as tune_charts
from pipeline.tune.search import ENDED, Search, Trial

_STATES = {"finished": "good", "stopped": "even", "collapsed": "bad", "failed": "bad"}
_PICTURES = 4


def build(search: Search) -> str:
    """Write ``report.html`` of the search from the scores so far; return its URI."""
    uri = storage.join(search.uri, records.REPORT)
    storage.write_text(uri, render(search, search.trials()))
    return uri


def render(search: Search, trials: list[Trial]) -> str:
    """Render the report as HTML."""
    metric, best = search.config.tune.metric, search.best(trials)
    charts = tune_charts.all_of(search, trials, best)
    packed, library_hash = report_charts.bundle() if charts else ("", "")
    script = report.asset("report.js")
    allowed = [report.digest(script), *([library_hash] if charts else [])]
    context = {
        "title": f"{search.config.name}: search {search.search_id}",
        "policy": " ".join(f"'sha256-{digest}'" for digest in allowed),
        "css": Markup(report.asset("report.css")),
        "js": Markup(script),
        "plotly": Markup(packed),
        "verdict": _verdict(search, trials, best),
        "because": _because(search, best),
        "tiles": _tiles(search, trials, best),
        "metric": metric,
        "keys": [one.key for one in search.ranges],
        "rungs": search.rungs,
        "rows": [_row(search, trial, best) for trial in _ranked(search, trials)],
        "pictures": _pictures(best),
        "charts": charts,
        "charts_data": {
            "figures": {chart.key: chart.plain() for chart in charts},
            "dark": report_charts.DARK,
        },
        "space": _space(search, best),
        "config": yaml.safe_dump(
            redact((search.config_of(best.number) if best else search.config).plain()),
            sort_keys=False,
            allow_unicode=True,
        ),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return report.environment().get_template("tune.html.j2").render(context)


def _verdict(search: Search, trials: list[Trial], best: Trial | None) -> str:
    metric = search.config.tune.metric
    if best is None:
        return "No trial has a score yet."
    value = best.value(metric)
    base = trials[0].value(metric, best.resource)
    if best.number == 0:
        return f"The unchanged configuration is best: {metric} {value:.4g}."
    if base is None or value is None:
        return f"Trial {best.number} is best: {metric} {value:.4g}."
    word = "below" if value < base else "above"
    return (
        f"Trial {best.number} is best: {metric} {value:.4g}, {abs(1 - value / base):.0%} {word} the "
        f"unchanged configuration ({base:.4g})."
    )


def _because(search: Search, best: Trial | None) -> str:
    tune, kid = search.config.tune, search.config.evaluate
    inception = best.scores[-1].get("inception") if best and best.scores else None
    features = f", with features of {network(inception)}" if inception else ""
    rungs = ", ".join(f"{rung:,}" for rung in search.rungs)
    return (
        "Every trial is an ordinary training, "
        f"scored on {search.images} test images per domain at steps {rungs}; "
        f"at each of these ASHA keeps about 1/{tune.reduction} of the trials. KID is the mean over {kid.subsets} "
        f"subsets of up to {kid.subset_size} images{features}. Scores of few images are noisy, and the best of several "
        "trials partly owes its place to chance: train the preset with another seed before trusting a small difference."
    )


def _tiles(search: Search, trials: list[Trial], best: Trial | None) -> list[dict[str, Any]]:
    count = {state: sum(trial.state == state for trial in trials) for state in _STATES}
    trained = sum(trial.step for trial in trials)
    whole = sum(search.steps_of(trial.number)[-1] for trial in trials)
    value = best.value(search.config.tune.metric) if best else None
    lost = count["collapsed"] + count["failed"]
    return [
        {"label": f"Best {search.config.tune.metric}", "value": "–" if value is None else f"{value:.4g}"}
        | {"note": f"trial {best.number}, step {best.step:,}" if best else ""},
        {"label": "Trials", "value": len(trials), "note": f"{sum(t.state in ENDED for t in trials)} ended"},
        {"label": "Stopped early", "value": count["stopped"] + count["collapsed"]}
        | {"note": f"{lost} of them collapsed or failed" if lost else ""},
        {
            "label": "Steps trained",
            "value": f"{trained:,}",
            "note": f"{trained / whole:.0%} of training them all",
        },
    ]


def _ranked(search: Search, trials: list[Trial]) -> list[Trial]:
    """Trials sorted by progress (furthest first), then by score (best first)."""
    sign = 1 if search.lower_is_better else -1

    def rank(trial: Trial) -> tuple[float, float, int]:
        value = trial.value(search.config.tune.metric)
        return -trial.resource, float("inf") if value is None else sign * value, trial.number

    return sorted(trials, key=rank)


def _row(search: Search, trial: Trial, best: Trial | None) -> dict[str, Any]:
    metric = search.config.tune.metric
    at = {rung: trial.value(metric, rung) for rung in search.rungs}
    values = tune_charts.values_of(search, trial)
    return {
        "number": trial.number,
        "best": best is not None and trial.number == best.number,
        "state": trial.state,
        "tone": _STATES.get(trial.state, "even"),
        "message": redact(trial.message),
        "scores": ["–" if value is None else f"{value:.4g}" for value in at.values()],
        "values": [tune_charts.text(value) for value in values.values()],
        "run_id": trial.run_id,
    }


def _space(search: Search, best: Trial | None) -> list[dict[str, str]]:
    values = tune_charts.values_of(search, best) if best else {}
    return [
        {"key": one.key, "range": str(one), "best": tune_charts.text(values.get(one.key, ""))}
        for one in search.ranges
    ]


def _pictures(best: Trial | None) -> list[dict[str, Any]]:
    """Sample strips of the best trial at its last score."""
    uris = best.scores[-1].get("samples", []) if best and best.scores else []
    pictures = []
    for uri in uris[:_PICTURES] if len(uris) <= _PICTURES else [*uris[:2], *uris[-2:]]:
        try:
            cut = tiles.cut(storage.read_bytes(uri))
        except FileNotFoundError:
            continue
        if cut is not None:
            pictures.append({"name": storage.name(uri).removesuffix(".png"), "tiles": cut})
    return pictures
