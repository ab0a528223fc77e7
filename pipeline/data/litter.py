"""What file managers, network storages, operating systems and people keep among photographs."""

from __future__ import annotations

from pathlib import PurePosixPath

_NAMES = {
    "$recycle.bin",
    "#recycle",
    "#snapshot",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@tmp",
    "__macosx",
    "desktop.ini",
    "ehthumbs.db",
    "icon\r",
    "lost+found",
    "network trash folder",
    "system volume information",
    "temporary items",
    "thumbs.db",
}

_SIDECARS = {
    *(".aae", ".csv", ".html", ".ini", ".json", ".jsonl", ".log", ".md"),
    *(".rst", ".tsv", ".txt", ".xml", ".xmp", ".yaml", ".yml"),
}
SIDECAR = "is text that lies beside images, not an image"
"""Why a file with :func:`is_sidecar` is not read."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or none of the user's own: thumbnails, waste, indexes."""
    return (name.startswith(".") and name != "..") or name.lower() in _NAMES


def in_litter(relative: str) -> bool:
    """The same for any part of a path."""
    return any(is_litter(part) for part in relative.split("/"))


def is_sidecar(name: str) -> bool:
    """Whether a file of this name describes images: captions, annotations, camera metadata."""
    return PurePosixPath(name).suffix.lower() in _SIDECARS
