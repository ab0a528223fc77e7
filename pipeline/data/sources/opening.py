"""Opening of ``data.source`` as a :class:`~pipeline.data.sources.source.Source`, by its kind."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from PIL import Image

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.config import BuiltinConfig, DataConfig
from pipeline.config import fingerprint as digest_of
from pipeline.data.sources import builtin, public
from pipeline.data.sources.archives import is_archive, open_archive
from pipeline.data.sources.download import is_url
from pipeline.data.sources.folders import (
    TEST,
    TRAIN,
    beside,
    holds_domains,
    no_folder,
    open_folder,
    open_two_folders,
)
from pipeline.data.sources.source import Entry, Progress, Readable, Source
from pipeline.data.sources.tables import (
    is_csv,
    is_parquet,
    open_csv,
    open_parquet,
    open_shards,
    shards_of,
)

_OF_SHARDS = {"data", *TRAIN, *TEST}
"""Folders in which Hugging Face keeps Parquet files."""
_NO_FILE = "{} is not the address of a zip, tar, Parquet or CSV file; give one in data.source"


def open_source(config: DataConfig, downloads: Path, report: Progress = lambda event: None) -> Source:
    """List the images of a source with identifiers of their contents; use the result as a context manager.

    Args:
        downloads: folder that keeps files downloaded over http(s).
        report: receives progress events of a long list.

    Raises:
        BadInput: there is nothing there, or it is not laid out as images of two domains.
        RunFailed: the storage that holds it does not answer.
    """
    try:
        source = kind_of(config.source).open(config, downloads, report)
    except RunFailed as error:
        # not a temporary outage: a local file without read permission
        if isinstance(error.__cause__, PermissionError) and not storage.is_remote(config.source):
            raise BadInput(str(error)) from None
        raise
    try:
        _check(source, config.source)
        _check_masks(source, config)
    except BaseException:
        source.resources.close()
        raise
    return source.limited(config.limit, config.test_limit)


def find(config: DataConfig) -> None:
    """Check that the source exists, without reading it or contacting the hosts of http(s) addresses.

    Raises:
        BadInput: there is nothing there.
        RunFailed: the storage that holds it does not answer.
    """
    kind_of(config.source).check(config.source)


def absolute(text: str) -> str:
    """``data.source`` with absolute local paths; anything else is unchanged."""
    return kind_of(text).absolute(text)


@dataclass(frozen=True)
class SourceKind:
    """One kind of source.

    Attributes:
        matches: whether a value of ``data.source`` is of this kind; the first matching kind is used.
        check: raises BadInput if the source does not exist.
        open: opens the source, given the configuration, the folder for downloads and a progress callback.
        absolute: the text as it is found from any working directory.
    """

    matches: Callable[[str], bool]
    check: Callable[[str], None]
    open: Callable[[DataConfig, Path, Progress], Source]
    absolute: Callable[[str], str]


def kind_of(text: str) -> SourceKind:
    """The first kind in :data:`KINDS` that matches; a folder is one whatever its suffix."""
    if text != "builtin" and not storage.is_remote(text) and storage.local_path(text).is_dir():
        return KINDS[-1]
    return next(kind for kind in KINDS if kind.matches(text))


def _two_of(text: str, files: bool) -> bool:
    parts = _two(text)
    return bool(parts) and all(map(is_parquet, parts)) == files


def _check_parts(text: str, files: bool) -> None:
    for part in _two(text) or [text]:
        if is_url(part):
            if not files:
                raise BadInput(_NO_FILE.format(part))
        elif storage.is_remote(part):
            if not storage.exists(part):
                raise BadInput(f"there is nothing at {part}; correct data.source")
        elif files and not storage.local_path(part).is_file():
            raise BadInput(f"there is no file {part}; correct data.source")
        elif not files and not storage.local_path(part).is_dir():
            raise no_folder(part)


def _check_files(text: str) -> None:
    _check_parts(text, files=True)


def _check_folders(text: str) -> None:
    _check_parts(text, files=False)


def _nothing_to_check(text: str) -> None:
    """Do nothing: the source is downloaded or generated."""


def _open_two(config: DataConfig) -> Source:
    parts = _two(config.source)
    for part in parts:
        if not storage.is_remote(part) and not storage.local_path(part).is_dir():
            raise BadInput(f"there is no folder {part}; give two folders in data.source as 'A,B'")
    return open_two_folders(parts[0], parts[1], config.masks, config.test_fraction)


def _open_one(config: DataConfig, downloads: Path) -> Source:
    """Open a folder of images, or of Parquet files if it contains no images."""
    text = config.source
    if is_url(text):
        raise BadInput(_NO_FILE.format(text))
    if storage.is_remote(text) or storage.local_path(text).is_dir():
        children = storage.list_(text)
        inside = [child for child in children if storage.name(child).lower() in _OF_SHARDS]
        shards = shards_of([*children, *(file for child in inside for file in storage.list_(child))])
        if shards and not holds_domains(children):
            source = open_shards(text, shards, config.test_fraction, downloads)
            source.left_out += beside(text, shards)
            return source
    return open_folder(text, config.masks, config.test_fraction)


def _as_it_is(text: str) -> str:
    return text


def _absolute_parts(text: str) -> str:
    return ",".join(
        part if storage.is_remote(part) else str(storage.local_path(part)) for part in _two(text) or [text]
    )


KINDS = (
    SourceKind(
        lambda text: text == "builtin",
        _nothing_to_check,
        lambda config, downloads, report: _builtin(config.builtin),
        _as_it_is,
    ),
    SourceKind(
        lambda text: (is_parquet(text) and not _two(text)) or _two_of(text, files=True),
        _check_files,
        lambda config, downloads, report: open_parquet(
            _two(config.source) or [config.source], config.test_fraction, downloads
        ),
        _absolute_parts,
    ),
    SourceKind(
        lambda text: _two_of(text, files=False),
        _check_folders,
        lambda config, downloads, report: _open_two(config),
        _absolute_parts,
    ),
    SourceKind(
        is_csv,
        _check_files,
        lambda config, downloads, report: open_csv(config.source, config.test_fraction, downloads, report),
        _absolute_parts,
    ),
    SourceKind(
        is_archive,
        _check_files,
        lambda config, downloads, report: open_archive(
            config.source, config.masks, config.test_fraction, downloads
        ),
        _absolute_parts,
    ),
    SourceKind(
        lambda text: _public_name(text) is not None,
        _nothing_to_check,
        lambda config, downloads, report: _public(
            str(_public_name(config.source)), config.masks, config.test_fraction, downloads
        ),
        _as_it_is,
    ),
    SourceKind(
        lambda text: True,
        _check_folders,
        lambda config, downloads, report: _open_one(config, downloads),
        _absolute_parts,
    ),
)
"""All kinds of sources, in order of precedence; used by opening, the doctor and lineage."""


def _public_name(text: str) -> str | None:
    """Full name of a public data set, or None if there is none or a local file of this name exists."""
    known = public.canonical(text)
    return None if known and storage.local_path(text).exists() else known


def _two(text: str) -> list[str]:
    """The two parts of 'A,B'; empty if the value names a single source."""
    if "," not in text or (not storage.is_remote(text) and storage.local_path(text).exists()):
        return []
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise BadInput(f"data.source '{text}' must name two folders or files as 'path/to/A,path/to/B'")
    return parts


def _public(name: str, masks: str | None, fraction: float, downloads: Path) -> Source:
    address = public.url(name)
    try:
        source = open_archive(address, masks, fraction, downloads)
    except BadInput as error:
        raise BadInput(
            f"the public set '{name}' could not be fetched: {error}; data.source may also be a folder of it"
        ) from None
    source.names = public.domain_names(name) or source.names
    return source


def _check(source: Source, text: str) -> None:
    for split in ("trainA", "trainB", "testA", "testB"):
        if not source.splits.get(split):
            kind = "training" if split.startswith("train") else "test"
            raise BadInput(f"{text} has no {kind} images of domain {split[-1]} ({split} is empty)")


def _check_masks(source: Source, config: DataConfig) -> None:
    if config.masks and not any(entry.mask for entries in source.splits.values() for entry in entries):
        raise BadInput(
            f"no mask in {config.masks} belongs to an image of {config.source}: folders of images need masks of the "
            "same names in trainA and trainB (or A and B), tables name theirs in a column; correct or unset data.masks"
        )


@dataclass(frozen=True, slots=True)
class _Generated:
    """Handle of an image of the built-in set, or of its mask, drawn when it is read."""

    seed: int
    split: str
    domain: str
    index: int
    size: int
    mask: bool
    remote: ClassVar[bool] = False

    def known_md5(self) -> str | None:
        return None

    def carried(self) -> Readable:
        return self

    def read(self) -> bytes:
        picture = builtin.draw(self.seed, self.split, self.domain, self.index, self.size)
        buffer = io.BytesIO()
        Image.fromarray(picture.mask if self.mask else picture.image).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _builtin(config: BuiltinConfig) -> Source:
    splits: dict[str, list[Entry]] = {}
    for split, count in (("train", config.train), ("test", config.test)):
        for domain in "ab":
            splits[split + domain.upper()] = [
                Entry(
                    name=f"{builtin.DOMAINS[domain]}-{index:06d}.png",
                    image=_Generated(config.seed, split, domain, index, config.size, False),
                    mask=_Generated(config.seed, split, domain, index, config.size, True),
                    digest=digest_of([builtin.VERSION, config.seed, split, domain, index, config.size], 64),
                )
                for index in range(count)
            ]
    return Source("builtin", splits, dict(builtin.DOMAINS))
