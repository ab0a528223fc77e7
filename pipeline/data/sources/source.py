"""Common form of all sources: named entries per split, readable from any process."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pipeline import storage

Progress = Callable[[dict[str, Any]], None]
"""Receives progress events: ``done``, ``total``, ``message``; see :mod:`pipeline.progress`."""
SPLITS = ("trainA", "trainB", "testA", "testB")


LARGEST_FILE = 2 * 2**30
"""Largest size of an image's file in bytes, which is held in memory; larger ones are refused unread."""


class Readable(Protocol):
    """Handle of a file's contents; picklable, so that worker processes can read it."""

    remote: ClassVar[bool]
    """Whether reading involves network latency."""

    def read(self) -> bytes:
        """Read the whole file.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def known_md5(self) -> str | None:
        """MD5 of the contents if it is known without reading them, else None."""
        ...

    def carried(self) -> Readable:
        """A handle that can be read on any machine; it embeds the contents of a local file."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on this machine."""

    path: str
    remote: ClassVar[bool] = False

    def read(self) -> bytes:
        check_regular(self.path)
        if (size := os.path.getsize(self.path)) > LARGEST_FILE:
            limit = LARGEST_FILE / 2**30
            raise OSError(errno.EFBIG, f"its size is {size / 2**30:.0f} GiB, the limit {limit:.0f} GiB")
        return Path(self.path).read_bytes()

    def known_md5(self) -> str | None:
        return None

    def carried(self) -> Readable:
        try:
            return Carried(self.read())
        except OSError as error:
            return Carried(b"", (error.errno, error.strerror or str(error)))


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in object storage; ``md5``: MD5 of its contents, if the storage provides it."""

    uri: str
    md5: str | None = None
    remote: ClassVar[bool] = True

    def read(self) -> bytes:
        return storage.read_bytes(self.uri)

    def known_md5(self) -> str | None:
        return self.md5

    def carried(self) -> Readable:
        return self


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A file that cannot be read; its entry is quarantined with this reason."""

    reason: str
    remote: ClassVar[bool] = True

    def read(self) -> bytes:
        raise OSError(self.reason)

    def known_md5(self) -> str | None:
        return None

    def carried(self) -> Readable:
        return self


@dataclass(frozen=True, slots=True)
class Carried:
    """Embedded contents of a file, or its read error, to be sent to another machine."""

    data: bytes
    failed: tuple[int | None, str | None] | None = None
    remote: ClassVar[bool] = False

    def read(self) -> bytes:
        if self.failed is not None:
            raise OSError(*self.failed)
        return self.data

    def known_md5(self) -> str | None:
        return None

    def carried(self) -> Readable:
        return self


def check_regular(path: str) -> None:
    """Refuse paths that could block or never end: pipes, sockets, devices.

    Raises:
        OSError: not a regular file, or missing.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL character in the path
        raise OSError(str(error)) from None
    if not stat.S_ISREG(mode):
        raise OSError("is a folder" if stat.S_ISDIR(mode) else "is a pipe, socket or device, not a file")


def carried(entry: Entry) -> Entry:
    """Copy of the entry that can be read on any machine; see :meth:`Readable.carried`."""
    mask = entry.mask.carried() if entry.mask is not None else None
    return replace(entry, image=entry.image.carried(), mask=mask)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source.

    Attributes:
        name: unique within its split; shown to users.
        image, mask: handles of the files; ``mask`` may be None.
        digest: identifies the contents of both without decoding. Equal contents may have different digests (such as
            ETags), but different contents never have the same one.
    """

    name: str
    image: Readable
    mask: Readable | None
    digest: str

    @property
    def key(self) -> bytes:
        """Hash that determines the entry's shard and position: pseudo-random but stable."""
        return hashlib.sha256(self.name.encode()).digest()


def distinct(entries: list[Entry]) -> list[Entry]:
    """The entries with numbers on repeated names: ``a.jpg``, ``a.jpg#2``."""
    taken: dict[str, int] = {}
    result = []
    for entry in entries:
        name = entry.name
        while name in taken:
            taken[entry.name] += 1
            name = f"{entry.name}#{taken[entry.name]}"
        taken[name] = 1
        result.append(entry if name == entry.name else replace(entry, name=name))
    return result


@dataclass
class Source:
    """An opened source.

    Attributes:
        description: description of the source for the manifest.
        splits: entries of ``trainA``, ``trainB``, ``testA`` and ``testB``, sorted by name.
        names: names of the two domains; ``A`` and ``B`` if unknown.
        remote: whether reading an entry involves network latency.
        left_out: names and reasons of unused files, such as masks without an image.
        resources: temporary folders, removed when the source is closed.
    """

    description: str
    splits: dict[str, list[Entry]]
    names: dict[str, str] = field(default_factory=lambda: {"a": "A", "b": "B"})
    remote: bool = False
    left_out: list[tuple[str, str]] = field(default_factory=list)
    resources: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()

    def limited(self, train: int | None, test: int | None) -> Source:
        """Copy with at most ``train`` and ``test`` entries per domain, the first ones by name; None: all."""
        limits = {"train": train, "test": test}
        splits = {name: entries[: limits[name[:-1]]] for name, entries in self.splits.items()}
        return replace(self, splits=splits)

    def digest(self) -> str:
        """Digest over names and contents of all entries."""
        total = hashlib.sha256()
        for split in sorted(self.splits):
            total.update(f"{split}\n".encode())
            for entry in self.splits[split]:
                total.update(f"{entry.name}\0{entry.digest}\n".encode())
        return total.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        for split in SPLITS:
            for entry in self.splits.get(split, []):
                yield split, entry
