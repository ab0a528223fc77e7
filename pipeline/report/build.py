"""The report: one self-contained HTML file per run, from a verdict for decision makers down to details.

It is built from storage alone, and pictures, charts and the chart library are embedded: it can be opened from a mail
attachment, a bucket or an archive, years later, without a network.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline import records, storage
from pipeline.config import Config
from pipeline.data.read.card import card as data_card
from pipeline.metrics.format import Scores
from pipeline.redact import redact
from pipeline.report import charts as report_charts
from pipeline.report import published, sections, tiles, validation, verdict
from pipeline.report.run_data import Run, read_run

SECTIONS = (
    ("verdict", "Verdict"),
    ("pictures", "Pictures"),
    ("training", "Watch it learn"),
    ("scores", "Scores"),
    ("best-worst", "Best and worst"),
    ("curves", "Curves"),
    ("masks", "Mask health"),
    ("data", "Data"),
    ("lineage", "Lineage"),
)


def build(config: Config, run_uri: str, data_uri: str) -> str:
    """Write ``{run_uri}/report.html`` from the run's data so far, also during training.

    Missing parts are listed in the page.

    Returns:
        The report's URI.

    Raises:
        BadInput: there is no run at ``run_uri``.
        RunFailed: the storage does not respond.
    """
    run = read_run(run_uri, data_uri)
    uri = storage.join(run_uri, records.REPORT)
    storage.write_text(uri, render(config, run))
    return uri


def render(config: Config, run: Run) -> str:
    """Render the report as HTML."""
    names = (run.manifest or records.Manifest()).domain_names()
    scores = sections.scores(run, names)
    labels = {direction: scores.label(direction) for direction in ("a2b", "b2a")}
    viewer = tiles.viewer(run, labels)
    switch = run.result.switched_at_step if run.result else None
    charts = _charts(config, run, names, scores, switch)
    drawn = [chart for group in charts.values() for chart in group]
    packed, library_hash = report_charts.bundle() if drawn else ("", "")
    script = asset("report.js")
    allowed = [digest(script), *([library_hash] if drawn else [])]
    total = run.result.steps if run.result else run.progress.total_steps if run.progress else None
    per_image = sections.per_image(run, labels)
    context = {
        "title": redact(config.report.title) or f"{config.name}: {names[0]} and {names[1]}, run {run.run_id}",
        "policy": " ".join(f"'sha256-{digest}'" for digest in allowed),
        "css": Markup(asset("report.css")),
        "js": Markup(script),
        "plotly": Markup(packed),
        "sections": [s for s in SECTIONS if s[0] != "training" or not viewer.empty],
        "verdict": verdict.headline(run, scores),
        "tiles": verdict.tiles(run, scores),
        "alarms": sections.alarms(config, run, names),
        "hero": sections.hero(viewer, config.report.hero_images),
        "hero_step": viewer.steps[-1] if viewer.steps else 0,
        "viewer": viewer,
        "viewer_data": {
            "steps": viewer.steps,
            "total": total or (viewer.steps[-1] if viewer.steps else 0),
            "switch": switch,
            "directions": viewer.directions,
        },
        "switch_percent": _position(viewer.steps, switch),
        "scores": scores.groups(),
        "scores_lead": sections.scores_lead(run, names),
        "has_champion": bool(scores.champion.metrics),
        "champion_name": sections.champion_name(run),
        "score_charts": charts["scores"],
        "decision": sections.decision(config, run),
        "published": published.table(config, run),
        "extremes": sections.extremes(run, labels),
        "extremes_lead": sections.extremes_lead(run),
        "validation_charts": charts["validation"],
        "validation": validation.section(run, names),
        "curves": charts["curves"],
        "curves_lead": sections.curves_lead(run, switch),
        "mask_charts": charts["masks"],
        "masks_absent": sections.masks_absent(config),
        "data": data_card(run.manifest, names) if run.manifest else None,
        "lineage": sections.lineage(run),
        "protocol": sections.protocol(run),
        "config": yaml.safe_dump(redact(config.plain()), sort_keys=False, allow_unicode=True),
        "per_image": per_image,
        "per_image_label": sections.score_label(run),
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "charts_data": {
            "figures": {chart.key: chart.plain() for chart in drawn},
            "dark": report_charts.DARK,
        }
        if drawn
        else None,
        "missing": run.missing,
    }
    return environment().get_template("report.html.j2").render(context)


def _charts(
    config: Config, run: Run, names: tuple[str, str], scores: Scores, switch: int | None
) -> dict[str, list[report_charts.Chart]]:
    gate = config.register_.gate
    limits = (gate.minimum_coverage, gate.maximum_coverage)
    attends = config.method.networks.has_attention
    kid = sections.kid_chart(scores)
    return {
        "scores": [kid] if kid else [],
        "validation": validation.charts(run.metrics, names),
        "curves": report_charts.curves(run.metrics, names, switch),
        "masks": report_charts.mask_health(run.metrics, names, switch, limits) if attends else [],
    }


def _position(steps: list[int], switch: int | None) -> float | None:
    """Position of the stage switch on the checkpoint slider, in percent of its width; None if outside."""
    if switch is None or len(steps) < 2 or not steps[0] <= switch <= steps[-1]:
        return None
    before = max(i for i, step in enumerate(steps) if step <= switch)
    if before == len(steps) - 1:
        return 100.0
    share = (switch - steps[before]) / (steps[before + 1] - steps[before])
    return round(100 * (before + share) / (len(steps) - 1), 2)


def asset(name: str) -> str:
    """Read a file of the templates folder."""
    return resources.files("pipeline").joinpath("templates", name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """SHA-256 in base64, by which a content security policy identifies an inline script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def environment() -> Environment:
    """Jinja environment of the HTML pages."""
    return Environment(
        loader=PackageLoader("pipeline", "templates"),
        autoescape=True,  # names of files and domains come from the data
        undefined=StrictUndefined,
    )
