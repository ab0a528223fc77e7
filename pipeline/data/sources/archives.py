"""Zip and tar archives of images: unpacked into a temporary folder, after checking every member's path."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import is_litter
from pipeline.data.sources import download
from pipeline.data.sources.folders import beside, open_folder
from pipeline.data.sources.source import Source
from pipeline.data.sources.tar_headers import TarHeaders

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz")
_LINK = "a symbolic link, which is not followed out of an archive"
_LONGEST_NAME = 255
_ENCRYPTED = 1
_OF_THE_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ}
_MAX_EXPANSION = 100
_MAX_EXPANSION_FROM = 1 << 30


def is_archive(uri: str) -> bool:
    return download.without_query(uri).lower().endswith(_SUFFIXES)


def open_archive(uri: str, masks: str | None, test_fraction: float, downloads: Path) -> Source:
    """Open an archive (local, remote or a URL) as a folder source; a single enclosing folder is skipped.

    Raises:
        BadInput: it is missing or damaged, or a member's path leads outside the folder.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agit-unpack-")))
        if download.is_url(uri):
            archive = download.fetch(uri, downloads)
        elif storage.is_remote(uri):
            archive = folder / storage.name(uri)
            try:
                storage.download_file(uri, archive)
            except FileNotFoundError:
                raise BadInput(f"there is no file {uri}; correct data.source") from None
        else:
            archive = storage.local_path(uri)
        root = folder / "images"
        unpacked = unpack(archive, root, called=uri)
        inner = str(_inner(root))
        inside = {path: why for path, why in unpacked.lost.items() if path.startswith(f"{inner}/")}
        try:
            source = open_folder(inner, masks, test_fraction, inside)
        except BadInput as error:  # name the archive instead of the temporary folder
            text = str(error).replace(inner, uri)
            if unpacked.damage:
                part, why = unpacked.damage[0]
                text = f"{uri} is damaged ({part} {why}), and what can be read of it is no data set: {text}"
            raise BadInput(text) from None
        source.description = uri
        source.left_out += [*unpacked.left_out, *beside(str(root), [inner])]
        source.left_out += [
            (storage.as_text(path[len(str(root)) + 1 :]), f"cannot be read: {why}")
            for path, why in unpacked.lost.items()
            if path not in inside
        ]
        source.resources = stack.pop_all()
        return source


@dataclass
class Unpacked:
    """Outcome of unpacking an archive.

    Attributes:
        left_out: names and reasons of members that are not files, or were replaced by later ones of the same name.
        lost: target paths and reasons of members that are damaged, encrypted or cannot be stored.
        written: target paths of the unpacked members, with their names in the archive.
        damage: names and reasons of the parts of a tar that cannot be read; also in ``left_out``.
    """

    left_out: list[tuple[str, str]] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    damage: list[tuple[str, str]] = field(default_factory=list)

    def write(self, target: Path, name: str, source: IO[bytes], size: int | None) -> None:
        """Write one member, or record it as lost if its name is invalid on this file system.

        Raises:
            OSError: the disk failed.
            _Short: the member has fewer bytes than ``size``.
        """
        if target in self.written:
            self.left_out.append(
                (self.written.pop(target), "a later member of the archive has the same name")
            )
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            self.lose(target, str(error.strerror))
            return
        if size is not None and target.stat().st_size != size:
            raise _Short(f"{target.name} is incomplete")
        self.written[target] = name

    def lose(self, target: Path, reason: str) -> None:
        """Record a member as lost; its folder is created nevertheless."""
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target not in self.written:
                target.unlink(missing_ok=True)
        self.lost[str(target)] = reason


class _Short(Exception):
    """A member has fewer bytes than declared in its header."""


_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    _Short,
)
"""Exceptions from reading a damaged member of a zip."""


def unpack(archive: Path, folder: Path, called: str) -> Unpacked:
    """Extract the files of a zip or tar; a hard link to a file becomes a copy.

    Raises:
        BadInput: it is missing, damaged as a whole or expands too much, or a member's path leads outside the folder.
    """
    if not archive.is_file():
        raise BadInput(f"there is no file {called}; correct data.source")
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, folder, called)
        return _unpack_tar(archive, folder, called)
    except (*_DAMAGED, tarfile.TarError, OSError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, tarfile.ReadError) and _begins_as_zip(archive):
            text = "the end, where a zip lists its contents, is missing"
        elif text.startswith("file could not be opened"):  # tarfile lists every compression that it has tried
            reasons = re.findall(r"ReadError\('(?!not an? )([^']*)", text)
            text = reasons[0] if reasons else "unknown compression"
        raise BadInput(
            f"{called} cannot be unpacked ({text}); it is damaged or not a zip or tar file"
        ) from None


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _unpack_zip(archive: Path, folder: Path, called: str) -> Unpacked:
    unpacked = Unpacked()
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        _check_size(sum(member.file_size for member in members), archive, called)
        targets = [_target(folder, member.filename, called) for member in members]
        for member, target in zip(members, targets, strict=True):
            if stat.S_ISLNK(member.external_attr >> 16):
                unpacked.left_out.append((member.filename, _LINK))
            elif member.flag_bits & _ENCRYPTED:
                unpacked.lose(target, "encrypted; unpack the archive with its password")
            else:
                try:
                    with file.open(member) as source:
                        unpacked.write(target, member.filename, source, member.file_size)
                except _DAMAGED as error:
                    text = " ".join(str(error).split()) or type(error).__name__
                    unpacked.lose(target, text)
    if unpacked.lost and not unpacked.written:
        if all(member.flag_bits & _ENCRYPTED for member in members):
            raise BadInput(f"{called} is encrypted; unpack it with its password and give the folder")
        raise zipfile.BadZipFile(f"no member can be read: {next(iter(unpacked.lost.values()))}")
    return unpacked


