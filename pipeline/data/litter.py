"""Files that are not images of a data set: files of operating systems, file managers, NAS devices, and sidecars."""

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
"""Reason why sidecar files (:func:`is_sidecar`) are not read."""


def is_litter(name: str) -> bool:
    """Whether a file or folder name is hidden or that of a system file: thumbnails, trash, indexes."""
    return (name.startswith(".") and name != "..") or name.lower() in _NAMES


def in_litter(relative: str) -> bool:
    """Whether any component of a path is litter."""
    return any(is_litter(part) for part in relative.split("/"))


def is_sidecar(name: str) -> bool:
    """Whether a file of this name describes images: captions, annotations, camera metadata."""
    return PurePosixPath(name).suffix.lower() in _SIDECARS
