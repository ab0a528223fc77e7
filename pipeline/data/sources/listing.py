"""Every file below a folder, on this machine or in object storage, and what identifies its contents."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.data.litter import in_litter, is_litter
from pipeline.data.sources.source import LocalFile, Readable, StoredFile, Unreachable, check_regular


@dataclass(frozen=True, slots=True)
class File:
    """One file of a folder. ``relative``: its path from there; ``stamp``: what object storage identifies its
    contents by; without one the file is read for that."""

    relative: str
    readable: Readable
    stamp: str | None = None

    def digest(self) -> str:
        """Identifies the contents."""
        return str(self.stamp) if self.stamp is not None else _digest(self.readable)

    def why(self) -> str:
        """Why it cannot be read."""
        try:
            self.readable.read()
        except OSError as error:
            return str(error.strerror or error)
        return ""


def listing(uri: str) -> list[File]:
    """Every file below a folder, sorted by path; hidden files and the litter of desktops are left out."""
    if storage.is_remote(uri):
        return _listing_remote(uri)
    root = storage.local_path(uri)
    files = [
        File(storage.as_text(Path(path).relative_to(root).as_posix()), _readable(path, reason))
        for path, reason in _walk(str(root), ())
    ]
    return sorted(files, key=lambda file: file.relative)


def _readable(path: str, reason: str | None) -> Readable:
    return Unreachable(reason) if reason else LocalFile(path)


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, str | None]]:
    """Files below a folder, through links, of which some lead back to a folder ``above``; and why one is none."""
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        inside = [] if here in above else [entry for entry in os.scandir(folder) if not is_litter(entry.name)]
    except OSError as error:
        if above:
            yield folder, f"the folder cannot be read: {error.strerror}"
        return
    for entry in inside:
        try:
            if entry.is_dir():
                yield from _walk(entry.path, (*above, here))
                continue
            check_regular(entry.path)
            yield entry.path, None
        except OSError as error:
            yield entry.path, f"cannot be read: {error.strerror or error}"


def _digest(readable: Readable) -> str:
    try:
        return hashlib.sha256(readable.read()).hexdigest()
    except OSError as error:
        # It stays in the listing and is quarantined with this reason when it is read.
        return f"unreadable:{error.errno}"


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
        # consoles and file managers mark folders by empty objects
        marker = name.endswith("/") or (not info.get("size") and name in parents)
        if relative and not marker and not in_litter(relative):
            files.append(File(relative, StoredFile(storage.join(uri, relative), _md5(info)), _stamp(info)))
    return sorted(files, key=lambda file: file.relative)


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def remote_file(uri: str) -> tuple[Readable, str]:
    """One object and what identifies its contents; a missing one is found out when it is read."""
    fs, path = storage.filesystem(uri)
    with storage.explained(uri, "look up"):
        try:
            info = fs.info(path)
            return StoredFile(uri, _md5(info)), _stamp(info)
        except FileNotFoundError:
            return StoredFile(uri), f"unreadable:{uri}"


def _stamp(info: dict[str, Any]) -> str:
    """An object's ETag, which object stores derive from its contents, and its size."""
    tag = str(info.get("ETag") or info.get("LastModified")).strip('"')
    return hashlib.sha256(f"{tag}:{info.get('size')}".encode()).hexdigest()


def _md5(info: dict[str, Any]) -> str | None:
    """The ETag of an object that was uploaded in one piece (and is not encrypted with a key of KMS)."""
    tag = str(info.get("ETag")).strip('"')
    return tag if re.fullmatch("[0-9a-f]{32}", tag) else None