def _unpack_tar(archive: Path, folder: Path, called: str) -> Unpacked:
    """Extract a tar up to where it is damaged, and name what follows; a damaged header costs its member alone."""
    unpacked, headers = Unpacked(), TarHeaders()
    budget = max(_MAX_EXPANSION_FROM, archive.stat().st_size * _MAX_EXPANSION)
    # ignore_zeros: look for the next header after a damaged one, and read archives that were appended to another
    with tarfile.open(archive, tarinfo=headers.member(), ignore_zeros=True) as file:
        writing: Path | None = None
        try:
            for member in _regular(file):
                budget -= member.size
                if budget < 0:
                    raise BadInput(
                        f"{called} would unpack to more than {_MAX_EXPANSION} times its size; refused"
                    )
                target = _target(folder, member.name, called)
                if not (member.isreg() or member.islnk()):
                    unpacked.left_out.append((member.name, _LINK if member.issym() else "a device or pipe"))
                    continue
                try:
                    source = file.extractfile(member) if _reaches_file(file, member) else None
                except KeyError:
                    source = None
                if source is None:
                    unpacked.left_out.append((member.name, "a link to what the archive does not hold"))
                    continue
                writing = target
                unpacked.write(target, member.name, source, member.size if member.isreg() else None)
                writing = None
                budget -= target.stat().st_size if member.islnk() and target.is_file() else 0
            # read to the end: the compression's checksum comes last
            while file.fileobj is not None and file.fileobj.read(1 << 20):
                pass
        except (*_DAMAGED, tarfile.TarError, OSError) as error:
            if not unpacked.written or getattr(error, "errno", None):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            if writing is not None:
                unpacked.lose(writing, reason)
            headers.damage.append(("the rest of the archive", f"cannot be read: {reason}"))
    if headers.damage and not unpacked.written:
        raise tarfile.ReadError(" ".join(headers.damage[0]))
    unpacked.damage = headers.damage
    unpacked.left_out += headers.damage
    return unpacked


def _regular(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All members except folders; hard links are included, as which GNU tar stores further names of a file."""
    return (member for member in file if not member.isdir())


def _reaches_file(file: tarfile.TarFile, link: tarfile.TarInfo) -> bool:
    """Whether a link leads to a file in the archive, within a few steps."""
    member = link
    for _ in range(8):
        if member.isreg():
            return True
        try:
            member = file._find_link_target(member)  # type: ignore[attr-defined]
        except KeyError:
            return False
    return False


def _target(folder: Path, name: str, called: str) -> Path:
    path = PurePosixPath(name.replace("\\", "/"))
    drive = path.parts and re.fullmatch("[A-Za-z]:", path.parts[0])
    if path.is_absolute() or ".." in path.parts or drive:
        raise BadInput(f"{called} holds '{name}', which would be written outside its folder; refused")
    return folder.joinpath(*map(_short, path.parts))


def _short(part: str) -> str:
    """Shorten a name to the limit of file systems (255 bytes), keeping it unique by a hash."""
    data = os.fsencode(part)
    if len(data) <= _LONGEST_NAME:
        return part
    suffix = PurePosixPath(part).suffix[:16]
    start = data[: _LONGEST_NAME // 2].decode(errors="ignore")
    return f"{start}~{hashlib.sha256(data).hexdigest()[:12]}{suffix}"


def _check_size(total: int, archive: Path, called: str) -> None:
    if total > max(_MAX_EXPANSION_FROM, archive.stat().st_size * _MAX_EXPANSION):
        raise BadInput(f"{called} would unpack to more than {_MAX_EXPANSION} times its size; refused")


def _inner(folder: Path) -> Path:
    """Root of the data set: the only folder that contains ``trainA``; else the first one with several subfolders."""
    sets = []
    for place, inside, _ in os.walk(folder):
        if any(name.lower() == "traina" for name in inside):
            sets.append(Path(place))
            inside.clear()
    if len(sets) == 1:
        return sets[0]
    while True:
        below = [path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name)]
        if len(below) != 1 or below[0].name.lower().startswith("train"):
            return folder
        folder = below[0]
