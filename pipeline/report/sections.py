"""Texts and small tables of the report, from the run's files."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

from agit_core.errors import BadInput, RunFailed
from agit_core.stages import faint
from pipeline.config import Config
from pipeline.metrics.catalog import BLOB, COVERAGE, DIRECTIONS, IOU, KID_MEAN, KID_TARGET
from pipeline.metrics.format import Opponent, Scores
from pipeline.records import Evaluation, Event, Registration, Tree
from pipeline.redact import redact
from pipeline.registry import audit, tracking, versions
from pipeline.report.charts import BLUE, GREEN, GREY, Chart, Series, intervals
from pipeline.report.run_data import Run
from pipeline.report.tiles import Viewer, strip_tiles

EXTREMES = 6
_FLAT = 0.1
"""Spread (standard deviation within an image) below which a mask is nearly constant; a clear one has 0.3."""
_MOST_ROWS = 1000
_MOST_EVENTS = 20
_SPELLED = {"kid": "KID", "fid": "FID", "sha256": "SHA-256", "a": "A", "b": "B"}
_EVENTS = {
    "started": "started",
    "resumed": "resumed",
    "switched": "stage switched",
    "mask_collapsed": "mask collapsed",
    "mask_faint": "masks faint at the switch",
    "diverged": "diverged",
    "rolled_back": "went back",
    "stopped_early": "stopped early",
    "not_validated": "not chosen by validation",
}


def scores(run: Run, names: tuple[str, str]) -> Scores:
    """The evaluation with the identity baseline and the champion."""
    evaluation = run.evaluation or Evaluation()
    champion = evaluation.champion
    return Scores(
        metrics=evaluation.metrics,
        intervals=evaluation.intervals,
        nothing=Opponent(evaluation.baseline, evaluation.baseline_intervals),
        champion=Opponent(champion.metrics, champion.intervals) if champion else Opponent({}, {}),
        names=names,
    )


def champion_name(run: Run) -> str:
    champion = run.evaluation.champion if run.evaluation else None
    return f"Champion (version {champion.version})" if champion else "Champion"


def scores_lead(run: Run, names: tuple[str, str]) -> str:
    counts = (run.evaluation or Evaluation()).counts
    images = [
        f"{counts[key]} of {n}" for key, n in zip(("test_a", "test_b"), names, strict=True) if key in counts
    ]
    scored = f"Scored on test images: {' and '.join(images)}. " if images else ""
    return (
        scored + "Beside each figure stands what a translator gets that changes nothing. "
        "A difference whose 95 % interval holds zero is called noise."
    )


def kid_chart(scores: Scores) -> Chart | None:
    """Chart of KID per direction with intervals, for the model, the identity baseline and the champion."""
    groups, keys = [], []
    for metric in (KID_TARGET, KID_MEAN):
        for direction in DIRECTIONS:
            if scores.estimate(metric.key(direction)):
                groups.append(f"{scores.label(direction)}\n{metric.label}")
                keys.append(metric.key(direction))
    if not keys:
        return None
    series = []
    for name, colour, symbol, one in (
        ("This model", BLUE, "circle", Opponent(scores.metrics, scores.intervals)),
        ("Doing nothing", GREY, "x", scores.nothing),
        ("Champion", GREEN, "diamond", scores.champion),
    ):
        points = [found and found.scaled(KID_TARGET.scale) for key in keys for found in (one.estimate(key),)]
        if any(points):
            series.append(Series(name, colour, symbol, points))
    return intervals(
        "kid",
        "KID",
        "Lower is closer to real images; the bars are 95 % intervals.",
        groups,
        series,
    )


def hero(viewer: Viewer, count: int) -> list[Tree]:
    """The sample images at the last checkpoint, alternating between directions."""
    shown: list[Tree] = []
    longest = max((len(d["images"]) for d in viewer.directions), default=0)
    for index in range(longest):
        for direction in viewer.directions:
            if index < len(direction["images"]):
                image = direction["images"][index]
                tiles = {"real": image["real"], **image["steps"][-1]}
                shown.append({"label": direction["label"], "number": index + 1, "tiles": tiles})
    return shown[:count]


def score_label(run: Run) -> str:
    """Name of the per-image score, without its explanation in parentheses."""
    return _score_described(run).split(" (", 1)[0]


def _score_described(run: Run) -> str:
    return str((run.evaluation or Evaluation()).protocol.get("per_image") or "score")


def _rows(run: Run, direction: str) -> list[Tree]:
    rows = [
        row
        for row in (run.evaluation or Evaluation()).per_image
        if row.get("direction") == direction and isinstance(row.get("score"), int | float)
    ]
    return sorted(rows, key=lambda row: row["score"])


def extremes(run: Run, labels: dict[str, str]) -> list[Tree]:
    """The images with the best and the worst scores per direction, with pictures if they were stored."""
    groups = []
    for direction in DIRECTIONS:
        rows = _rows(run, direction)
        kept = [row for row in rows if row.get("strip")]
        rows = kept if len(kept) >= 2 else rows
        half = min(EXTREMES, len(rows) // 2)
        for title, chosen in (("best", rows[:half]), ("worst", rows[::-1][:half])):
            if chosen:
                items = [
                    {
                        "name": str(row["name"]),
                        "score": f"{row['score']:.3f}",
                        "tiles": strip_tiles(run, row.get("strip")),
                    }
                    for row in chosen
                ]
                groups.append({"title": f"{labels[direction]}: {title}", "shown": items})
    return groups


def extremes_lead(run: Run) -> str:
    return f"Test images by {_score_described(run)}; from left to right: original, attention, translation."


def per_image(run: Run, labels: dict[str, str]) -> list[dict[str, str]]:
    rows = [(d, row) for d in DIRECTIONS for row in _rows(run, d)]
    return [
        {"name": str(row["name"]), "label": labels[d], "score": f"{row['score']:.4f}"}
        for d, row in rows[:_MOST_ROWS]
    ]


def alarms(config: Config, run: Run, names: tuple[str, str]) -> list[str]:
    """Warnings for the top of the page: collapsed, constant or faint masks, a failed run."""
    found = []
    gate = config.register_.gate
    metrics = (run.evaluation or Evaluation()).metrics
    health = run.result.mask_health if run.result else {}
    for domain, name in zip("ab", names, strict=True):
        coverage = metrics.get(COVERAGE.key(domain), health.get(f"coverage_{domain}"))
        if not config.method.networks.has_attention or not isinstance(coverage, int | float):
            continue
        if coverage > gate.maximum_coverage:
            found.append(f"The attention on {name} has collapsed to all ones (it covers {coverage:.1%}).")
        elif coverage < gate.minimum_coverage:
            found.append(f"The attention on {name} has collapsed to nothing (it covers {coverage:.2%}).")
        elif isinstance(spread := metrics.get(f"attention_spread_{domain}"), int | float) and spread < _FLAT:
            found.append(
                f"The attention on {name} has picked nothing out: about {coverage:.0%} everywhere in the image "
                f"(spread {spread:.2f})."
            )
        elif (
            # only in stage masked, where D sees nothing but the half-transparent object; before, G can compensate
            run.result is not None
            and run.result.stage == "masked"
            and isinstance(opacity := metrics.get(f"attention_opacity_{domain}"), int | float)
            and faint(opacity)
        ):
            found.append(
                f"The attention on {name} is faint: {opacity:.2f} on average where it is above τ, so that "
                "translations are half-transparent there."
            )
        iou, blob = metrics.get(IOU.key(domain)), metrics.get(BLOB.key(domain))
        if isinstance(iou, int | float) and isinstance(blob, int | float) and iou <= blob:
            found.append(
                f"The attention on {name} finds the objects no better than a fixed blob in the middle of every "
                f"image: IoU {IOU.text(iou)} against {BLOB.text(blob)}."
            )
    if run.progress and run.progress.state == "failed" and not run.result:
        found.append(f"The training failed: {run.progress.message or 'it left no message'}")
    return found


def curves_lead(run: Run, switch: int | None) -> str:
    if not run.metrics:
        return ""
    rows, last = len(run.metrics), run.metrics[-1]
    text = f"{rows:,} rows up to step {int(last['step']):,}, epoch {last.get('epoch', '?')}. "
    text += "Thick lines are moving means. " if rows >= 40 else ""
    if switch is not None:
        return text + f"From step {switch:,} the discriminators see masked images and attention is frozen."
    return text + "The run did not switch to the masked stage."


def masks_absent(config: Config) -> str:
    if not config.method.networks.has_attention:
        return "This model has no attention: its mask is one everywhere."
    return "There is nothing about the masks: the run wrote no metrics."


def decision(config: Config, run: Run) -> list[tuple[str, str]]:
    """The gate's decision, and later changes by people (promotions and rollbacks)."""
    registration = run.registration
    if registration is None:
        return []
    facts: dict[str, Any] = {
        "Model": f"{registration.name} version {registration.version}",
        "Aliases given": ", ".join(registration.aliases) or "none",
        "Evaluation passed": registration.decision.passed,
        "Promoted to champion": registration.decision.promoted,
        "Reasons": registration.decision.reasons,
    }
    events = _trail(config, registration)
    if stack := audit.champions(events):
        facts["Champion now"] = f"version {stack[-1]}"
    changes = [_audited(redact(event)) for event in events if event.get("action") != "gate"]
    facts["Changed by people"] = changes[-_MOST_EVENTS:]
    return [(key, _text(value)) for key, value in facts.items() if value not in (None, "", [])]


