"""Local files that appear whole or not at all, and the removal of what killed writers left beside them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

# it can only be read by setting it, which is no thing to do beside other threads
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.part")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside the target, renamed over it when the block succeeds.

    It is locked meanwhile, by which :func:`sweep_temporary` tells a writer that works from one that was killed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # the longest name that a file system takes leaves no room for more
    name = os.fsdecode(os.fsencode(target.name)[:200])
    handle, text = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=target.parent)
    temporary = Path(text)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there either
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)
        # or a power cut may leave the name without the contents
        os.fsync(handle)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def sweep_temporary(folder: Path) -> None:
    """Removes, at any depth, the temporary files of :func:`replacing` whose writers are gone."""
    for path in folder.rglob(".*.part"):
        if not _TEMPORARY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):  # being written, or gone by now
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(handle)
