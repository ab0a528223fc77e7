"""What a person finds in MLflow beside the figures: configuration, scores, lineage, pictures and where the rest is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline import storage
from pipeline.redact import redact

PICTURES = 8
_KEPT = ("metrics", "baseline", "intervals", "counts", "inception", "protocol")


def of_run(
    run_uri: str, config: Mapping[str, Any], evaluation: Mapping[str, Any], lineage: Mapping[str, Any]
) -> dict[str, bytes]:
    """The run's artifacts, path to content; a run without pictures has none."""
    scores = {key: evaluation[key] for key in _KEPT if key in evaluation}
    files = {
        "config.yaml": yaml.safe_dump(redact(dict(config)), sort_keys=False, allow_unicode=True).encode(),
        "evaluation.json": json.dumps(scores, indent=1).encode(),
        "lineage.json": json.dumps(redact(dict(lineage)), indent=1, default=str).encode(),
    }
    for uri in _newest_pictures(run_uri):
        with contextlib.suppress(FileNotFoundError):
            files[f"samples/{storage.name(uri)}"] = storage.read_bytes(uri)
    return files


def note(tags: Mapping[str, str]) -> str:
    """The run's description: where its report, model, data and code are."""
    rows = [
        ("report", tags.get("agit.report_uri")),
        ("model", tags.get("agit.model_uri")),
        ("run", tags.get("agit.run_uri")),
        ("data", tags.get("agit.data_uri")),
        ("data fingerprint", tags.get("agit.data_fingerprint")),
        ("code", tags.get("agit.code")),
    ]
    told = [f"- {name}: {_linked(value)}" for name, value in rows if value]
    return "\n".join([*told, f"- rebuild it: `agit reproduce {tags.get('agit.model_uri', '')}`"])


def _linked(value: str) -> str:
    return f"[{value}]({value})" if value.startswith(("http://", "https://")) else f"`{value}`"


def _newest_pictures(run_uri: str) -> list[str]:
    steps = storage.list_(storage.join(run_uri, "samples"))
    pictures = [uri for uri in storage.list_(steps[-1]) if uri.endswith(".png")] if steps else []
    by_direction = [[uri for uri in pictures if storage.name(uri).startswith(d)] for d in ("a2b", "b2a")]
    return [uri for some in by_direction for uri in some[: PICTURES // 2]]
