"""Stage ``prepare``: raw images to validated, resized, sharded Parquet with a manifest.

The folder's name contains a fingerprint of the source's contents and of every setting that affects the shards. The
manifest is written last and makes the folder valid; without it, the next call resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.config import Config, DataConfig, fingerprint
from pipeline.data.format import manifest
from pipeline.data.prepare import duplicates
from pipeline.data.prepare.build import build, without
from pipeline.data.prepare.claim import Claim, Superseded
from pipeline.data.prepare.dataset_card import dataset_card
from pipeline.data.prepare.decode import VERSION, ImagePolicy
from pipeline.data.prepare.plan import PARTS, Done, plan_shards
from pipeline.data.prepare.previous import DamagedEarlier, Earlier
from pipeline.data.sources.opening import open_source
from pipeline.data.sources.source import SPLITS, Progress, Source
from pipeline.records import Duplicates, Manifest, NamedDomain, Shard, Split
from pipeline.redact import redact

_SHAPING = (
    "image_size",
    "load_size",
    "encoding",
    "jpeg_quality",
    "minimum_size",
    "duplicates",
    "shard_bytes",
)
_STALE_SECONDS = 24 * 3600
_MOST_GROUPS = 10_000
_MOST_LEFT_OUT = 1_000
"""Of each reason: there may be a sidecar beside each of ten million images."""


@dataclass(frozen=True)
class Prepared:
    """Prepared data and its manifest; ``reused``: whether it already existed."""

    uri: str
    manifest: Manifest
    reused: bool


def prepare(config: Config, progress: Progress | None = None) -> Prepared:
    """Prepare the images of ``config.data``, or find them prepared.

    Args:
        progress: receives ``{"done", "total", "images_per_s", "eta_s", "message"}`` periodically.

    Raises:
        BadInput: no source there, a wrong layout, or too many unusable images.
        RunFailed: the storage does not respond or a process was killed; the same call resumes.
    """
    report = progress or (lambda _: None)
    with _opened(config, report) as (source, key, uri):
        found = manifest.find(uri)
        if found is not None:
            _check_quarantined(config.data, found)
            return Prepared(uri, found, reused=True)
        claim = Claim(uri)
        try:
            with claim.held(report) as free:
                made = _make(config, key, uri, claim, source, report) if free else manifest.read(uri)
        except Superseded:
            found = manifest.find(uri)
            if found is None:  # the other one is at work: wait for it
                return prepare(config, progress)
            storage.remove(
                storage.join(uri, PARTS)
            )  # a lock file created after the other process had finished
            return Prepared(uri, found, reused=True)
    if free:
        storage.remove(storage.join(uri, PARTS))
        _sweep(config, uri)
    return Prepared(uri, made, reused=not free)


def find(config: Config, progress: Progress | None = None) -> Prepared | None:
    """Find the prepared images of ``config.data`` without writing anything; None if they are not prepared.

    Raises:
        BadInput: no source there, or a wrong layout.
        RunFailed: the storage does not respond.
    """
    with _opened(config, progress or (lambda _: None)) as (_, _, uri):
        found = manifest.find(uri)
    return None if found is None else Prepared(uri, found, reused=True)


@contextlib.contextmanager
def _opened(config: Config, report: Progress) -> Iterator[tuple[Source, str, str]]:
    """Open the source; yields it with the fingerprint of contents and settings, and the data set's folder."""
    report({"message": f"reading {redact(config.data.source)}"})
    with open_source(config.data, storage.downloads(config.storage), report) as source:
        key = fingerprint({"settings": shaping(config.data), "contents": source.digest()})
        yield source, key, storage.join(config.storage, "data", f"{config.name}-{key}")


def shaping(config: DataConfig) -> dict[str, Any]:
    """The settings that affect the shards, JSON-ready for hashing."""
    values = config.model_dump(mode="json", include={*_SHAPING, "rows_per_group"})
    if config.resize != "squash":  # the default is left out, so that older data sets keep their names
        values["resize"] = config.resize
    return {**values, "format": manifest.FORMAT, "images": VERSION}


