"""Atomic writes of local files, and removal of temporary files of killed writers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

# reading the umask means setting it, which is not thread-safe: do it once, on import
_UMASK = os.umask(0o077)
os.umask(_UMASK)
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
