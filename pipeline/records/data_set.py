"""The manifest of a prepared data set."""

from __future__ import annotations

from pydantic import Field

from pipeline.records.file import Record, Tree


class Shard(Record):
    """A file of a data set: a shard, or the index of a split."""

    path: str
    rows: int = 0
    bytes: int
    sha256: str


class Split(Record):
    """A split of a data set; ``quarantined`` and ``notes`` have a ``name`` and a ``reason`` each."""

    rows: int = 0
    files_in: int | None = None
    quarantined: list[Tree] = Field(default_factory=list)
    notes: list[Tree] = Field(default_factory=list)
    masks: int = 0
    shards: list[Shard] = Field(default_factory=list)
    index: Shard | None = None


class NamedDomain(Record):
    name: str


class Duplicates(Record):
    """Groups of duplicates as lists of ``split/name``: the first of them, and how many there are."""

    policy: str = "report"
    groups: list[list[str]] = Field(default_factory=list)
    exact_groups: int = 0
    near: list[list[str]] = Field(default_factory=list)
    near_groups: int = 0


class Manifest(Record):
    """Manifest of a prepared data set; see :mod:`pipeline.data.format.manifest`.

    Attributes:
        leaks: pairs of a training and a test image, equal or (``near_leaks``) alike.
        left_out: files that belong to no split, with reasons.
        settings: those that shaped the shards.
        kept: number of images taken over from an earlier data set.
    """

    format: int | None = None
    name: str = ""
    fingerprint: str = ""
    created: str = ""
    source: str = ""
    image_size: int = 0
    load_size: int = 0
    domains: dict[str, NamedDomain] = Field(default_factory=dict)
    splits: dict[str, Split] = Field(default_factory=dict)
    duplicates: Duplicates = Duplicates()
    leaks: list[list[str]] = Field(default_factory=list)
    near_leaks: list[list[str]] = Field(default_factory=list)
    left_out: list[Tree] = Field(default_factory=list)
    settings: Tree = Field(default_factory=dict)
    kept: int = 0
    totals: dict[str, int] = Field(default_factory=dict)
    checksum: str | None = None

    def domain_names(self) -> tuple[str, str]:
        """Names of the two domains; A and B if unknown."""
        a, b = (self.domains[key].name if key in self.domains else key.upper() for key in "ab")
        return a, b
