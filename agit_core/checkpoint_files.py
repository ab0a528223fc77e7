"""The manifest of a checkpoint folder and the check of all its files. Imports no PyTorch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from agit_core.errors import BadInput

FORMAT = 1
MANIFEST = "checkpoint.json"


class CheckpointDamaged(RuntimeError):
    """A checkpoint folder that is incomplete or fails its checksums; an earlier one may be intact."""


def digest(manifest: dict[str, Any]) -> str:
    """Checksum of the manifest itself, which catches e.g. a flipped digit in ``step``."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(directory: Path) -> dict[str, Any]:
    """Verify every file of a checkpoint folder and return its manifest.

    Raises:
        CheckpointDamaged: the manifest is missing or unreadable, or a file is missing or fails its checksum.
        BadInput: the checkpoint has another format version.
    """
    directory = located(directory)
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        whole = manifest["sha256"] == digest(manifest)
    # other OSErrors come from the disk and do not mean that the checkpoint is damaged
    except (
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:
        text = " ".join(str(error).split())[:100]
        raise CheckpointDamaged(f"{path} is missing or unreadable ({text})") from None
    if not whole:
        raise CheckpointDamaged(f"{path} does not match its checksum")
    if manifest["format"] != FORMAT:
        raise BadInput(f"{path} has format {manifest['format']}; this version reads format {FORMAT}")
    for name, expected in manifest["files"].items():
        file = directory / name
        if not file.is_file() or sha256(file) != expected:
            raise CheckpointDamaged(f"{file} is missing or does not match its checksum")
    return manifest


def aside(directory: Path) -> Path:
    """Name of the old folder between the two renames of a replacement."""
    return directory.with_name(f".{directory.name}.old")


def located(directory: Path) -> Path:
    """Fall back to the old folder if a kill between the two renames left only that."""
    directory = Path(directory)
    return aside(directory) if not directory.exists() and aside(directory).exists() else directory


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