def _make(config: Config, key: str, uri: str, claim: Claim, source: Source, report: Progress) -> Manifest:
    settings = shaping(config.data)
    policies = {split: _policy(config.data, split) for split in SPLITS}
    plans = [
        plan
        for split in SPLITS
        for plan in plan_shards(split, source.splits[split], policies[split], config.data.shard_bytes)
    ]
    earlier = _earlier(config, settings, key)
    meter = _Meter(report, sum(len(source.splits[split]) for split in SPLITS))

    def shards(earlier: Earlier | None) -> list[Done]:
        return build(
            uri,
            claim,
            plans,
            policies,
            remote=source.remote,
            rows_per_group=config.data.rows_per_group,
            workers=config.data.workers,
            earlier=earlier,
            progress=meter,
        )

    storage.write_json(storage.join(uri, PARTS, "started.json"), {"time": time.time()})
    try:
        done = shards(earlier)
    except DamagedEarlier:
        done = shards(None)
    _check_usable(config.data, done, uri, claim)
    report({"message": "looking for duplicates"})
    copies = duplicates.find(_column(done, "source_sha256"), _column(done, "look"))
    names = _Names(done)
    if config.data.duplicates == "drop":
        done = _without_copies(uri, claim, done, names, copies, config.data.rows_per_group)
        _check_left(config.data, done, uri, claim)
    splits = {
        split: _split(uri, claim, split, [d for d in done if d.plan.split == split]) for split in SPLITS
    }
    made = Manifest(
        format=manifest.FORMAT,
        name=config.name,
        fingerprint=key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source=redact(source.description),
        image_size=config.data.image_size,
        load_size=config.data.load_size,
        domains={domain: NamedDomain(name=source.names[domain]) for domain in "ab"},
        splits=splits,
        duplicates=_duplicates(names, copies, config.data.duplicates),
        leaks=_leaks(names, copies.exact),
        near_leaks=_leaks(names, copies.near),
        left_out=_left_out(source),
        settings=settings,
        kept=sum(item.kept for item in done),
        totals=_totals(splits),
    )
    made = made.but(checksum=manifest.checksum(made))
    storage.sweep(uri)
    with claim.putting():
        storage.write_text(storage.join(uri, manifest.CARD), dataset_card(made))
        records.MANIFEST.write(uri, made)
    return made


def _left_out(source: Source) -> list[dict[str, str]]:
    """Files that are no images of a split, and why; of very many for one reason the first, and how many more."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in source.left_out:
        by_reason.setdefault(reason, []).append(name)
    listed = []
    for reason, names in by_reason.items():
        listed += [{"name": name, "reason": reason} for name in names[:_MOST_LEFT_OUT]]
        if more := len(names[_MOST_LEFT_OUT:]):
            listed.append({"name": f"{more} more", "reason": reason})
    return listed


def _policy(config: DataConfig, split: str) -> ImagePolicy:
    size = config.load_size if split.startswith("train") else config.image_size
    return ImagePolicy(size, config.encoding, config.jpeg_quality, config.minimum_size, config.resize)


def _check_usable(config: DataConfig, done: list[Done], uri: str, claim: Claim) -> None:
    """Refuse and remove a data set with an empty split or too many quarantined images."""
    rejected = [(item.plan.split, entry) for item in done for entry in item.rejected]
    total = sum(len(item.plan.entries) for item in done)
    rows = {split: sum(d.shard.rows for d in done if d.plan.split == split) for split in SPLITS}
    empty = [split for split in SPLITS if not rows[split]]
    if not empty and len(rejected) <= config.maximum_quarantined * total:
        return
    with claim.putting():
        storage.remove(uri)
    split, first = next((one for one in rejected if not empty or one[0] == empty[0]), rejected[0])
    if empty:
        example = f"{split}/{first['name']}: {first['reason']}"
        raise BadInput(f"no image of {empty[0]} in {config.source} can be used (such as {example})")
    raise _too_many(config, rejected, total)


def _check_quarantined(config: DataConfig, made: Manifest) -> None:
    """Apply the current limit to a stored data set, which may have been made with a higher one; keep its files."""
    rejected = [
        (split, entry)
        for split, section in made.splits.items()
        for entry in section.quarantined
        if not entry["reason"].startswith(duplicates.COPY_OF)
    ]
    total = made.totals["files_in"]
    if len(rejected) > config.maximum_quarantined * total:
        raise _too_many(config, rejected, total)


def _too_many(config: DataConfig, rejected: list[tuple[str, dict[str, str]]], total: int) -> BadInput:
    split, first = rejected[0]
    return BadInput(
        f"{len(rejected)} of {total} files in {config.source} cannot be used (such as {split}/{first['name']}: "
        f"{first['reason']}), more than data.maximum_quarantined ({config.maximum_quarantined:g}) allows"
    )


def _check_left(config: DataConfig, done: list[Done], uri: str, claim: Claim) -> None:
    """Refuse and remove a data set with a split in which all images are duplicates of other splits' images."""
    for split in SPLITS:
        if not any(item.shard.rows for item in done if item.plan.split == split):
            with claim.putting():
                storage.remove(uri)
            raise BadInput(
                f"every image of {split} in {config.source} is a copy of one in another split, so data.duplicates=drop "
                "leaves none; give other images or set it to report"
            )


def _column(done: list[Done], name: str) -> pa.Array:
    return pa.chunked_array([chunk for item in done for chunk in item.index[name].chunks]).combine_chunks()


class _Names:
    """``names[row]``: split and name of a row over all shards, looked up in Arrow columns to save memory."""

    def __init__(self, done: list[Done]) -> None:
        self._splits = [item.plan.split for item in done]
        self._ends = np.cumsum([len(item.index) for item in done])
        self._column = _column(done, "name")

    def __getitem__(self, row: int) -> tuple[str, str]:
        split = self._splits[int(np.searchsorted(self._ends, row, "right"))]
        return split, self._column[row].as_py()


