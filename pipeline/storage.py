"""Storage behind URIs: local folders and ``s3://bucket/prefix`` through the same functions.

S3 is configured by the usual environment variables (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...). Two rules hold
everywhere: writes are atomic (a local file is renamed into place, an object appears as a whole), and storage errors are
one sentence, :class:`BadInput` before the work starts (:func:`check_reachable`) and :class:`RunFailed` during it.
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
from pipeline.local_files import replacing, sweep_temporary, watched
from pipeline.redact import redact

# newer SDKs send checksum trailers by default, which object stores other than Amazon's refuse
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")

_TRANSFERS = 8
_CONNECT_SECONDS = 5
_READ_SECONDS = 30
_S3FS_TRIES = 2
"""Attempts of s3fs, each with the client's own three: an unresponsive store fails after about three minutes."""
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
    """Last component of a URI."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def as_text(path: str) -> str:
    """Convert a local path to valid Unicode: bytes of other encodings, such as Latin-1, become ``\\xfc``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def filesystem(uri: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec filesystem of a URI and the path in it.

    Listings are not cached, because other processes may change them. Credentials are read from the environment each
    time, so that a renewed key takes effect.

    Raises:
        BadInput: another scheme, or credentials in the URI.
    """
    if uri.startswith("s3://"):
        if "@" in uri.split("/")[2]:  # the client would name it as part of a bucket
            raise BadInput(
                f"{redact(uri)} holds credentials; leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
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
        raise BadInput(
            f"storage '{redact(uri)}' has the scheme '{scheme}'; use a local folder or s3://bucket/prefix"
        )
    return fsspec.filesystem("file"), str(Path(uri.removeprefix("file://")).expanduser().absolute())


@functools.cache
def _session() -> Any:
    """S3 client session without "Expect: 100-continue", for which the client would wait without a timeout."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    class Session(AioSession):
        def __reduce__(
            self,
        ) -> Any:  # a filesystem that is unpickled in another process uses that one's session
            return _session, ()

    session = Session()
    session.unregister("before-call.s3", add_expect_header)
    return session


def downloads(uri: str) -> Path:
    """Folder for downloads: in the storage if that is local, else in ``.agit``."""
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
    """Whether the URI is a folder or a non-empty prefix."""
    fs, path = filesystem(uri)
    with explained(uri, "look up"):
        return bool(fs.isdir(path))


def size(uri: str) -> int:
    """Size of a file in bytes.

    Raises:
        FileNotFoundError: there is no such file.
    """
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
    """Read ``length`` bytes from offset ``start`` in one request.

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
    """The value in a JSON file.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
        FileNotFoundError: there is no such file.
        RunFailed: the storage does not answer.
    """
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically, replacing an existing one."""
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
    """Write indented JSON, as :func:`write_bytes`."""
    write_bytes(uri, json_bytes(value))


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON cannot represent (e.g. losses of a diverged training), by None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(value: Any) -> bytes:
    """Contents of a file written by :func:`write_json`; non-finite numbers become None (:func:`finite`)."""
    return (json.dumps(finite(value), indent=1, allow_nan=False) + "\n").encode()


def json_line(value: Any) -> str:
    """JSON on one line, with non-finite numbers as None."""
    return json.dumps(finite(value), allow_nan=False) + "\n"


def list_(uri: str, recursive: bool = False) -> list[str]:
    """URIs of the files and folders in a folder, sorted; with ``recursive``, of all files under it.

    A missing folder counts as empty, because object stores have no folders.
    """
    fs, path = filesystem(uri)
    with explained(uri, "list"):
        try:
            if not recursive:
                entries = [item["name"] for item in fs.ls(path, detail=True)]
            elif is_remote(uri):
                entries = fs.find(path)
            else:  # by default, fsspec silently skips unreadable folders
                entries = fs.find(path, on_error=_unless_gone)
        except (FileNotFoundError, NotADirectoryError):
            return []
    root = path.rstrip("/")
    below = (entry.rstrip("/") for entry in entries)
    names = (entry[len(root) + 1 :] for entry in below if entry.startswith(root + "/"))
    # an object's key may contain "..", and a local copy of it would end up outside of its folder
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
    """Delete a file or a folder with its contents; a missing one is not an error."""
    fs, path = filesystem(uri)
    with explained(uri, "remove"), contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def sweep(uri: str) -> None:
    """Remove temporary files of killed writers from a local folder; object stores have none."""
    if not is_remote(uri):
        sweep_temporary(local_path(uri))


def copy(uri: str, target: str) -> None:
    """Copy a file within one storage; an object store copies it on the server side.

    Raises:
        FileNotFoundError: there is no such file.
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
    """Upload every file of a folder, in parallel and in no particular order."""
    root = Path(local)
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    _all(upload_file, ((path, join(uri, path.relative_to(root).as_posix())) for path in files))


def download_folder(uri: str, local: str | Path) -> None:
    """Download every file under a URI into a local folder.

    Raises:
        FileNotFoundError: there are no files.
    """
    found = list_(uri, recursive=True)
    if not found:
        raise FileNotFoundError(f"nothing is stored at {uri}")
    start = len(uri.rstrip("/")) + 1
    _all(download_file, ((item, Path(local) / item[start:]) for item in found))


def sha256(path: Path) -> str:
    """SHA-256 of a local file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_reachable(uri: str) -> None:
    """Write and remove a small object, to detect a wrong endpoint, key or bucket before any work.

    Raises:
        BadInput: the storage cannot be used; the message names the cause and the remedy.
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
                fs.ls(path.split("/", 1)[0])  # distinguishes a missing bucket from a missing permission
            raise
        remove(probe)
    except RunFailed as error:
        raise BadInput(str(error)) from None
    except Exception as error:
        raise BadInput(_sentence(uri, "use", error)) from None


def private_folder(name: str) -> Path:
    """Private folder of this user in the machine's temporary folder, the same for every process.

    Raises:
        BadInput: the name is taken by something else, e.g. of another user.
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
    """Apply a reading function to many URIs in parallel; results in order."""
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        return list(pool.map(function, uris))


def _all(transfer: Any, pairs: Iterable[tuple[Any, Any]]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for future in [pool.submit(transfer, *pair) for pair in pairs]:
            future.result()


@contextlib.contextmanager
def explained(uri: str, verb: str) -> Iterator[None]:
    """Convert errors of the SDK to RunFailed with one sentence; a missing file stays a FileNotFoundError.

    For direct uses of :func:`filesystem`.
    """
    try:
        with contextlib.nullcontext() if is_remote(uri) else watched(verb, uri):
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
