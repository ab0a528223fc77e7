"""Manifest and indexes of a prepared data set, which make a folder of shards valid."""

from __future__ import annotations

import hashlib
import io
import json

import pyarrow as pa

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.format import shards
from pipeline.records import MANIFEST, Manifest, Split

FORMAT = 1
NAME = MANIFEST.name
CARD = "README.md"
"""The dataset card (:mod:`pipeline.data.prepare.dataset_card`)."""
_WHOLE = 16 << 20
"""Indexes up to this size in bytes are downloaded whole."""


def read(uri: str) -> Manifest:
    """Read the manifest of a data set.

    Raises:
        BadInput: there is none, or it is damaged or has another format version.
    """
    tree = MANIFEST.at(MANIFEST.uri(uri))
    if tree is None:
        raise BadInput(f"there is no prepared data at {uri} (no {NAME}); prepare it first")
    if tree.get("format") != FORMAT:  # before anything else of another version is read
        raise BadInput(
            f"{uri} has format {tree.get('format')}, this version reads {FORMAT}; prepare the data again"
        )
    return MANIFEST.parse(tree, MANIFEST.uri(uri))


def checksum(manifest: Manifest) -> str:
    """SHA-256 of a manifest without its ``checksum``."""
    rest = {key: value for key, value in manifest.plain().items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def problem(manifest: Manifest) -> str | None:
    """Inconsistency of a manifest as a sentence, or None. Manifests of older versions have no ``checksum``."""
    if manifest.checksum not in {None, checksum(manifest)}:
        return "the manifest was changed after it had been written"
    for split, section in manifest.splits.items():
        if section.rows != sum(shard.rows for shard in section.shards):
            return f"the shards of {split} in the manifest do not add up to its {section.rows} rows"
    return None


def check(uri: str, manifest: Manifest) -> None:
    """Refuse an inconsistent manifest.

    Raises:
        BadInput: it is inconsistent.
    """
    if (reason := problem(manifest)) is not None:
        raise BadInput(f"{storage.join(uri, NAME)}: {reason}; remove {uri} and prepare the data again")


def find(uri: str) -> Manifest | None:
    """Read the manifest; None if there is none (yet)."""
    return read(uri) if MANIFEST.exists(uri) else None


def split_of(uri: str, manifest: Manifest, split: str) -> Split:
    """Section of a split in the manifest.

    Raises:
        BadInput: there is no such split.
    """
    if split not in manifest.splits:
        raise BadInput(f"{uri} has no split '{split}'; it has {', '.join(sorted(manifest.splits))}")
    return manifest.splits[split]


def read_index(uri: str, manifest: Manifest, split: str, columns: list[str] | None = None) -> pa.Table:
    """Read the index of a split (see ``shards.INDEX``) with one request, for any number of shards.

    Of a large remote index, only ``columns`` are fetched: 10 of 135 bytes per image for the reader.

    Raises:
        BadInput: no such split, or the index is missing or damaged.
    """
    index = split_of(uri, manifest, split).index
    if index is None:
        raise BadInput(f"{uri} has no index of {split}; prepare the data again")
    where = storage.join(uri, index.path)
    try:
        if columns and index.bytes > _WHOLE and storage.is_remote(where):
            fs, path = storage.filesystem(where)
            with storage.explained(where, "read"), fs.open(path, "rb", cache_type="none") as file:
                return shards.read_table(file, columns, pre_buffer=True)
        data = storage.read_bytes(where)
        if hashlib.sha256(data).hexdigest() != index.sha256:
            raise BadInput(f"the index {where} is not what its manifest says; remove {uri} and prepare again")
        return shards.read_table(io.BytesIO(data), columns)
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"the index {where} cannot be read ({error}); prepare the data again") from None
