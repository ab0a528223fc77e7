"""Downloads over http(s): resumable, verified and cached."""

from __future__ import annotations

import hashlib
import json
import logging
import netrc
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.redact import redact

if TYPE_CHECKING:  # takes a while to load, and most sources lie on this machine
    import httpx

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""For a file that everything depends on."""

_CONNECT_SECONDS, _SECONDS = 10.0, 30.0


class NotThere(BadInput):
    """The server reports that the file does not exist or access is denied."""


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def without_query(address: str) -> str:
    """The address without its checksum fragment and, for http(s), without its query."""
    path = address.partition("#")[0]
    return path.partition("?")[0] if is_url(path) else path


def fetch(
    url: str, folder: Path, wait: Callable[[float], None] = time.sleep, attempts: int = ATTEMPTS
) -> Path:
    """Download a file, or find it in the cache.

    A partial download is resumed if the server confirms that the file is unchanged. A cached file is reused unless the
    server is reachable and has another version.

    Args:
        url: may end in ``#sha256=<hex>``, which is then verified.
        folder: cache folder.
        attempts: number of consecutive attempts without a new byte.

    Raises:
        NotThere: no such file, or no access.
        BadInput: no network, or the file does not match ``#sha256=``.
        RunFailed: the connection kept breaking; the next call resumes.
    """
    try:
        return _fetch(url, folder, wait, attempts)
    except (BadInput, RunFailed) as error:  # messages must not contain the signature of a signed link
        raise type(error)(redact(str(error))) from None


def _fetch(url: str, folder: Path, wait: Callable[[float], None], attempts: int) -> Path:
    import httpx

    address, _, fragment = url.partition("#")
    expected = _expected(url, fragment)
    try:
        path = Path(unquote(urlsplit(address).path))
    except ValueError as error:
        raise NotThere(f"{url} is no address ({error}); check it") from None
    # keep the end of the name, which has the suffix; file names are limited to 255 bytes
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[-100:] or "download"
    target = folder / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    timeout = httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS)
    client = httpx.Client(follow_redirects=True, timeout=timeout, auth=_credentials(address))
    with FileLock(f"{target}.lock"), client:
        if not target.is_file() or _changed(client, address, target):
            _download(client, address, target, wait, attempts)
        if expected and (found := storage.sha256(target)) != expected:
            target.unlink()
            raise BadInput(f"{address} has the SHA-256 {found}, not {expected}; it was removed again")
    return target


def _credentials(address: str) -> httpx.Auth | None:
    """Of ``~/.netrc``, or of the file in ``NETRC``, unless the address has its own."""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if "@" in urlsplit(address).netloc or not file.is_file():
        return None
    try:
        import httpx

        return httpx.NetRCAuth(str(file))
    except (netrc.NetrcParseError, OSError) as error:
        raise BadInput(f"{file} cannot be read ({error}); correct or remove it") from None


def _expected(url: str, fragment: str) -> str | None:
    if not fragment:
        return None
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if match is None:
        raise BadInput(f"{url}: write the checksum as #sha256=<64 hexadecimal digits>")
    return match[1].lower()


def _download(
    client: httpx.Client, url: str, target: Path, wait: Callable[[float], None], attempts: int
) -> None:
    import httpx

    part, notes = Path(f"{target}.part"), Path(f"{target}.json")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _attempt(client, url, part, notes):
                os.replace(part, target)
                return
            raise httpx.ReadError("the connection closed early")
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code < 500 and code not in {408, 429}:
                raise NotThere(
                    f"{url} answers '{code} {error.response.reason_phrase}'; check the address"
                ) from None
            last: Exception = error
        except (httpx.InvalidURL, httpx.TooManyRedirects, ValueError) as error:
            raise NotThere(
                f"{url} leads nowhere ({' '.join(str(error).split())}); check the address"
            ) from None
        except httpx.TransportError as error:
            last = error
        after = part.stat().st_size if part.exists() else 0
        failures = 0 if after > before else failures + 1
        if failures >= attempts:
            text = " ".join(str(last).split()) or type(last).__name__
            if after == 0:
                raise BadInput(
                    f"{url} cannot be reached ({text}); check the network, "
                    "or fetch the file elsewhere and give its path as data.source"
                )
            raise RunFailed(
                f"the download of {url} broke off after {after} bytes ({text}); run it again to go on"
            )
        pause = min(2.0**failures, 20.0) if failures else 0.1
        if failures:
            log.warning("%s does not answer; trying again in %.0f s", redact(without_query(url)), pause)
        wait(pause)


def _attempt(client: httpx.Client, url: str, part: Path, notes: Path) -> bool:
    """Make one request from the end of the partial file; return whether the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    known = _notes(notes)
    version = known.get("version")
    headers = {"Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:
            if have == known.get("length"):
                return True
            part.unlink()
            return False
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        notes.write_text(json.dumps({"version": _version(response), "length": total}))
        with part.open("ab" if have else "wb") as file:
            for (
                block
            ) in response.iter_raw():  # written as it arrives, so that a broken connection loses nothing
                file.write(block)
    return total is None or part.stat().st_size == total


def _changed(client: httpx.Client, url: str, target: Path) -> bool:
    """Whether the server has another version than the cached file; False if it does not respond."""
    import httpx

    known = _notes(Path(f"{target}.json"))
    with suppress(httpx.HTTPError):
        response = client.head(url, headers={"Accept-Encoding": "identity"})
        if response.is_success:
            version, length = _version(response), response.headers.get("Content-Length")
            if version and known.get("version"):
                return bool(version != known["version"])
            return length is not None and int(length) != target.stat().st_size
    return False


def _version(response: httpx.Response) -> str | None:
    """A validator for If-Range: a strong ETag, or else the date."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _notes(path: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError, TypeError, RecursionError):
        return dict(json.loads(path.read_text()))
    return {}
