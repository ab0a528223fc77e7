"""What every kind of source comes down to: named entries per split, each read by any process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pipeline import storage

Progress = Callable[[dict[str, Any]], None]
"""Told how far something has come: ``done``, ``total``, ``message``; see :mod:`pipeline.progress`."""
SPLITS = ("trainA", "trainB", "testA", "testB")


class Readable(Protocol):
    """Where the bytes of one file come from; picklable, so that worker processes can read it."""

    def read(self) -> bytes:
        """The whole file; FileNotFoundError or OSError when it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    path: str

    def read(self) -> bytes:
        return Path(self.path).read_bytes()


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in object storage; ``md5``: of its contents, where the storage knows it."""

    uri: str
    md5: str | None = None

    def read(self) -> bytes:
        return storage.read_bytes(self.uri)


@dataclass(frozen=True, slots=True)
class Carried:
    """A file's contents, or why there are none, on their way to another machine."""

    data: bytes
    failed: tuple[int | None, str | None] | None = None

    def read(self) -> bytes:
        if self.failed is not None:
            raise OSError(*self.failed)
        return self.data


def carried(entry: Entry) -> Entry:
    """The entry with what lies on this machine's disk inside, so that any machine can read it."""
    mask = _carried(entry.mask) if entry.mask is not None else None
    return replace(entry, image=_carried(entry.image), mask=mask)


def _carried(file: Readable) -> Readable:
    if not isinstance(file, LocalFile):
        return file
    try:
        return Carried(file.read())
    except OSError as error:
        return Carried(b"", (error.errno, error.strerror))


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
        resources: temporary folders, gone when the source is closed.
    """

    description: str
    splits: dict[str, list[Entry]]
    names: dict[str, str] = field(default_factory=lambda: {"a": "A", "b": "B"})
    remote: bool = False
    resources: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.resources.close()

    def limited(self, train: int | None, test: int | None) -> Source:
        """The same source with the first entries by name only."""
        limits = {"train": train, "test": test}
        splits = {name: entries[: limits[name[:-1]]] for name, entries in self.splits.items()}
        return Source(self.description, splits, self.names, self.remote, self.resources)

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
