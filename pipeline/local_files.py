"""Atomic writes of local files, removal of temporary files of killed writers, and a warning about drives that stall."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# reading the umask means setting it, which is not thread-safe: do it once, on import
_UMASK = os.umask(0o077)
os.umask(_UMASK)
STALL_SECONDS = 60.0
"""Duration after which an access to a local file is reported."""
log = logging.getLogger(__name__)
_pending: dict[int, tuple[float, str]] = {}
_numbers = itertools.count()
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.part")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder, which replaces the target if the block succeeds.

    The file is locked meanwhile; :func:`sweep_temporary` uses the lock to recognise active writers.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # shortened, so that prefix and suffix fit into the limit for file names (255 bytes)
    name = os.fsdecode(os.fsencode(target.name)[:200])
    handle, text = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=target.parent)
    temporary = Path(text)
    try:
        with contextlib.suppress(
            OSError
        ):  # a file system without locks; sweep_temporary removes nothing there
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)
        # otherwise the file may be empty after a power failure
        os.fsync(handle)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def sweep_temporary(folder: Path) -> None:
    """Remove temporary files of :func:`replacing` whose writers are dead, at any depth."""
    for path in folder.rglob(".*.part"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # still locked by its writer, or already removed
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def watched(verb: str, path: str) -> Iterator[None]:
    """Log a warning that names the path if the block, an access to local files, takes longer than a minute.

    The access itself cannot be given a limit: the kernel lets no process leave a network drive that does not answer.
    """
    _start_watching()
    number = next(_numbers)
    _pending[number] = time.monotonic(), f"{verb} {path}"
    try:
        yield
    finally:
        _pending.pop(number, None)


@functools.cache
def _start_watching() -> None:
    threading.Thread(target=_watch, name="stalls", daemon=True).start()


def _forget() -> None:
    _start_watching.cache_clear()
    _pending.clear()


os.register_at_fork(after_in_child=_forget)  # a child has none of its parent's threads


def _watch() -> None:
    reported: set[int] = set()
    while True:
        time.sleep(STALL_SECONDS / 4)
        pending = dict(_pending)
        reported &= pending.keys()
        for number, (began, what) in pending.items():
            if number not in reported and time.monotonic() - began > STALL_SECONDS:
                reported.add(number)
                log.warning(
                    "still waiting after %g s to %s: does its disk or network drive answer? (NFS: mount options soft, "
                    "timeo)",
                    STALL_SECONDS,
                    what,
                )
