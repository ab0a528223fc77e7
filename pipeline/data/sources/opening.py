"""Opens whatever ``data.source`` names as a :class:`~pipeline.data.sources.source.Source`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.config import BuiltinConfig, DataConfig
from pipeline.config import fingerprint as digest_of
from pipeline.data.sources import builtin, public
from pipeline.data.sources.archives import is_archive, open_archive
from pipeline.data.sources.download import is_url
from pipeline.data.sources.folders import no_folder, open_folder, open_two_folders
from pipeline.data.sources.source import Entry, Progress, Source
from pipeline.data.sources.tables import is_csv, is_parquet, open_csv, open_parquet

_NO_FILE = "{} is not the address of a zip, tar, Parquet or CSV file; give one in data.source"


def open_source(config: DataConfig, downloads: Path, report: Progress = lambda event: None) -> Source:
    """Lists the images of a source and identifies their contents; use it as a context manager.

    Args:
        downloads: folder where files from http(s) are kept.
        report: told about the progress of a long list.

    Raises:
        BadInput: there is nothing there, or it is not laid out as images of two domains.
        RunFailed: the storage that holds it does not answer.
    """
    source = _open(config, downloads, report)
    try:
        _check(source, config.source)
        _check_masks(source, config)
    except BaseException:
        source.resources.close()
        raise
    return source.limited(config.limit, config.test_limit)


def find(config: DataConfig) -> None:
    """Looks for what :func:`open_source` would open, without reading it or asking the hosts of http(s) addresses.

    Raises:
        BadInput: there is nothing there.
        RunFailed: the storage that holds it does not answer.
    """
    text = config.source
    if text == "builtin" or _public_name(text):
        return
    parts = _two(text)
    files = all(map(is_parquet, parts)) if parts else is_parquet(text) or is_csv(text) or is_archive(text)
    for part in parts or [text]:
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


def _open(config: DataConfig, downloads: Path, report: Progress) -> Source:
    text, fraction = config.source, config.test_fraction
    if text == "builtin":
        return _builtin(config.builtin)
    parts = _two(text)
    tables = parts or [text]
    if all(is_parquet(part) for part in tables):
        return open_parquet(tables, fraction, downloads)
    if parts:
        for part in parts:
            if not storage.is_remote(part) and not storage.local_path(part).is_dir():
                raise BadInput(f"there is no folder {part}; give two folders in data.source as 'A,B'")
        return open_two_folders(parts[0], parts[1], config.masks, fraction)
    if is_csv(text):
        return open_csv(text, fraction, downloads, report)
    if is_archive(text):
        return open_archive(text, config.masks, fraction, downloads)
    if is_url(text):
        raise BadInput(_NO_FILE.format(text))
    if known := _public_name(text):
        return _public(known, config.masks, fraction, downloads)
    return open_folder(text, config.masks, fraction)


def _public_name(text: str) -> str | None:
    """The public set's full name, unless there is something of this name here."""
    known = public.canonical(text)
    return None if known and storage.local_path(text).exists() else known


def _two(text: str) -> list[str]:
    """The two parts of 'A,B'; nothing when the text names one thing."""
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
    """A picture of the built-in set, or its mask, drawn when it is read."""

    seed: int
    split: str
    domain: str
    index: int
    size: int
    mask: bool

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
