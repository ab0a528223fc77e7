"""Everything the pipeline keeps, behind URIs: a local folder and ``s3://bucket/prefix`` are the same code.

S3 is configured by the usual environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...). Two rules hold
everywhere: no reader ever sees half a file (a local file is renamed into place, an object appears whole), and
a failing network is told in one sentence, :class:`BadInput` before the work starts (:func:`check_reachable`)
and :class:`RunFailed` in the middle of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem

from agit_core.errors import BadInput, RunFailed
from pipeline.local_files import replacing, sweep_temporary

# Object stores other than Amazon's refuse the checksum trailers that newer SDKs send by default.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

_TRANSFERS = 8
_CONNECT_SECONDS = 5
_READ_SECONDS = 30
_S3FS_TRIES = 2
"""Around the client's own three: a store that accepts connections and stays silent is given up after three minutes."""
_PROBE_BYTES = 1 << 16
_REMEDIES = {
    errno.ENOSPC: "the disk is full: make room or give another storage",
    errno.EDQUOT: "the quota is used up: make room or give another storage",
    errno.EROFS: "the file system is read-only: mount it writable or give another storage",
    errno.EACCES: "this user may not: correct the permissions or give another storage",
    errno.EPERM: "this user may not: correct the permissions or give another storage",
    errno.ENAMETOOLONG: "the name is too long for this file system: give a storage with a shorter path",
}
T = TypeVar("T")


def is_remote(uri: str) -> bool:
    """True for object storage, False for a folder of this machine."""
    return "://" in uri and not uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    """``join("s3://bucket/a", "b", "c")`` is ``s3://bucket/a/b/c``; local paths likewise."""
    root = uri.rstrip("/") if uri.strip("/") else "/"
    inner = [part.strip("/") for part in parts]
    return "/".join([root if root != "/" else "", *(part for part in inner if part)]) or "/"


def name(uri: str) -> str:
    """The last part of a URI."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def as_text(path: str) -> str:
    """A local file's path as a text that can be stored: bytes of older encodings, such as Latin-1, as ``\\xfc``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path inside it.

    Nothing is cached between calls that another process may change, and the credentials are read from the
    environment each time, so a renewed key is picked up.
    """
    if uri.startswith("s3://"):
        options = {
            "key": os.environ.get("AWS_ACCESS_KEY_ID"),
            "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
            "token": os.environ.get("AWS_SESSION_TOKEN"),
            "endpoint_url": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        }
        fs = fsspec.filesystem(
            "s3",
            **{key: value for key, value in options.items() if value},
            session=_session(),
            use_listings_cache=False,
            default_fill_cache=False,
            config_kwargs={
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
                "retries": {"max_attempts": 3, "mode": "standard"},
                "max_pool_connections": 4 * _TRANSFERS,
            },
        )
        fs.retries = _S3FS_TRIES
        return fs, uri.removeprefix("s3://").rstrip("/")
    if is_remote(uri):
        scheme = uri.split("://", 1)[0]
        raise BadInput(f"storage '{uri}' has the scheme '{scheme}'; use a local folder or s3://bucket/prefix")
    return fsspec.filesystem("file"), str(Path(uri.removeprefix("file://")).expanduser().absolute())


@functools.cache
def _session() -> Any:
    """The client's session, without "Expect: 100-continue": it would wait for that answer without any limit."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    class Session(AioSession):
        def __reduce__(self) -> Any:  # a file system that is sent to another process finds that one's
            return _session, ()

    session = Session()
    session.unregister("before-call.s3", add_expect_header)
    return session


def downloads(uri: str) -> Path:
    """Where files from the network are kept: with the storage if that is on this machine, else in ``.agit``."""
    return Path(".agit/downloads") if is_remote(uri) else local_path(uri) / "downloads"


def local_path(uri: str) -> Path:
    """The path of a local URI.

    Raises:
        BadInput: the URI is remote.
    """
    if is_remote(uri):
        raise BadInput(f"'{uri}' is not a local folder")
    return Path(filesystem(uri)[1])


def arrow(uri: str) -> tuple[Any, str]:
    """The same as :func:`filesystem` for libraries that take a ``pyarrow.fs.FileSystem``."""
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    fs, path = filesystem(uri)
    return (PyFileSystem(FSSpecHandler(fs)) if is_remote(uri) else LocalFileSystem()), path


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    with explained(uri, "look up"):
        return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """Whether there is something below it."""
    fs, path = filesystem(uri)
    with explained(uri, "look up"):
        return bool(fs.isdir(path))


