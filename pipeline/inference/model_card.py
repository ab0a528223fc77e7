"""Model cards: intended use, training data, evaluation and limitations of a model.

``README.md`` of a model folder or an export, in the format of the Hugging Face Hub (YAML front matter, then Markdown).
Sections whose data is not available are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from agit_core.errors import BadInput, RunFailed
from agit_core.export import SMALLEST
from agit_core.model_folder import DIRECTIONS, Model
from agit_core.networks import STRIDE
from pipeline import storage
from pipeline.metrics import catalog
from pipeline.metrics.catalog import BLOB, EVERYWHERE, IOU, KID_MEAN, KID_TARGET, Metric
from pipeline.metrics.format import Estimate, Opponent
from pipeline.records import EVALUATION, MANIFEST, Evaluation, Manifest
from pipeline.redact import redact

FILE = "README.md"
SCORES = EVALUATION.name
"""File of scores that registration adds to a model folder; the card quotes them."""
_FEW_STEPS = 10_000  # below this, the card warns of a short training


def evaluation_of(folder_uri: str) -> Evaluation:
    """Scores stored in a model folder; empty if there are none, as for a checkpoint."""
    return EVALUATION.read(folder_uri) or Evaluation()


def render(
    model: Model,
    evaluation: Evaluation,
    exported: Mapping[str, Any] | None = None,
    manifest: Manifest | None = None,
    repo: str | None = None,
) -> str:
    """Render the card.

    Args:
        evaluation: may be empty.
        exported: result of :func:`pipeline.inference.export.run`, for the card of an export.
        manifest: manifest of the prepared data; see :func:`manifest_of`.
        repo: ``USER/REPO`` if the model is published on the Hugging Face Hub.
    """
    manifest = manifest or Manifest()
    domains = manifest.domain_names()
    labels = {"a2b": f"{domains[0]} → {domains[1]}", "b2a": f"{domains[1]} → {domains[0]}"}
    settings = redact(model.lineage.get("config") or {})
    steps = int(model.lineage.get("steps") or model.lineage.get("step") or 0)
    scores = _Scores(evaluation)
    context = {
        "head": yaml.safe_dump(_head(model, scores, labels), sort_keys=False, allow_unicode=True).strip(),
        "name": model.name,
        "names": domains,
        "labels": labels,
        "attends": model.method.networks.has_attention,
        "preset": model.method.networks.preset,
        "size": model.image_size,
        "steps": steps,
        "few_steps": 0 < steps < _FEW_STEPS,
        "lineage": redact(_lineage(model)),
        "source": _source(str((settings.get("data") or {}).get("source") or "")),
        "splits": {name: split.rows for name, split in manifest.splits.items()},
        "quarantined": sum(len(split.quarantined) for split in manifest.splits.values()),
        "leaks": len(manifest.leaks),
        "tables": {d: scores.table(d) for d in DIRECTIONS},
        "protocol": scores.protocol(),
        "counts": {k: v for k, v in evaluation.counts.items() if k.startswith("test_")},
        "against_it": scores.against_it(labels),
        "exported": exported,
        "repo": repo,
        "multiple": STRIDE,
        "smallest": SMALLEST,
    }
    text = resources.files("pipeline").joinpath("templates", "model_card.md.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    return environment.from_string(text).render(context).rstrip() + "\n"


def manifest_of(model: Model) -> Manifest | None:
    """Manifest of the model's training data, or None if it is not accessible."""
    data = model.lineage.get("data_uri")
    if not data:
        return None
    try:
        return MANIFEST.read(str(data))
    except (BadInput, RunFailed):
        return None  # moved, or on another machine: the card then omits the numbers of training images


