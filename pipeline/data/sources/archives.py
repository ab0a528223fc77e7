"""Zip and tar files of images: unpacked into a temporary folder, after every name has been looked at."""

from __future__ import annotations

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
from pathlib import Path, PurePosixPath
from typing import IO, Self

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import is_litter
from pipeline.data.sources import download
from pipeline.data.sources.folders import open_folder
from pipeline.data.sources.source import Source

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ABOUT_THE_NEXT = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}
_LONGEST_HEADER = 1 << 20
_LINK = "a symbolic link, which is not followed out of an archive"
_LONGEST_NAME = 255
_MAX_EXPANSION = 100
_MAX_EXPANSION_FROM = 1 << 30


def is_archive(uri: str) -> bool:
    return download.without_query(uri).lower().endswith(_SUFFIXES)


def open_archive(uri: str, masks: str | None, test_fraction: float, downloads: Path) -> Source:
    """The folder inside an archive, wherever it is; a single folder around everything is fine.

    Raises:
        BadInput: missing, damaged, or with members that would land outside the folder.
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
        left_out = unpack(archive, folder / "images", called=uri)
        inner = str(_inner(folder / "images"))
        try:
            source = open_folder(inner, masks, test_fraction)
        except BadInput as error:  # the temporary folder says nothing to anybody
            raise BadInput(str(error).replace(inner, uri)) from None
        source.description = uri
        source.left_out += left_out
        source.resources = stack.pop_all()
        return source


def unpack(archive: Path, folder: Path, called: str) -> list[tuple[str, str]]:
    """Extracts the files of a zip or tar, and a file for each hard link to one; returns what it leaves out, and why.

    Raises:
        BadInput: missing, damaged, absurdly large, or a member's path leaves the folder.
    """
    if not archive.is_file():
        raise BadInput(f"there is no file {called}; correct data.source")
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, folder, called)
        return _unpack_tar(archive, folder, called)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        text = " ".join(str(error).split())
        raise BadInput(
            f"{called} cannot be unpacked ({text}); it is damaged or not a zip or tar file"
        ) from None


def _unpack_zip(archive: Path, folder: Path, called: str) -> list[tuple[str, str]]:
    left_out: list[tuple[str, str]] = []
    with zipfile.ZipFile(archive) as file:
        members = [member for member in file.infolist() if not member.is_dir()]
        _check_size(sum(member.file_size for member in members), archive, called)
        targets = [_target(folder, member.filename, called) for member in members]
        for member, target in zip(members, targets, strict=True):
            if stat.S_ISLNK(member.external_attr >> 16):
                left_out.append((member.filename, _LINK))
                continue
            with file.open(member) as source:
                _copy(source, target, member.file_size, called)
    return left_out


def _unpack_tar(archive: Path, folder: Path, called: str) -> list[tuple[str, str]]:
    left_out: list[tuple[str, str]] = []
    budget = max(_MAX_EXPANSION_FROM, archive.stat().st_size * _MAX_EXPANSION)
    with tarfile.open(archive, tarinfo=_Member) as file:
        for member in _regular(file):
            budget -= member.size
            if budget < 0:
                raise BadInput(f"{called} would unpack to more than {_MAX_EXPANSION} times its size; refused")
            target = _target(folder, member.name, called)
            if not (member.isreg() or member.islnk()):
                left_out.append((member.name, _LINK if member.issym() else "a device or pipe"))
                continue
            try:
                source = file.extractfile(member) if _reaches_file(file, member) else None
            except KeyError:
                source = None
            if source is None:
                left_out.append((member.name, "a link to what the archive does not hold"))
            else:
                _copy(source, target, member.size if member.isreg() else None, called)
                budget -= 0 if member.isreg() else target.stat().st_size
        # what is compressed has its checksum at the very end
        while file.fileobj is not None and file.fileobj.read(1 << 20):
            pass
    return left_out


class _Member(tarfile.TarInfo):
    """To ``tarfile`` any header that it cannot read is the end of the archive; to us only the mark of it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not buf.strip(b"\0"):
                raise
            raise tarfile.ReadError(str(error)) from None
        # which ``tarfile`` reads into memory as it is
        if member.type in _ABOUT_THE_NEXT and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a name or header of {member.size} bytes")
        return member


def _regular(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All but folders; GNU tar stores the second name of a file as a link to the first."""
    return (member for member in file if not member.isdir())


def _reaches_file(file: tarfile.TarFile, link: tarfile.TarInfo) -> bool:
    """Whether a link ends at a file of the archive, in a few steps."""
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
    """A name that file systems take, which end at 255 bytes."""
    data = os.fsencode(part)
    if len(data) <= _LONGEST_NAME:
        return part
    suffix = PurePosixPath(part).suffix[:16]
    start = data[: _LONGEST_NAME // 2].decode(errors="ignore")
    return f"{start}~{hashlib.sha256(data).hexdigest()[:12]}{suffix}"


def _copy(source: IO[bytes], target: Path, size: int | None, called: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    if size is not None and target.stat().st_size != size:
        raise BadInput(f"{called} is truncated: {target.name} is incomplete")


def _check_size(total: int, archive: Path, called: str) -> None:
    if total > max(_MAX_EXPANSION_FROM, archive.stat().st_size * _MAX_EXPANSION):
        raise BadInput(f"{called} would unpack to more than {_MAX_EXPANSION} times its size; refused")


def _inner(folder: Path) -> Path:
    """Below the folders that hold one other folder and, at most, a README and its like beside it."""
    while True:
        inside = [path for path in folder.iterdir() if path.is_dir() and not is_litter(path.name)]
        if len(inside) != 1 or inside[0].name.lower().startswith("train"):
            return folder
        folder = inside[0]