def _trail(config: Config, registration: Registration) -> list[Tree]:
    """The model's audit trail in the registry of the run's version."""
    try:
        runs = versions.runs(versions.versions(tracking.tracking_uri(config), registration.name))
    except (BadInput, RunFailed):  # the report does not depend on the registry
        return []
    own = registration.mlflow.run_id
    if own is not None and own not in runs.values():
        return []
    return audit.events(config.storage, registration.name, runs)


def _audited(event: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(float(event["time"]), UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{event['action']} of version {event['version']} by {event.get('by', '?')}, {when}: {event.get('reason')}"


def lineage(run: Run) -> list[tuple[str, str]]:
    """Origin of the model and history of its training."""
    result, spec, manifest = run.result, run.spec, run.manifest
    recorded = run.registration.lineage if run.registration else {}
    facts: dict[str, Any] = {
        "Run": run.run_id,
        "Stored at": redact(run.uri),
        "Data": redact(run.data_uri),
        "Data fingerprint": manifest and manifest.fingerprint,
        "Checkpoint": result and result.model,
        "Seed": spec and spec.config.get("seed"),
        "Steps": result and result.steps,
        "Workers": result and result.workers,
        "Device": result and result.device,
        "Attempts": spec and spec.attempt,
    }
    code = recorded.get("code") or {}
    facts["Code"] = ", ".join(
        str(part)
        for part in (
            f"agit {code['version']}" if code.get("version") else None,
            f"commit {code['git_commit'][:12]}" if code.get("git_commit") else None,
            f"source {code['source_sha256'][:12]}" if code.get("source_sha256") else None,
            "with uncommitted changes" if code.get("git_dirty") else None,
        )
        if part
    )
    packages = recorded.get("packages") or {}
    facts["Libraries"] = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    facts["History"] = _history(run.events)
    return [(name, _text(value)) for name, value in facts.items() if value not in (None, "", [], {})]


def _history(events: list[Event]) -> str:
    lines = []
    for event in events:
        with contextlib.suppress(ValueError, OverflowError):
            when = datetime.fromtimestamp(event.time, UTC).strftime("%m-%d %H:%M:%S")
            step = "" if event.step is None else f" at step {event.step}"
            lines.append(f"{when} {_EVENTS.get(event.kind, event.kind.replace('_', ' '))}{step}")
    more = len(lines) - _MOST_EVENTS
    return "; ".join(lines[:_MOST_EVENTS]) + (f"; and {more} more" if more > 0 else "")


def protocol(run: Run) -> list[tuple[str, str]]:
    """How the scores were computed, starting with the feature network and its SHA-256."""
    evaluation = run.evaluation or Evaluation()
    parts = {"Inception": evaluation.inception, "Counts": _counts(evaluation.counts)}
    return _flat({k: v for k, v in parts.items() if v}) + _flat(evaluation.protocol)


def _counts(counts: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in counts.items())


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{' ' if prefix else ''}{key}".replace("_", " ")
        if isinstance(item, dict):
            facts += _flat(item, name)
        elif item not in (None, "", []):
            name = " ".join(_SPELLED.get(word, word) for word in name.split(" "))
            facts.append((name[:1].upper() + name[1:], _text(item)))
    return facts


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return "; ".join(_text(item) for item in value)
    return str(value)
