"""The manifest and the indexes of a prepared data set: what makes a folder of shards valid."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pyarrow as pa

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.format import shards
from pipeline.records import MANIFEST

FORMAT = 1
NAME = MANIFEST.name
_WHOLE = 16 << 20
"""An index of so many bytes is fetched as it is."""


def read(uri: str) -> dict[str, Any]:
    """The manifest of a data set.

    Raises:
        BadInput: there is none, or it is damaged or of another format.
    """
    manifest = MANIFEST.read(uri)
    if manifest is None:
        raise BadInput(f"there is no prepared data at {uri} (no {NAME}); prepare it first")
    if manifest.get("format") != FORMAT:
        raise BadInput(
            f"{uri} has format {manifest.get('format')}, this version reads {FORMAT}; prepare the data again"
        )
    return manifest


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of all that a manifest says beside its own ``checksum``."""
    told = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def problem(manifest: dict[str, Any]) -> str | None:
    """What in a manifest contradicts itself; None where nothing does. Older ones have no ``checksum``."""
    if checksum(manifest) != manifest.get("checksum", checksum(manifest)):
        return "the manifest was changed after it had been written"
    for split, told in manifest["splits"].items():
        if told["rows"] != sum(shard["rows"] for shard in told["shards"]):
            return f"the manifest's shards of {split} do not have the {told['rows']} rows that it promises"
    return None


def check(uri: str, manifest: dict[str, Any]) -> None:
    """Refuse a manifest that contradicts itself.

    Raises:
        BadInput: says where, and what to do.
    """
    if (found := problem(manifest)) is not None:
        raise BadInput(f"{storage.join(uri, NAME)}: {found}; remove {uri} and prepare the data again")


def find(uri: str) -> dict[str, Any] | None:
    """The manifest, or None where there is none (yet)."""
    return read(uri) if MANIFEST.exists(uri) else None


def split_of(uri: str, manifest: dict[str, Any], split: str) -> dict[str, Any]:
    """A split's part of the manifest.

    Raises:
        BadInput: there is no such split.
    """
    if split not in manifest["splits"]:
        raise BadInput(f"{uri} has no split '{split}'; it has {', '.join(sorted(manifest['splits']))}")
    return dict(manifest["splits"][split])


def read_index(uri: str, manifest: dict[str, Any], split: str, columns: list[str] | None = None) -> pa.Table:
    """The index of a split, see ``shards.INDEX``; one request, whatever the number of shards.

    Of an index so large that it matters only the columns are fetched: 10 of 135 bytes per image for the reader.

    Raises:
        BadInput: no such split, or the index is missing or damaged.
    """
    index = split_of(uri, manifest, split)["index"]
    where = storage.join(uri, index["path"])
    try:
        if columns and index["bytes"] > _WHOLE and storage.is_remote(where):
            fs, path = storage.filesystem(where)
            with storage.explained(where, "read"), fs.open(path, "rb", cache_type="none") as file:
                return shards.read_table(file, columns, pre_buffer=True)
        data = storage.read_bytes(where)
        if hashlib.sha256(data).hexdigest() != index["sha256"]:
            raise BadInput(f"the index {where} is not what its manifest says; remove {uri} and prepare again")
        return shards.read_table(io.BytesIO(data), columns)
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"the index {where} cannot be read ({error}); prepare the data again") from None
