"""A look into prepared data, and the check that it is still what was written."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment

from pipeline import storage
from pipeline.data import manifest as manifests
from pipeline.data.reader import ShardImages

_PAGE = """<!doctype html><meta charset="utf-8"><title>{{ name }}</title>
<style>body{font:16px system-ui;margin:2rem}img{margin:2px;max-width:128px}</style>
<h1>{{ name }}</h1>
{% for split, images in grids.items() %}<h2>{{ split }} ({{ rows[split] }} images)</h2>
{% for label, data in images %}<img alt="{{ label }}" title="{{ label }}" src="{{ data }}">{% endfor %}
{% endfor %}"""


def inspect(uri: str, out: Path | None = None, samples: int = 16) -> dict[str, Any]:
    """Counts, sizes, duplicates, leaks and quarantined files of prepared data, from its manifest.

    Args:
        uri: folder with a ``manifest.json``.
        out: also writes an HTML page there with the first ``samples`` images of every split.

    Raises:
        BadInput: there is no prepared data.
    """
    manifest = manifests.read(uri)
    splits = manifest["splits"]
    if out is not None:
        grids = {split: _grid(uri, split, min(samples, info["rows"])) for split, info in splits.items()}
        rows = {split: info["rows"] for split, info in splits.items()}
        page = Environment(autoescape=True).from_string(_PAGE)
        storage.write_text(str(out), page.render(name=manifest["name"], grids=grids, rows=rows))
    reasons = Counter(entry["reason"] for info in splits.values() for entry in info["quarantined"])
    return {
        "uri": uri,
        "name": manifest["name"],
        "fingerprint": manifest["fingerprint"],
        "rows": {split: info["rows"] for split, info in splits.items()},
        "masks": {split: info["masks"] for split, info in splits.items()},
        "shards": manifest["totals"]["shards"],
        "bytes": manifest["totals"]["bytes"],
        "image_size": manifest["image_size"],
        "load_size": manifest["load_size"],
        "duplicate_groups": manifest["duplicates"]["exact_groups"],
        "leaks": len(manifest["leaks"]),
        "quarantined": dict(reasons),
        "page": str(out) if out is not None else None,
    }


def verify(uri: str) -> dict[str, Any]:
    """Reads every shard and index again and compares it with the manifest's checksums.

    Returns:
        ``ok``, the number of files ``checked`` and those ``damaged``, each with its reason.

    Raises:
        BadInput: there is no prepared data.
    """
    manifest = manifests.read(uri)
    files = [f for info in manifest["splits"].values() for f in (*info["shards"], info["index"])]
    damaged = []
    for file in files:
        try:
            found = hashlib.sha256(storage.read_bytes(storage.join(uri, file["path"]))).hexdigest()
        except FileNotFoundError:
            damaged.append({"path": file["path"], "reason": "missing"})
            continue
        if found != file["sha256"]:
            damaged.append({"path": file["path"], "reason": "the checksum differs"})
    return {"ok": not damaged, "checked": len(files), "damaged": damaged}


def _grid(uri: str, split: str, count: int) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as cache:
        images = ShardImages(uri, split, Path(cache), 2**30)
        try:
            return [(images.name(i), _data_uri(images.encoded(i))) for i in range(count)]
        finally:
            images.close()


def _data_uri(encoded: bytes) -> str:
    kind = "png" if encoded.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
