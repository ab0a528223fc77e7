"""The model card: what a model is for, what it has seen, how good it is and where it fails.

``README.md`` of a model folder and of an export, in the format of Hugging Face's hub (a YAML head, then
Markdown), written from what is known: a part that is not known is left out, never invented.
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
from pipeline.records import EVALUATION, MANIFEST
from pipeline.redact import redact

FILE = "README.md"
SCORES = EVALUATION.name
"""Written beside the weights at registration: what the card says about quality."""
_FEW_STEPS = 10_000


def evaluation_of(folder_uri: str) -> dict[str, Any]:
    """The scores in a model folder; empty for a checkpoint, which has none."""
    return EVALUATION.read(folder_uri) or {}


def render(
    model: Model,
    evaluation: Mapping[str, Any],
    exported: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> str:
    """The card as text.

    Args:
        evaluation: ``metrics``, ``baseline``, ``intervals``, ``counts``, ``protocol``, ``inception``; may be empty.
        exported: what :func:`pipeline.inference.export.run` found, for the card of an export.
        manifest: of the prepared data, see :func:`manifest_of`.
    """
    domains = names(manifest)
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
        "splits": {k: v["rows"] for k, v in ((manifest or {}).get("splits") or {}).items()},
        "quarantined": sum(
            len(s.get("quarantined") or []) for s in ((manifest or {}).get("splits") or {}).values()
        ),
        "leaks": len((manifest or {}).get("leaks") or []),
        "tables": {d: scores.table(d) for d in DIRECTIONS},
        "protocol": scores.protocol(),
        "counts": {k: v for k, v in (evaluation.get("counts") or {}).items() if k.startswith("test_")},
        "against_it": scores.against_it(labels),
        "exported": exported,
        "multiple": STRIDE,
        "smallest": SMALLEST,
    }
    text = resources.files("pipeline").joinpath("templates", "model_card.md.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = _cell
    return environment.from_string(text).render(context).rstrip() + "\n"


def manifest_of(model: Model) -> dict[str, Any] | None:
    """The manifest of the data that the model was trained on, when it is within reach."""
    data = model.lineage.get("data_uri")
    if not data:
        return None
    try:
        return MANIFEST.read(str(data))
    except (BadInput, RunFailed):
        return None  # moved, or on another machine: the card then has no counts of the training images


class _Scores:
    """The evaluation as the card shows it."""

    def __init__(self, evaluation: Mapping[str, Any]) -> None:
        self._evaluation = evaluation
        self._mine = Opponent(evaluation.get("metrics") or {}, evaluation.get("intervals") or {})
        self._nothing = Opponent(evaluation.get("baseline") or {}, {})

    def table(self, direction: str) -> list[tuple[str, str, str]]:
        """Rows of a direction: label, figure with its interval, doing nothing."""
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
        """The same for the card's head, unscaled."""
        found = []
        for metric in catalog.METRICS:
            key = metric.key(direction)
            if metric.judged and (value := self._mine.estimate(key)) is not None:
                found.append({"type": key.split("_")[0], "name": key, "value": round(value.value, 6)})
        return found

    def protocol(self) -> list[str]:
        """How the figures were taken."""
        parts = []
        inception = self._evaluation.get("inception") or {}
        if inception.get("name"):
            parts.append(f"Inception network {inception['name']}, SHA-256 `{inception.get('sha256')}`")
        for key, value in (self._evaluation.get("protocol") or {}).items():
            shown = value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
            parts.append(f"{key.replace('_', ' ')}: {shown}")
        return parts

    def against_it(self, labels: Mapping[str, str]) -> list[str]:
        """What of the scores speaks against the model, in sentences."""
        said = []
        for direction, label in labels.items():
            for metric, how in ((KID_TARGET, "KID to the target"), (KID_MEAN, "the mean of both KIDs")):
                key = metric.key(direction)
                mine, nothing = self._mine.estimate(key), self._nothing.estimate(key)
                tested = (self._mine.intervals.get(key) or {}).get("do_nothing") or {}
                if tested.get("verdict") == "noise":
                    said.append(f"{label}: by {how} it cannot be told from leaving the images as they are.")
                elif mine and nothing and mine.value >= nothing.value:
                    said.append(f"{label}: by {how} it is worse than leaving the images as they are.")
            iou = self._mine.estimate(IOU.key(direction))
            for yardstick, what in ((EVERYWHERE, "a mask of ones"), (BLOB, "a fixed blob in the middle")):
                other = self._mine.estimate(yardstick.key(direction))
                if iou and other and iou.value <= other.value:
                    said.append(f"{label}: its attention finds the object no better than {what}.")
                    break
        return said


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


def names(manifest: Mapping[str, Any] | None) -> tuple[str, str]:
    """Of the two domains, as the data calls them."""
    domains = (manifest or {}).get("domains") or {}
    a, b = (str((domains.get(d) or {}).get("name") or d.upper()) for d in "ab")
    return a, b


def _source(uri: str) -> str:
    """Without the folders of the machine that trained it."""
    return uri if storage.is_remote(uri) else storage.name(uri)


def _lineage(model: Model) -> dict[str, Any]:
    told, code = model.lineage, model.lineage.get("code") or {}
    facts = {
        "run": told.get("run_id"),
        "data fingerprint": told.get("data_fingerprint"),
        "code": code.get("git_commit") or code.get("version"),
        "packages": ", ".join(f"{k} {v}" for k, v in (told.get("packages") or {}).items() if v),
        "weights SHA-256": told.get("weights_sha256"),
        "averaged generators": "yes" if model.method.optimizer.average_decay else None,
        "seed": (told.get("config") or {}).get("seed"),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def _cell(value: Any) -> str:
    """Text that stays in its cell and is no markup."""
    return str(value).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
