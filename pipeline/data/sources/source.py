"""What every kind of source comes down to: named entries per split, each read by any process."""

from __future__ import annotations

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
"""Told how far something has come: ``done``, ``total``, ``message``; see :mod:`pipeline.progress`."""
SPLITS = ("trainA", "trainB", "testA", "testB")


class Readable(Protocol):
    """Where the bytes of one file come from; picklable, so that worker processes can read it."""

    remote: ClassVar[bool]
    """Whether reading waits for a network."""

    def read(self) -> bytes:
        """The whole file; FileNotFoundError or OSError when it cannot be read."""
        ...

    def known_md5(self) -> str | None:
        """Of the contents, where it is known without reading them."""
        ...

    def carried(self) -> Readable:
        """The same file, readable from any machine."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    path: str
    remote: ClassVar[bool] = False

    def read(self) -> bytes:
        check_regular(self.path)
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
    """A file in object storage; ``md5``: of its contents, where the storage knows it."""

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
    """A file that cannot be read; it is quarantined with this reason."""

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
    """A file's contents, or why there are none, on their way to another machine."""

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
    """Refuses what would be waited for or read for ever: pipes, sockets, devices.

    Raises:
        OSError: it is none of the files that images are kept in, or not there.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL in the name
        raise OSError(str(error)) from None
    if not stat.S_ISREG(mode):
        raise OSError("is a folder" if stat.S_ISDIR(mode) else "is a pipe, socket or device, not a file")


def carried(entry: Entry) -> Entry:
    """The entry with what lies on this machine's disk inside, so that any machine can read it."""
    mask = entry.mask.carried() if entry.mask is not None else None
    return replace(entry, image=entry.image.carried(), mask=mask)


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a source.

    Attributes:
        name: unique within its split; what people find it by.
        image, mask: where their bytes are; ``mask`` is None where there is none.
        digest: identifies the contents of both without decoding them; equal contents may have different
            digests (an object's ETag), different contents never the same one.
    """

    name: str
    image: Readable
    mask: Readable | None
    digest: str

    @property
    def key(self) -> bytes:
        """Decides the entry's shard and its place there: as good as random, but always the same."""
        return hashlib.sha256(self.name.encode()).digest()


@dataclass
class Source:
    """An opened source.

    Attributes:
        description: what was opened, for the manifest.
        splits: entries by name, sorted, of ``trainA``, ``trainB``, ``testA`` and ``testB``.
        names: of the two domains, as far as the source knows them.
        remote: reading one entry waits for a network.
        left_out: names and reasons of files that are no images of a split, such as masks that fit no image.
        resources: temporary folders, gone when the source is closed.
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
        """The same source with the first entries by name only."""
        limits = {"train": train, "test": test}
        splits = {name: entries[: limits[name[:-1]]] for name, entries in self.splits.items()}
        return replace(self, splits=splits)

    def digest(self) -> str:
        """Changes when, and only when, an entry is added, removed, renamed or gets other contents."""
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
