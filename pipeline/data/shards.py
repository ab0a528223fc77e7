"""Shards: Parquet files of images in the Hugging Face convention, written to the byte alike every time.

Images are stored plain (no compression, no dictionary, one page per column and row group), which other readers
do not notice and which lets ours find every image's bytes by arithmetic: see :func:`locate`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agit_core.errors import BadInput
from pipeline.data.images import StoredImage

FORMAT = 1
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_SOURCE = pa.struct(
    [
        pa.field("sha256", pa.string()),
        pa.field("digest", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("look", pa.binary()),
    ]
)


def _features(type_: pa.DataType) -> Any:
    if type_ == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(type_):
        return {field.name: _features(field.type) for field in type_}
    return {"dtype": str(type_), "_type": "Value"}


_FIELDS = [
    pa.field("image", _IMAGE),
    pa.field("mask", _IMAGE),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("sha256", pa.string()),
    pa.field("image_length", pa.int32()),
    pa.field("mask_length", pa.int32()),
    pa.field("source", _SOURCE),
]
SCHEMA = pa.schema(
    _FIELDS,
    metadata={
        "huggingface": json.dumps({"info": {"features": {f.name: _features(f.type) for f in _FIELDS}}}),
        "agit": json.dumps({"format": FORMAT}),
    },
)
"""``image`` and ``mask`` (nullable): struct<bytes, path>; ``width``, ``height``: of the stored image, pixels;
``sha256``: of ``image.bytes``; ``image_length``, ``mask_length``: bytes (0: no mask); ``source``: the original's
SHA-256, the entry's digest, the upright original's size, and a perceptual hash (see ``images.look``)."""


@dataclass(frozen=True)
class Row:
    """One image as it is stored."""

    name: str
    image: bytes
    mask: bytes | None
    size: int
    sha256: str
    source_sha256: str
    digest: str
    source_width: int
    source_height: int
    look: bytes

    @staticmethod
    def of(name: str, stored: StoredImage, size: int, source_sha256: str, digest: str) -> Row:
        return Row(
            name,
            stored.data,
            stored.mask,
            size,
            stored.sha256,
            source_sha256,
            digest,
            stored.width,
            stored.height,
            stored.look,
        )


@dataclass(frozen=True)
class Written:
    """What is known of a shard once it is closed."""

    rows: int
    masks: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes rows into one local Parquet file, a row group at a time.

    Equal rows in equal order give equal bytes, however they are portioned into :meth:`add`.
    """

    def __init__(self, path: Path, rows_per_group: int) -> None:
        self._path = path
        self._rows_per_group = rows_per_group
        self._pending: list[Row] = []
        self._rows = self._masks = 0
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            data_page_size=1 << 40,
            data_page_version="1.0",
            version="2.6",
            store_schema=True,
        )

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._pending.append(row)
            if len(self._pending) == self._rows_per_group:
                self._flush()

    def close(self) -> Written:
        if self._pending:
            self._flush()
        self._writer.close()
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(self._rows, self._masks, self._path.stat().st_size, digest)

    def _flush(self) -> None:
        self._writer.write_table(table(self._pending), row_group_size=self._rows_per_group)
        self._rows += len(self._pending)
        self._masks += sum(row.mask is not None for row in self._pending)
        self._pending = []


def table(rows: Sequence[Row]) -> pa.Table:
    """Rows as an Arrow table of :data:`SCHEMA`."""
    return pa.Table.from_pylist(
        [
            {
                "image": {"bytes": row.image, "path": row.name},
                "mask": None if row.mask is None else {"bytes": row.mask, "path": row.name},
                "width": row.size,
                "height": row.size,
                "sha256": row.sha256,
                "image_length": len(row.image),
                "mask_length": len(row.mask or b""),
                "source": {
                    "sha256": row.source_sha256,
                    "digest": row.digest,
                    "width": row.source_width,
                    "height": row.source_height,
                    "look": row.look,
                },
            }
            for row in rows
        ],
        schema=SCHEMA,
    )


def rows(shard: Any) -> Iterator[Row]:
    """The rows of a shard (anything ``pq.ParquetFile`` takes), one row group in memory at a time."""
    file = pq.ParquetFile(shard)
    for group in range(file.metadata.num_row_groups):
        for item in file.read_row_group(group).to_pylist():
            source = item["source"]
            yield Row(
                item["image"]["path"],
                item["image"]["bytes"],
                item["mask"]["bytes"] if item["mask"] else None,
                item["width"],
                item["sha256"],
                source["sha256"],
                source["digest"],
                source["width"],
                source["height"],
                source["look"],
            )


@dataclass(frozen=True)
class Located:
    """Where everything lies in a shard: arrays with one element per row.

    ``image_offset``, ``image_length``, ``mask_offset``, ``mask_length``: int64 bytes from the file's start; a
    ``mask_length`` of 0 means no mask. ``names``: strings. ``group``: int32, the row group.
    """

    image_offset: np.ndarray
    image_length: np.ndarray
    mask_offset: np.ndarray
    mask_length: np.ndarray
    names: pa.ChunkedArray
    group: np.ndarray


def locate(shard: str | BinaryIO | Any) -> Located:
    """Byte ranges of all images and masks, from the footer and three small columns.

    The values of a plain byte-array page are ``length, bytes`` one after the other up to the page's end, and
    each column chunk here is a single page. So the chunk's end and the lengths give every position.

    Raises:
        BadInput: the file is not a shard of this format.
    """
    try:
        file = pq.ParquetFile(shard)
        metadata = file.metadata
        if json.loads((metadata.metadata or {}).get(b"agit", b"{}")).get("format") != FORMAT:
            raise BadInput("the file is not a shard of this format; prepare the data again")
        columns = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
        small = file.read(columns=["image.path", "image_length", "mask_length"])
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | BadInput):
            raise
        raise BadInput(f"a shard cannot be read ({error}); prepare the data again") from None
    lengths = {
        kind: np.asarray(small[f"{kind}_length"].combine_chunks(), dtype=np.int64)
        for kind in ("image", "mask")
    }
    offsets = {kind: np.zeros(len(small), dtype=np.int64) for kind in lengths}
    group = np.zeros(len(small), dtype=np.int32)
    start = 0
    for index in range(metadata.num_row_groups):
        described = metadata.row_group(index)
        stop = start + described.num_rows
        group[start:stop] = index
        for kind, length in lengths.items():
            chunk = described.column(columns[f"{kind}.bytes"])
            end = chunk.data_page_offset + chunk.total_compressed_size
            here = length[start:stop]
            occupied = np.where(here > 0, here + 4, 0)
            offsets[kind][start:stop] = end - np.cumsum(occupied[::-1])[::-1] + 4
        start = stop
    names = pc.struct_field(small["image"], "path")
    return Located(
        offsets["image"], lengths["image"], offsets["mask"], lengths["mask"], names, group
    )


def check_range(data: bytes | memoryview, expected: int) -> None:
    """Proves that 4 bytes before an image are its length, as they are where :func:`locate` says.

    Raises:
        BadInput: they are not: the file was changed or written by something else.
    """
    (length,) = struct.unpack("<I", bytes(data[:4]))
    if length != expected:
        raise BadInput("a shard does not have the layout its footer describes; prepare the data again")
