"""Artifacts and description of an MLflow run: configuration, scores, lineage, sample pictures and links."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline import records, storage
from pipeline.redact import redact

PICTURES = 8


def of_run(
    run_uri: str, config: Mapping[str, Any], evaluation: records.Evaluation, lineage: Mapping[str, Any]
) -> dict[str, bytes]:
    """The run's artifacts as path -> content; sample pictures only if there are any."""
    files = {
        "config.yaml": yaml.safe_dump(redact(dict(config)), sort_keys=False, allow_unicode=True).encode(),
        records.EVALUATION.name: json.dumps(evaluation.quoted(), indent=1).encode(),
        "lineage.json": json.dumps(redact(dict(lineage)), indent=1, default=str).encode(),
    }
    for uri in records.newest_samples(run_uri, PICTURES // 2):
        with contextlib.suppress(FileNotFoundError):
            files[f"samples/{storage.name(uri)}"] = storage.read_bytes(uri)
    return files


def note(tags: Mapping[str, str]) -> str:
    """The run's description (Markdown): locations of its report, model, data and code."""
    rows = [
        ("report", tags.get("agit.report_uri")),
        ("model", tags.get("agit.model_uri")),
        ("run", tags.get("agit.run_uri")),
        ("data", tags.get("agit.data_uri")),
        ("data fingerprint", tags.get("agit.data_fingerprint")),
        ("code", tags.get("agit.code")),
    ]
    lines = [f"- {name}: {_linked(value)}" for name, value in rows if value]
    return "\n".join([*lines, f"- reproduce: `agit reproduce {tags.get('agit.model_uri', '')}`"])


def _linked(value: str) -> str:
    return f"[{value}]({value})" if value.startswith(("http://", "https://")) else f"`{value}`"
