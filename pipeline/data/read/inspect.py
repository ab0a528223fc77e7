"""Inspection and verification of prepared data."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.data.format import manifest as manifests
from pipeline.data.read.inspect_page import page
from pipeline.data.sources.source import Progress
from pipeline.records import Shard

_READS = 4


def inspect(uri: str, out: Path | None = None, samples: int = 24) -> dict[str, Any]:
    """Summarise prepared data from its manifest: counts, sizes, duplicates, leaks and quarantined files.

    Args:
        uri: folder with a ``manifest.json``.
        out: file for an HTML page with sample images of every split; None: no page.

    Raises:
        BadInput: there is no prepared data.
    """
    manifest = manifests.read(uri)
    splits, copies = manifest.splits, manifest.duplicates
    if out is not None:
        storage.write_text(str(out), page(uri, manifest, samples))
    reasons, refused = (
        Counter(entry["reason"] for info in splits.values() for entry in getattr(info, kind))
        for kind in ("quarantined", "notes")
    )
    return {
        "uri": uri,
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "rows": {split: info.rows for split, info in splits.items()},
        "masks": {split: info.masks for split, info in splits.items()},
        "shards": manifest.totals["shards"],
        "bytes": manifest.totals["bytes"],
        "image_size": manifest.image_size,
        "load_size": manifest.load_size,
        "duplicate_groups": copies.exact_groups,
        "near_groups": copies.near_groups,
        "duplicates": copies.policy,
        "leaks": len(manifest.leaks),
        "leaked": [" = ".join(pair) for pair in manifest.leaks[:10]],
        "near_leaks": len(manifest.near_leaks),
        "quarantined": dict(reasons),
        "masks_refused": dict(refused),
        "left_out": dict(Counter(entry["reason"] for entry in manifest.left_out)),
        "page": str(out) if out is not None else None,
    }


def verify(uri: str, progress: Progress = lambda event: None) -> dict[str, Any]:
    """Read every shard and index and compare it with the manifest's checksums.

    Args:
        progress: called after each file with ``done``, ``total``, ``unit``.

    Returns:
        ``ok``, the number of files ``checked``, the ``damaged`` ones with reasons, and the files that are not in the
        manifest (``unknown``).

    Raises:
        BadInput: there is no prepared data.
    """
    manifest = manifests.read(uri)
    files = [
        file for info in manifest.splits.values() for file in (*info.shards, info.index) if file is not None
    ]

    def damage(file: Shard) -> str | None:
        where = storage.join(uri, file.path)
        try:
            if storage.is_remote(uri):
                found = hashlib.sha256(storage.read_bytes(where)).hexdigest()
            else:
                found = storage.sha256(storage.local_path(where))
        except FileNotFoundError:
            return "missing"
        return None if found == file.sha256 else "the checksum differs"

    with ThreadPoolExecutor(_READS) as pool:
        reasons: list[str | None] = []
        for reason in pool.map(damage, files):
            reasons.append(reason)
            progress({"done": len(reasons), "total": len(files), "unit": "files"})
    names = [*(file.path for file in files), manifests.NAME, manifests.CARD]
    known = {storage.join(uri, name) for name in names}
    damaged = [
        {"path": file.path, "reason": reason} for file, reason in zip(files, reasons, strict=True) if reason
    ]
    if (changed := manifests.problem(manifest)) is not None:
        damaged.insert(0, {"path": manifests.NAME, "reason": changed})
    return {
        "ok": not damaged,
        "checked": len(files),
        "damaged": damaged,
        "unknown": [file for file in storage.list_(uri, recursive=True) if file not in known],
    }
