"""Identity of a process that owns stored data, and whether it is alive, as far as visible from this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agit_core.errors import BadInput, RunFailed


def this_process() -> dict[str, Any]:
    """Owner record of this process."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": process_started(pid),
        "token": secrets.token_hex(16),
        **_machine(),
    }


def is_here(owner: dict[str, Any]) -> bool:
    """Whether an owner is a process of this machine and PID namespace; host names alone may not be unique."""
    here = _machine()
    same = all(owner[key] == here.get(key) for key in ("boot_id", "pid_namespace") if key in owner)
    return same and owner.get("host") == socket.gethostname() and "pid" in owner


def process_started(pid: int) -> int | None:
    """Start time of a process in ticks since boot, which distinguishes reused PIDs (Linux); None if unknown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def when_orphaned(parent: int, leave: Callable[[], object]) -> None:
    """Call ``leave`` from a background thread once the parent process has died."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        leave()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


@contextlib.contextmanager
def heartbeat(
    beat: Callable[[], object], seconds: float, name: str, *, at_once: bool = False, patience_s: float = 2.0
) -> Iterator[None]:
    """Call ``beat`` from a thread, every ``seconds``, while the block runs.

    A storage that does not respond costs a beat: the next one tries again.

    Args:
        at_once: beat first, then wait.
        patience_s: how long the end of the block waits for a beat that is under way.
    """
    ended = threading.Event()

    def run() -> None:
        waits = 0.0 if at_once else seconds
        while not ended.wait(waits):
            waits = seconds
            with contextlib.suppress(BadInput, RunFailed, OSError):
                beat()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=patience_s)


def _machine() -> dict[str, str]:
    """Boot id and PID namespace, which distinguish machines and containers of equal names (Linux)."""
    ids = {}
    with contextlib.suppress(OSError):
        ids["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        ids["pid_namespace"] = os.readlink("/proc/self/ns/pid")
    return ids