def size(uri: str) -> int:
    """Bytes of one file; FileNotFoundError when there is none."""
    fs, path = filesystem(uri)
    with explained(uri, "look up"):
        return int(fs.info(path)["size"])


def read_bytes(uri: str) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: there is none.
        RunFailed: the storage does not answer.
    """
    fs, path = filesystem(uri)
    with explained(uri, "read"):
        return bytes(fs.cat_file(path))


def read_range(uri: str, start: int, length: int) -> bytes:
    """``length`` bytes from ``start`` on: one request.

    Raises:
        FileNotFoundError: there is no such file.
        RunFailed: the storage does not answer.
    """
    fs, path = filesystem(uri)
    with explained(uri, "read"):
        return bytes(fs.cat_file(path, start=start, end=start + length))


def read_text(uri: str) -> str:
    return read_bytes(uri).decode()


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file that appears whole or not at all, replacing what was there."""
    fs, path = filesystem(uri)
    with explained(uri, "write"):
        if is_remote(uri):
            fs.pipe_file(path, data)
            return
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(data)


def write_text(uri: str, text: str) -> None:
    write_bytes(uri, text.encode())


def write_json(uri: str, value: Any) -> None:
    """As :func:`write_bytes`, as indented JSON with a newline at the end."""
    write_bytes(uri, json_bytes(value))


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for: a diverged training has losses that are not numbers."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(value: Any) -> bytes:
    """The content of a file that :func:`write_json` writes; None where JSON has no number (:func:`finite`)."""
    return (json.dumps(finite(value), indent=1, allow_nan=False) + "\n").encode()


def json_line(value: Any) -> str:
    """The same on one line."""
    return json.dumps(finite(value), allow_nan=False) + "\n"


def list_(uri: str, recursive: bool = False) -> list[str]:
    """URIs of the files and folders in a folder, sorted; with ``recursive`` of all files below it.

    A folder that does not exist is an empty one, as object stores have no folders.
    """
    fs, path = filesystem(uri)
    with explained(uri, "list"):
        try:
            if not recursive:
                entries = [item["name"] for item in fs.ls(path, detail=True)]
            elif is_remote(uri):
                entries = fs.find(path)
            else:  # fsspec would leave out what it cannot read
                entries = fs.find(path, on_error=_unless_gone)
        except (FileNotFoundError, NotADirectoryError):
            return []
    root = path.rstrip("/")
    below = (entry.rstrip("/") for entry in entries)
    names = (entry[len(root) + 1 :] for entry in below if entry.startswith(root + "/"))
    # an object's key may hold them, and a copy of it would lie outside the folder that it is copied into
    return sorted(join(uri, name) for name in names if ".." not in name.split("/"))


@dataclass(frozen=True)
class Stored:
    """A file of a storage; ``modified``: Unix time."""

    uri: str
    bytes: int
    modified: float


def details(uri: str) -> list[Stored]:
    """Every file below a folder with its size and time, sorted; none where there is no folder."""
    fs, path = filesystem(uri)
    with explained(uri, "list"):
        try:
            # fsspec would leave out local files that it cannot read
            options = {} if is_remote(uri) else {"on_error": _unless_gone}
            found = fs.find(path, detail=True, **options)
        except (FileNotFoundError, NotADirectoryError):
            return []
    root = path.rstrip("/")
    return [
        Stored(join(uri, name[len(root) + 1 :]), int(info["size"] or 0), _modified(info))
        for name, info in sorted(found.items())
        if name.startswith(root + "/")
    ]


def _modified(info: dict[str, Any]) -> float:
    when = info.get("LastModified")
    return float(info["mtime"]) if when is None else float(when.timestamp())


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def remove(uri: str) -> None:
    """Deletes a file or a folder with all it holds; nothing there is fine."""
    fs, path = filesystem(uri)
    with explained(uri, "remove"), contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def sweep(uri: str) -> None:
    """Removes what writers that were killed have left in a local folder; an object is there whole or not at all."""
    if not is_remote(uri):
        sweep_temporary(local_path(uri))


def copy(uri: str, target: str) -> None:
    """Copies a file within one storage; object stores do it without sending the bytes here and back.

    Raises:
        FileNotFoundError: there is nothing to copy.
    """
    if not is_remote(uri):
        upload_file(local_path(uri), target)
        return
    fs, path = filesystem(uri)
    with explained(uri, "copy"):
        fs.cp_file(path, filesystem(target)[1])


def upload_file(local: str | Path, uri: str) -> None:
    fs, path = filesystem(uri)
    with explained(uri, "write"):
        if is_remote(uri):
            fs.put_file(str(local), path)
            return
        with replacing(Path(path)) as temporary:
            shutil.copyfile(local, temporary)


