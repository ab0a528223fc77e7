"""Inputs of ``agit translate`` (an image, a folder, a zip, Parquet) as a list of items to read later."""

from __future__ import annotations

import re
import stat
import threading
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import SIDECAR, in_litter, is_sidecar
from pipeline.data.sources import tables
from pipeline.data.sources.archives import is_archive
from pipeline.data.sources.listing import listing
from pipeline.data.sources.source import LARGEST_FILE, LocalFile, StoredFile

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".ppm", ".jp2", ".tga")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Writable video formats; :data:`READ_VIDEOS` lists those that are recognised as inputs."""
READ_VIDEOS = (
    *VIDEOS,
    *(
        ".mts",
        ".m2ts",
        ".ts",
        ".3gp",
        ".3g2",
        ".mpg",
        ".mpeg",
        ".mpe",
        ".m2v",
        ".vob",
        ".wmv",
        ".asf",
        ".flv",
        ".f4v",
    ),
    *(".ogv", ".mxf", ".dv", ".divx", ".mod", ".tod", ".y4m", ".nut"),
)
_LEAVES = "its path leads out of the output folder"
_lock = threading.Lock()


@dataclass(frozen=True)
class Item:
    """Reference to one image; small, so that it can be sent to other machines instead of the image.

    Attributes:
        name: relative path with ``/``; the translation has the same.
        uri: the file that contains it.
        member: its name in a zip, or (row group, row) in a Parquet file.
    """

    name: str
    uri: str
    member: str | tuple[int, int] | None = None

    def read(self) -> bytes:
        """Read the encoded image; errors of the storage or archive are passed on."""
        if self.member is None:
            if storage.is_remote(self.uri):
                return storage.read_bytes(self.uri)
            return LocalFile(str(storage.local_path(self.uri))).read()
        with _lock:  # one file handle per archive, shared
            if isinstance(self.member, str):
                return _zip(self.uri).read(self.member)
            group, row = self.member
            return _row_group(self.uri, group)[row]


@dataclass(frozen=True)
class Inputs:
    """The items of an input, and the refused files."""

    kind: str
    """``image``, ``folder``, ``zip``, ``parquet`` or ``video``."""
    items: list[Item]
    refused: list[dict[str, str]]
    """``name`` and ``reason`` of each file refused without reading it."""


def find(uri: str) -> Inputs:
    """List the images of an input, sorted by name.

    Raises:
        BadInput: nothing there, or nothing to translate.
    """
    suffix = suffix_of(uri)
    # list first: a folder may be named photos.zip
    below, unread = _below(uri)
    if not below and unread:
        raise BadInput(f"{uri} contains nothing readable ({unread[0]['name']}: {unread[0]['reason']})")
    if not below and not storage.exists(uri):
        raise BadInput(f"there is nothing at {uri}; check the path")
    if not below and not storage.is_remote(uri) and storage.local_path(uri).is_dir():
        raise BadInput(f"{uri} is an empty folder; give one with images")
    if not below and (tables.is_csv(uri) or (is_archive(uri) and suffix != ".zip")):
        raise BadInput(
            f"{uri} is a list or tar, which is not translated; give the folder, or a zip or Parquet of it"
        )
    if not below and suffix in READ_VIDEOS:
        return Inputs("video", [Item(storage.name(uri), uri)], [])
    if not below and suffix == ".zip":
        found = _zip_members(uri)
    elif not below and suffix == ".parquet":
        found = _rows([uri])
    elif not below:
        return Inputs("image", [Item(storage.name(uri), uri)], [])
    elif (shards := tables.shards_of(below)) and not any(suffix_of(item) in IMAGES for item in below):
        found = _rows(shards)
        start = len(storage.join(uri)) + 1
        found.refused.extend(
            {"name": storage.as_text(item[start:]), "reason": "lies beside the Parquet files that are read"}
            for item in below
            if item not in shards and not in_litter(item[start:])
        )
    else:
        found = _files(below, len(storage.join(uri)) + 1)
    found.refused.extend(unread)
    if not found.items and not found.refused:
        raise BadInput(
            f"{uri} contains no images; images are recognised by suffixes such as .jpg, .png, .webp, .tif"
        )
    return found


def suffix_of(uri: str) -> str:
    return PurePosixPath(storage.name(uri)).suffix.lower()


def _below(uri: str) -> tuple[list[str], list[dict[str, str]]]:
    """Files under a folder (empty if ``uri`` is not one), and ``name`` and ``reason`` of unreadable entries."""
    if not storage.is_remote(uri) and not storage.local_path(uri).is_dir():
        return [], []
    files, unread = [], []
    for file in listing(uri):
        if isinstance(file.readable, LocalFile):
            files.append(file.readable.path)
        elif not isinstance(file.readable, StoredFile):
            unread.append({"name": file.relative, "reason": f"cannot be read: {file.why()}"})
        elif ".." in file.relative.split("/"):  # an object's key may hold them
            unread.append({"name": file.relative, "reason": _LEAVES})
        else:
            files.append(file.readable.uri)
    return files, unread


def _files(uris: list[str], start: int) -> Inputs:
    """Items of a folder; ``start`` is the offset of the relative names within the URIs."""
    items: list[Item] = []
    refused: list[dict[str, str]] = []
    for uri in uris:
        name = storage.as_text(uri[start:])
        suffix = suffix_of(uri)
        if in_litter(name):
            continue
        if is_sidecar(name):
            refused.append({"name": name, "reason": SIDECAR})
        elif suffix in READ_VIDEOS:
            refused.append({"name": name, "reason": "is a video; translate it separately"})
        else:  # decided by its contents, when it is decoded
            items.append(Item(name, uri))
    return Inputs("folder", items, refused)


def _zip_members(uri: str) -> Inputs:
    items, refused = [], []
    try:
        members = _zip(uri).infolist()
    except zipfile.BadZipFile as error:
        raise BadInput(f"{uri} is damaged or not a zip file ({error}); create it again") from None
    except PermissionError as error:
        raise BadInput(f"{uri} cannot be read: {error.strerror or error}; correct its permissions") from None
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))  # as some programs of Windows pack
        suffix = path.suffix.lower()
        if member.is_dir() or in_litter(path.as_posix()):
            continue
        if is_sidecar(member.filename):
            refused.append({"name": member.filename, "reason": SIDECAR})
        elif suffix in READ_VIDEOS:
            refused.append({"name": member.filename, "reason": "is a video; translate it separately"})
        elif reason := _unsafe(member):
            refused.append({"name": member.filename, "reason": reason})
        else:
            items.append(Item(path.as_posix(), uri, member.filename))
    return Inputs("zip", sorted(items, key=lambda item: item.name), refused)


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    if not safe(member.filename.replace("\\", "/")):
        return _LEAVES
    if stat.S_ISLNK(member.external_attr >> 16):
        return "it is a link"
    if member.flag_bits & 1:
        return "it is encrypted"
    if member.file_size > LARGEST_FILE:
        return f"its declared size is {member.file_size / 2**30:.0f} GiB"
    return None


def safe(name: str) -> bool:
    """Whether a path from an archive stays inside the folder that it is extracted to."""
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and bool(path.parts)
    return inside and "\\" not in name and not re.match("[A-Za-z]:", name) and "\0" not in name


@lru_cache(maxsize=4)
def _zip(uri: str) -> zipfile.ZipFile:
    fs, path = storage.filesystem(uri)
    return zipfile.ZipFile(fs.open(path, "rb"))


def _rows(uris: list[str]) -> Inputs:
    """One item per row, named by the image's path column; duplicates and unsafe names by file, row group and row."""
    items: list[Item] = []
    refused: list[dict[str, str]] = []
    names: set[str] = set()
    for uri in uris:
        try:
            places = _paths(uri)
        except BadInput as error:
            if len(uris) == 1:
                raise
            refused.append({"name": storage.name(uri), "reason": str(error)})
            continue
        stem = PurePosixPath(storage.name(uri)).stem
        for group, row, path in places:
            place = f"{stem}-{group:04d}-{row:05d}"
            # data sets from elsewhere may hold absolute paths of another machine: keep the file name
            name = path if safe(path) else PurePosixPath(path.replace("\\", "/")).name
            if not safe(name):
                name = f"{place}.png"
            elif name in names:
                name = str(PurePosixPath(name).with_name(f"{place}-{PurePosixPath(name).name}"))
            names.add(name)
            items.append(Item(name, uri, (group, row)))
    return Inputs("parquet", items, refused)