def _duplicates(names: _Names, copies: duplicates.Duplicates, policy: str) -> Duplicates:

    def shown(groups: list[list[int]]) -> list[list[str]]:
        return [["/".join(names[row]) for row in group] for group in groups[:_MOST_GROUPS]]

    return Duplicates(
        policy=policy,
        groups=shown(copies.exact),
        exact_groups=len(copies.exact),
        near=shown(copies.near),
        near_groups=len(copies.near),
        near_bits=duplicates.NEAR_BITS,
        skipped_bands=copies.crowded,
    )


def _leaks(names: _Names, groups: list[list[int]]) -> list[list[str]]:
    leaks = []
    for group in groups:
        train = ["/".join(names[row]) for row in group if names[row][0].startswith("train")]
        test = ["/".join(names[row]) for row in group if names[row][0].startswith("test")]
        leaks += [[one, other] for one in train for other in test]
    return leaks[:_MOST_GROUPS]


def _without_copies(
    uri: str,
    claim: Claim,
    done: list[Done],
    names: _Names,
    copies: duplicates.Duplicates,
    rows_per_group: int,
) -> list[Done]:
    """Keep one image per group of duplicates: preferably a test image, otherwise the first by name."""
    dropped: dict[str, dict[str, str]] = {}
    for group in [*copies.exact, *copies.near]:
        first, *others = sorted(group, key=lambda row: (not names[row][0].startswith("test"), names[row]))
        for row in others:
            split, name = names[row]
            dropped.setdefault(split, {}).setdefault(name, f"{duplicates.COPY_OF} {'/'.join(names[first])}")
    return [without(uri, claim, item, dropped.get(item.plan.split, {}), rows_per_group) for item in done]


def _split(uri: str, claim: Claim, split: str, done: list[Done]) -> Split:
    """Write a split's index and return the split's section of the manifest."""
    path = f"index/{split}.parquet"
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables([item.index for item in done]), buffer)
    with claim.putting():
        storage.write_bytes(storage.join(uri, path), buffer.getvalue())
    return Split(
        rows=sum(item.shard.rows for item in done),
        files_in=sum(len(item.plan.entries) for item in done),
        quarantined=_by_name(entry for item in done for entry in item.rejected),
        notes=_by_name(note for item in done for note in item.notes),
        masks=sum(item.masks for item in done),
        shards=[item.shard for item in done],
        index=Shard(
            path=path,
            bytes=buffer.getbuffer().nbytes,
            sha256=hashlib.sha256(buffer.getvalue()).hexdigest(),
        ),
    )


def _by_name(entries: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(entries, key=lambda entry: entry["name"])


def _totals(splits: dict[str, Split]) -> dict[str, int]:
    return {
        "files_in": sum(split.files_in or 0 for split in splits.values()),
        "images": sum(split.rows for split in splits.values()),
        "quarantined": sum(len(split.quarantined) for split in splits.values()),
        "masks": sum(split.masks for split in splits.values()),
        "shards": sum(len(split.shards) for split in splits.values()),
        "bytes": sum(shard.bytes for split in splits.values() for shard in split.shards),
    }


def _siblings(config: Config) -> list[str]:
    """Folders of all data sets of this configuration's name, finished or not."""
    pattern = re.compile(re.escape(config.name) + r"-[0-9a-f]{12}")
    folders = storage.list_(storage.join(config.storage, "data"))
    return [folder for folder in folders if pattern.fullmatch(storage.name(folder))]


def _earlier(config: Config, settings: dict[str, Any], key: str) -> Earlier | None:
    """The newest finished data set of this name with the same settings, for reusing rows."""
    candidates = []
    for folder in _siblings(config):
        if storage.name(folder) == f"{config.name}-{key}":
            continue
        try:
            made = manifest.find(folder)
        except BadInput:
            continue
        if made is not None and made.settings == settings:
            candidates.append((made.created, folder, made))
    if not candidates:
        return None
    _, folder, made = max(candidates, key=lambda item: item[:2])
    return Earlier(folder, made)


def _sweep(config: Config, uri: str) -> None:
    """Remove remains of preparations that were killed more than a day ago and never repeated."""
    for folder in _siblings(config):
        started = storage.join(folder, PARTS, "started.json")
        if folder == uri or not storage.exists(started):
            continue
        try:
            began = float(storage.read_json(started)["time"])
        except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
            continue  # gone meanwhile, or damaged: `agit clean` removes it
        if time.time() - began > _STALE_SECONDS:
            # with a manifest, the set is complete and only its clean-up was interrupted
            whole = storage.exists(storage.join(folder, manifest.NAME))
            storage.remove(storage.join(folder, PARTS) if whole else folder)


class _Meter:
    """Converts the number of finished entries into progress events."""

    def __init__(self, report: Progress, total: int) -> None:
        self._report = report
        self._total = total
        self._started = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int) -> None:
        if self._first is None:
            self._first = done
        seconds = time.monotonic() - self._started
        rate = (done - self._first) / seconds if seconds > 0.2 else 0.0
        left = (self._total - done) / rate if rate else None
        self._report(
            {"done": done, "total": self._total, "images_per_s": rate or None, "eta_s": left, "message": ""}
        )
