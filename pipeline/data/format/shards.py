"""Shards: Parquet files of images in the Hugging Face convention, written deterministically.

Images are stored in plain encoding (no compression, no dictionary, one page per column and row group), which is
transparent to other readers and allows ours to read any image by its byte range. These ranges, and properties of the
originals, are in an index file per split.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from agit_core.errors import BadInput
from pipeline import storage

FORMAT = 1
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
_FIELDS = [
    pa.field("image", _IMAGE),
    pa.field("mask", _IMAGE),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("sha256", pa.string()),
]


def _feature(type_: pa.DataType) -> dict[str, str]:
    return {"_type": "Image"} if type_ == _IMAGE else {"dtype": str(type_), "_type": "Value"}


SCHEMA = pa.schema(
    _FIELDS,
    metadata={"huggingface": json.dumps({"info": {"features": {f.name: _feature(f.type) for f in _FIELDS}}})},
)
"""``image`` and ``mask`` (null where there is none): struct<bytes, path>; ``width``, ``height``: of the stored
image, pixels; ``sha256``: of ``image.bytes``."""

INDEX = pa.schema(
    [
        pa.field("name", pa.string()),
        pa.field("shard", pa.int32()),
        pa.field("group", pa.int32()),
        pa.field("image_offset", pa.int64()),
        pa.field("image_length", pa.int32()),
        pa.field("mask_offset", pa.int64()),
        pa.field("mask_length", pa.int32()),
        pa.field("source_sha256", pa.binary(32)),
        pa.field("source_digest", pa.string()),
        pa.field("source_width", pa.int32()),
        pa.field("source_height", pa.int32()),
        pa.field("look", pa.binary(16)),
    ]
)
"""One row per image, in the order of the shards. ``shard`` and ``group``: where it is; the offsets: bytes from
the shard's start; ``mask_length`` 0: no mask. The rest describes the original, see ``source.Entry`` and
``images.StoredImage``."""


@dataclass(frozen=True, slots=True)
class Row:
    """One stored image, with properties of its original. ``look``: perceptual hash, 16 bytes."""

    name: str
    image: bytes
    mask: bytes | None
    size: int
    sha256: str
    source_sha256: bytes
    source_digest: str
    source_width: int
    source_height: int
    look: bytes


@dataclass(frozen=True)
class Written:
    """A finished shard: number of ``rows`` and ``bytes``, SHA-256 and its part of the index."""

    rows: int
    masks: int
    bytes: int
    sha256: str
    index: pa.Table


class ShardWriter:
    """Writes rows to a local Parquet file, one row group at a time.

    Equal rows in equal order give equal bytes, however they are divided among calls of :meth:`add`.
    """

    def __init__(self, path: Path, number: int, rows_per_group: int) -> None:
        self._path = path
        self._number = number
        self._rows_per_group = rows_per_group
        self._pending: list[Row] = []
        self._parts: list[pa.Table] = []
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            data_page_size=1 << 30,
            data_page_version="1.0",
            version="2.6",
            # pages are also split after this many rows, whatever their size
            max_rows_per_page=max(rows_per_group, 20_000),
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
        index = _located(self._path, pa.concat_tables([INDEX.empty_table(), *self._parts]))
        digest = storage.sha256(self._path)
        masks = pc.sum(pc.greater(index["mask_length"], 0)).as_py() or 0
        return Written(len(index), masks, self._path.stat().st_size, digest, index)

    def _flush(self) -> None:
        rows = self._pending
        self._writer.write_table(_table(rows), row_group_size=self._rows_per_group)
        self._parts.append(_described(rows, self._number, len(self._parts)))
        self._pending = []


def read_rows(shard: Path, index: pa.Table) -> Iterator[Row]:
    """Yield the rows of a shard in order, with one row group in memory; ``index``: the shard's part of the index."""
    file = pq.ParquetFile(shard, memory_map=True)
    start = 0
    for group in range(file.metadata.num_row_groups):
        items = file.read_row_group(group).to_pylist()
        known = index.slice(start, len(items)).to_pylist()
        start += len(items)
        for item, about in zip(items, known, strict=True):
            yield Row(
                name=item["image"]["path"],
                image=item["image"]["bytes"],
                mask=item["mask"]["bytes"] if item["mask"] else None,
                size=item["width"],
                sha256=item["sha256"],
                source_sha256=about["source_sha256"],
                source_digest=about["source_digest"],
                source_width=about["source_width"],
                source_height=about["source_height"],
                look=about["look"],
            )


def read_table(file: IO[bytes], columns: list[str] | None = None, *, pre_buffer: bool = False) -> pa.Table:
    """Read a Parquet file from a Python file object, on the calling thread.

    Arrow's threads would need the GIL to release Python objects. If the process exits at that moment, such a thread is
    terminated within C++ code, and the process aborts (exit status 134) after its work is done.

    Args:
        pre_buffer: fetch the columns with few, large requests.
    """
    return pq.ParquetFile(file, pre_buffer=pre_buffer).read(columns, use_threads=False)


def check_length(before: bytes | memoryview, expected: int, where: str) -> None:
    """Check that the four bytes before an image contain its length, i.e. that the index matches the shard.

    Raises:
        BadInput: they do not: the shard was changed or written by something else.
    """
    if len(before) != 4 or struct.unpack("<I", before)[0] != expected:
        raise BadInput(
            f"{where} does not match its index; check it with 'agit data verify' and prepare it again"
        )


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "image": {"bytes": row.image, "path": row.name},
                "mask": None if row.mask is None else {"bytes": row.mask, "path": row.name},
                "width": row.size,
                "height": row.size,
                "sha256": row.sha256,
            }
            for row in rows
        ],
        schema=SCHEMA,
    )


def _described(rows: Sequence[Row], shard: int, group: int) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "name": row.name,
                "shard": shard,
                "group": group,
                "image_offset": 0,
                "image_length": len(row.image),
                "mask_offset": 0,
                "mask_length": len(row.mask or b""),
                "source_sha256": row.source_sha256,
                "source_digest": row.source_digest,
                "source_width": row.source_width,
                "source_height": row.source_height,
                "look": row.look,
            }
            for row in rows
        ],
        schema=INDEX,
    )


def _located(path: Path, index: pa.Table) -> pa.Table:
    """Add the offsets to the index, computed from the file's footer.

    A plain byte-array page is a sequence of ``length, bytes`` up to the page's end, and each column chunk here is a
    single page: the chunk's end and the lengths determine every position.
    """
    metadata = pq.read_metadata(path)
    columns = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    for kind in ("image", "mask"):
        lengths = index[f"{kind}_length"].to_numpy().astype(np.int64)
        offsets = np.zeros(len(index), dtype=np.int64)
        start = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            stop = start + group.num_rows
            chunk = group.column(columns[f"{kind}.bytes"])
            end = chunk.data_page_offset + chunk.total_compressed_size
            here = lengths[start:stop]
            occupied = np.where(here > 0, here + 4, 0)
            offsets[start:stop] = np.where(here > 0, end - np.cumsum(occupied[::-1])[::-1] + 4, 0)
            start = stop
        place = index.schema.get_field_index(f"{kind}_offset")
        index = index.set_column(place, INDEX.field(f"{kind}_offset"), pa.array(offsets))
    return index.combine_chunks()
