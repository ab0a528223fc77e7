"""The processes of a training, found by what they are."""

from __future__ import annotations

import contextlib
from pathlib import Path

KINDS = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "node": "raylet/raylet ",
    "head": "gcs/gcs_server ",
    "driver": "pipeline.train_job",
}
"""Kind -> what its command line holds: ``node`` is a node's raylet, ``head`` the cluster's control service."""


def of_kind(kind: str, root: int) -> list[int]:
    """Processes of a kind among the descendants of a process."""
    return [pid for pid in descendants(root) if KINDS[kind] in command(pid)]


def descendants(root: int) -> list[int]:
    """All living processes that a process started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def command(pid: int) -> str:
    """The command line; empty when the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