class _Scores:
    """Formatting of the evaluation for the card."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._mine = Opponent(evaluation.metrics, evaluation.intervals)
        self._nothing = Opponent(evaluation.baseline, {})

    def table(self, direction: str) -> list[tuple[str, str, str]]:
        """Rows of a direction: label, value with interval, identity baseline."""
        rows = []
        for metric in catalog.METRICS:
            key = metric.key(direction)
            if (mine := self._mine.estimate(key)) is not None:
                nothing = self._nothing.estimate(key)
                rows.append(
                    (metric.label, _figure(mine, metric), metric.text(nothing.value if nothing else None))
                )
        return rows

    def metrics(self, direction: str) -> list[dict[str, Any]]:
        """Judged metrics of a direction for the card's front matter, unscaled."""
        entries = []
        for metric in catalog.METRICS:
            key = metric.key(direction)
            if metric.judged and (value := self._mine.estimate(key)) is not None:
                entries.append({"type": key.split("_")[0], "name": key, "value": round(value.value, 6)})
        return entries

    def protocol(self) -> list[str]:
        """How the metrics were measured, one item per line."""
        parts = []
        inception = self._evaluation.inception
        if inception.get("name"):
            parts.append(f"Inception network {inception['name']}, SHA-256 `{inception.get('sha256')}`")
        for key, value in self._evaluation.protocol.items():
            shown = value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
            parts.append(f"{key.replace('_', ' ')}: {shown}")
        return parts

    def against_it(self, labels: Mapping[str, str]) -> list[str]:
        """Weaknesses of the model according to its scores, as sentences."""
        sentences = []
        for direction, label in labels.items():
            for metric, how in ((KID_TARGET, "KID to the target"), (KID_MEAN, "the mean of both KIDs")):
                key = metric.key(direction)
                mine, nothing = self._mine.estimate(key), self._nothing.estimate(key)
                tested = (self._mine.intervals.get(key) or {}).get("do_nothing") or {}
                if tested.get("verdict") == "noise":
                    sentences.append(
                        f"{label}: by {how} it cannot be distinguished from leaving the images as they are."
                    )
                elif mine and nothing and mine.value >= nothing.value:
                    sentences.append(f"{label}: by {how} it is worse than leaving the images as they are.")
            iou = self._mine.estimate(IOU.key(direction))
            for yardstick, what in ((EVERYWHERE, "a mask of ones"), (BLOB, "a fixed blob in the middle")):
                other = self._mine.estimate(yardstick.key(direction))
                if iou and other and iou.value <= other.value:
                    sentences.append(f"{label}: its attention finds the object no better than {what}.")
                    break
        return sentences


def _figure(estimate: Estimate, metric: Metric) -> str:
    interval = estimate.interval(metric)
    return metric.text(estimate.value) + (f" ({interval})" if interval else "")


def _head(model: Model, scores: _Scores, labels: Mapping[str, str]) -> dict[str, Any]:
    head: dict[str, Any] = {
        "library_name": "agit",
        "pipeline_tag": "image-to-image",
        "tags": ["image-to-image", "unpaired", "cyclegan", "attention", "pytorch"],
        "license": "other",
        "license_name": "that-of-the-training-images",
    }
    results = [
        {
            "task": {"type": "image-to-image", "name": label},
            "dataset": {"type": "image-folder", "name": model.name, "split": "test"},
            "metrics": metrics,
        }
        for direction, label in labels.items()
        if (metrics := scores.metrics(direction))
    ]
    return head | ({"model-index": [{"name": model.name, "results": results}]} if results else {})


def _source(uri: str) -> str:
    """Source of the data for the card: only the last component of a local path."""
    return uri if storage.is_remote(uri) else storage.name(uri)


def _lineage(model: Model) -> dict[str, Any]:
    lineage, code = model.lineage, model.lineage.get("code") or {}
    facts = {
        "run": lineage.get("run_id"),
        "data fingerprint": lineage.get("data_fingerprint"),
        "code": code.get("git_commit") or code.get("version"),
        "packages": ", ".join(f"{k} {v}" for k, v in (lineage.get("packages") or {}).items() if v),
        "weights SHA-256": lineage.get("weights_sha256"),
        "averaged generators": "yes" if model.method.optimizer.average_decay else None,
        "seed": (lineage.get("config") or {}).get("seed"),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _cell(value: Any) -> str:
    """Escape text for a cell of a Markdown table."""
    return str(value).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