def _paths(uri: str) -> list[tuple[int, int, str]]:
    """(row group, row, image path or "") of every row, without reading images."""
    import pyarrow as pa

    file = _parquet(uri)
    column = _image_column(file, uri)
    named = file.schema_arrow.field(column).type.get_field_index("path") >= 0
    rows: list[tuple[int, int, str]] = []
    try:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            paths = _values(file, group, column, "path") if named else [""] * count
            rows += [(group, row, str(path or "")) for row, path in enumerate(paths)]
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{uri} is damaged ({str(error).splitlines()[0]})") from None
    return rows


@lru_cache(maxsize=4)
def _parquet(uri: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fs, path = storage.arrow(uri)
    try:
        return pq.ParquetFile(fs.open_input_file(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{uri} is not a Parquet file ({str(error).splitlines()[0]})") from None


@lru_cache(maxsize=2)
def _row_group(uri: str, group: int) -> list[bytes]:
    file = _parquet(uri)
    column = _image_column(file, uri)
    return [data or b"" for data in _values(file, group, column, "bytes")]


def _values(file: Any, group: int, column: str, part: str) -> list[Any]:
    # single-threaded, as in shards.read_table
    table = file.read_row_group(group, columns=[f"{column}.{part}"], use_threads=False)
    chunks = table.column(column).chunks
    return [(value or {}).get(part) for chunk in chunks for value in tables.values(chunk)]


def _image_column(file: Any, uri: str) -> str:
    """Name of the image column by the Hugging Face convention, ``struct<bytes, path>``; prefers ``image``."""
    columns = [field.name for field in file.schema_arrow if tables.is_image(field.type)]
    if not columns:
        raise BadInput(
            f"{uri} has no image column (struct<bytes, path>, the Hugging Face datasets convention)"
        )
    return "image" if "image" in columns else columns[0]
