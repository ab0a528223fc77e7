"""What file managers, network storages and operating systems leave among photographs."""

from __future__ import annotations

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


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or none of the user's own: thumbnails, waste, indexes."""
    return (name.startswith(".") and name != "..") or name.lower() in _NAMES


def in_litter(relative: str) -> bool:
    """The same for any part of a path."""
    return any(is_litter(part) for part in relative.split("/"))