def download_file(uri: str, local: str | Path) -> None:
    fs, path = filesystem(uri)
    with explained(uri, "read"), replacing(Path(local)) as temporary:
        if is_remote(uri):
            fs.get_file(path, str(temporary))
        else:
            shutil.copyfile(path, temporary)


def upload_folder(local: str | Path, uri: str) -> None:
    """Copies every file of a folder, several at a time; the order is not defined."""
    root = Path(local)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    _all(upload_file, ((path, join(uri, path.relative_to(root).as_posix())) for path in files))


def download_folder(uri: str, local: str | Path) -> None:
    """Copies every file below a URI into a local folder.

    Raises:
        FileNotFoundError: nothing is there.
    """
    found = list_(uri, recursive=True)
    if not found:
        raise FileNotFoundError(f"nothing is stored at {uri}")
    start = len(uri.rstrip("/")) + 1
    _all(download_file, ((item, Path(local) / item[start:]) for item in found))


def sha256(path: Path) -> str:
    """Of a local file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_reachable(uri: str) -> None:
    """Writes and removes a small object, so that a wrong endpoint, key or bucket is known before any work.

    Raises:
        BadInput: says in one sentence what is wrong and where to put it right.
    """
    fs, path = filesystem(uri)
    probe = join(uri, f".probe-{uuid.uuid4().hex[:12]}")
    try:
        try:
            # as many bytes as a full disk or an exhausted quota has no room for
            write_bytes(probe, bytes(_PROBE_BYTES))
        except Exception as error:
            silent = any("Timeout" in type(link).__name__ for link in _chain(error))
            if is_remote(uri) and not silent:
                fs.ls(path.split("/", 1)[0])  # tells a missing bucket from a missing permission
            raise
        remove(probe)
    except RunFailed as error:
        raise BadInput(str(error)) from None
    except Exception as error:
        raise BadInput(_sentence(uri, "use", error)) from None


def private_folder(name: str) -> Path:
    """A folder of this user's below the machine's temporary one, the same for every process.

    Raises:
        BadInput: somebody else has made something by that name.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    with contextlib.suppress(FileExistsError):  # a file or a broken link, refused below
        folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BadInput(f"{folder} is not a folder of this user; remove it, or set TMPDIR to another place")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def each(function: Callable[[str], T], uris: list[str]) -> list[T]:
    """Applies a reading function to many URIs, several at a time, in order."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        return list(pool.map(function, uris))


def _all(transfer: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for future in [pool.submit(transfer, *pair) for pair in pairs]:
            future.result()


@contextlib.contextmanager
def explained(uri: str, verb: str) -> Iterator[None]:
    """Turns whatever the SDK raises into one sentence; a missing file stays a FileNotFoundError.

    For those who use :func:`filesystem` themselves.
    """
    try:
        yield
    except (BadInput, RunFailed, FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError):
        raise
    except Exception as error:
        raise RunFailed(_sentence(uri, verb, error)) from error


def _sentence(uri: str, verb: str, error: BaseException) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    codes = {
        code
        for link in _chain(error)
        if isinstance(response := getattr(link, "response", None), dict)
        and (code := response.get("Error", {}).get("Code"))
    }
    detail = " ".join(str(error).split()) or type(error).__name__
    if not is_remote(uri):
        numbers = (link.errno for link in _chain(error) if isinstance(link, OSError))
        remedy = next((_REMEDIES[number] for number in numbers if number in _REMEDIES), None)
        return (
            f"cannot {verb} {uri}: {detail}; {remedy or 'check the permissions and the disk of that folder'}"
        )
    if {"NoCredentialsError", "PartialCredentialsError"} & kinds:
        return f"cannot {verb} {uri}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "Forbidden", "403"} & codes or (
        "PermissionError" in kinds
    ):
        return (
            f"cannot {verb} {uri}: {endpoint} refuses the credentials ({detail}); "
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's permissions"
        )
    if {"NoSuchBucket"} & codes or "FileNotFoundError" in kinds:
        bucket = uri.removeprefix("s3://").split("/", 1)[0]
        return f"cannot {verb} {uri}: {endpoint} has no bucket '{bucket}'; create it or correct the URI"
    if {"HTTPClientError", "ClientConnectorError", "ClientError", "TimeoutError", "ConnectionError"} & kinds:
        return (
            f"cannot {verb} {uri}: {endpoint} does not answer ({detail}); "
            "check AWS_ENDPOINT_URL and the network"
        )
    return f"cannot {verb} {uri} at {endpoint}: {detail}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
