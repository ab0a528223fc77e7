"""Listing of the files under a local or remote folder, with identifiers of their contents."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import in_litter, is_litter
from pipeline.data.sources.source import LocalFile, Readable, StoredFile, Unreachable, check_regular

CIRCLE = "a link back to a folder that it lies in"
"""Reason why a link is not followed."""
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class File:
    """One file of a folder.

    Attributes:
        relative: its path relative to the folder.
        stamp: identifier of the contents from object storage; None: the contents are hashed.
    """

    relative: str
    readable: Readable
    stamp: str | None = None

    def digest(self) -> str:
        """Identifier of the contents."""
        return str(self.stamp) if self.stamp is not None else _digest(self.readable)

    def why(self) -> str:
        """Reason why it cannot be read; empty if it can."""
        try:
            self.readable.read()
        except OSError as error:
            return str(error.strerror or error)
        return ""


def listing(uri: str, lost: Mapping[str, str] = _NOTHING) -> list[File]:
    """List all files under a folder, sorted by path, without hidden and system files.

    Args:
        lost: local paths and reasons of files that could not be unpacked; they are listed as unreadable.

    Raises:
        BadInput: the folder itself cannot be read.
    """
    if storage.is_remote(uri):
        return _listing_remote(uri)
    root = storage.local_path(uri)
    files = [
        File(storage.as_text(Path(path).relative_to(root).as_posix()), _readable(path, reason))
        for path, reason in _walk(str(root), frozenset(_identities(root)))
    ]
    files += [
        File(storage.as_text(path[len(str(root)) + 1 :]), Unreachable(reason))
        for path, reason in lost.items()
        if path.startswith(f"{root}/")
    ]
    return sorted(files, key=lambda file: file.relative)


def count_files(folder: str, most: int) -> int:
    """Number of files under a local folder, at most ``most``."""
    files = (name for _, _, names in os.walk(folder) for name in names if not is_litter(name))
    return sum(1 for _ in itertools.islice(files, most))


def _readable(path: str, reason: str | None) -> Readable:
    return Unreachable(reason) if reason else LocalFile(path)


def _identities(folder: Path) -> set[tuple[int, int]]:
    """Device and inode of the folders around a folder, also around the one that it links to."""
    found = set()
    for path in {*folder.parents, *folder.resolve().parents}:
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def _walk(
    folder: str, above: frozenset[tuple[int, int]], top: bool = True
) -> Iterator[tuple[str, str | None]]:
    """Walk a folder, following links except those to a folder ``above``; yields (path, None or the reason why it cannot
    be read)."""
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            yield folder, CIRCLE
            return
        inside = [entry for entry in os.scandir(folder) if not is_litter(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if top:
            raise BadInput(
                f"the folder {folder} cannot be read: {error.strerror}; correct its permissions"
            ) from None
        yield folder, f"{error.strerror} (a folder)"
        return
    for entry in inside:
        try:
            if entry.is_dir():
                yield from _walk(entry.path, above | {here}, top=False)
                continue
            check_regular(entry.path)
            yield entry.path, None
        except OSError as error:
            yield entry.path, error.strerror or str(error)


def _digest(readable: Readable) -> str:
    try:
        return hashlib.sha256(readable.read()).hexdigest()
    except OSError as error:
        # it stays in the listing and is quarantined when it is read
        return f"unreadable:{error.errno or error}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents."""
    try:
        check_regular(str(path))
        return storage.sha256(path)
    except OSError as error:
        return f"unreadable:{error.errno}"


def _listing_remote(uri: str) -> list[File]:
    fs, path = storage.filesystem(uri)
    with storage.explained(uri, "list"):
        try:
            found = fs.find(path, detail=True)
        except FileNotFoundError:
            return []
    parents = {parent for name in found for parent in _parents(name)}
    files = []
    for name, info in found.items():
        relative = name[len(path) + 1 :]
        # web consoles and file managers create empty objects as folder markers
        marker = name.endswith("/") or (not info.get("size") and name in parents)
        if relative and not marker and not in_litter(relative):
            files.append(File(relative, StoredFile(storage.join(uri, relative), _md5(info)), _stamp(info)))
    return sorted(files, key=lambda file: file.relative)


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def remote_file(uri: str) -> tuple[Readable, str]:
    """Handle of an object and the identifier of its contents; reading a missing object fails later."""
    fs, path = storage.filesystem(uri)
    with storage.explained(uri, "look up"):
        try:
            info = fs.info(path)
            return StoredFile(uri, _md5(info)), _stamp(info)
        except FileNotFoundError:
            return StoredFile(uri), f"unreadable:{uri}"


def _stamp(info: dict[str, Any]) -> str:
    """Identifier of an object's contents: a hash of its ETag and size."""
    tag = str(info.get("ETag") or info.get("LastModified")).strip('"')
    return hashlib.sha256(f"{tag}:{info.get('size')}".encode()).hexdigest()


def _md5(info: dict[str, Any]) -> str | None:
    """MD5 of an object's contents if its ETag is one: not after a multipart upload or with KMS encryption."""
    tag = str(info.get("ETag")).strip('"')
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else None
