"""Which process owns something that is stored, and whether it still lives, as far as that can be seen from here."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """An owner that lives as long as this process."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": process_started(pid),
        "token": secrets.token_hex(16),
        **_machine(),
    }


def is_here(owner: dict[str, Any]) -> bool:
    """Whether it is a process that can be seen from here; clones and containers may have a host's name in common."""
    here = _machine()
    same = all(owner[key] == here.get(key) for key in ("boot_id", "pid_namespace") if key in owner)
    return same and owner.get("host") == socket.gethostname() and "pid" in owner


def process_started(pid: int) -> int | None:
    """When a process started, in ticks since boot: tells it from a later one with the same number (Linux)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def when_orphaned(parent: int, leave: Callable[[], object]) -> None:
    """Call ``leave`` from a thread when the process that started this one is gone, however it ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        leave()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _machine() -> dict[str, str]:
    """What tells machines and containers with equal names apart, as far as it can be read (Linux)."""
    found = {}
    with contextlib.suppress(OSError):
        found["boot_id"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        found["pid_namespace"] = os.readlink("/proc/self/ns/pid")
    return found
