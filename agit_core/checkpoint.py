"""Exact state on disk: written whole or not at all, checked on load, loaded without running code.

A checkpoint folder holds ``networks.pt``, ``averaged.pt`` (when there are averaged generators),
``training.pt`` (optimisers, stage, epoch figures, random state), ``history.pt`` and, written last,
``checkpoint.json`` with the step, the method's configuration and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agit_core.errors import BadInput

FORMAT = 1
MANIFEST = "checkpoint.json"


class CheckpointDamaged(RuntimeError):
    """A checkpoint folder that is incomplete or does not match its checksums; the one before may do."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a run needs to go on exactly, copied to the CPU so that training can proceed meanwhile."""

    info: dict[str, Any]
    """JSON-ready: step, epoch, stage, config, image_size, sample plan."""
    networks: dict[str, Tensor]
    averaged: dict[str, Tensor]
    training: dict[str, Any]
    history: dict[str, dict[int, Tensor]]


def write(directory: Path, snapshot: Snapshot) -> None:
    """Writes a checkpoint folder under a temporary name and renames it; an existing one is replaced.

    Killed at any moment, it leaves the old folder whole or the new one.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile's, which is its maker's alone and would stay so
    temporary = directory.with_name(f".{directory.name}-{secrets.token_hex(6)}")
    temporary.mkdir()
    try:
        parts: dict[str, Any] = {
            "networks.pt": snapshot.networks,
            "training.pt": snapshot.training,
            "history.pt": snapshot.history,
        }
        if snapshot.averaged:
            parts["averaged.pt"] = snapshot.averaged
        for name, value in parts.items():
            torch.save(value, temporary / name)
            _flush(temporary / name)
        files = {name: sha256(temporary / name) for name in sorted(parts)}
        manifest = {"format": FORMAT, **snapshot.info, "files": files}
        text = json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1)
        (temporary / MANIFEST).write_text(text)
        _flush(temporary / MANIFEST)
        aside = _aside(directory)
        if directory.exists():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(directory, aside)
        os.replace(temporary, directory)
        _flush(directory.parent)
        shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _aside(directory: Path) -> Path:
    """Where an old folder stands for the moment between the two renames of a replacement."""
    return directory.with_name(f".{directory.name}.old")


def _located(directory: Path) -> Path:
    directory = Path(directory)
    return _aside(directory) if not directory.exists() and _aside(directory).exists() else directory


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk: a rename must not overtake what it publishes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(manifest: dict[str, Any]) -> str:
    """Checksum of the manifest itself: a flipped digit in ``step`` must not pass."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(directory: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint folder.

    Raises:
        CheckpointDamaged: no manifest, an unreadable one, a missing file or a wrong checksum.
    """
    directory = _located(directory)
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        whole = manifest["sha256"] == _digest(manifest)
    # any other OSError says something of the disk, and not that the checkpoint is damaged
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise CheckpointDamaged(f"{path} is missing or unreadable ({error})") from None
    if not whole:
        raise CheckpointDamaged(f"{path} does not match its checksum")
    if manifest["format"] != FORMAT:
        raise BadInput(f"{path} has format {manifest['format']}; this version reads format {FORMAT}")
    for name, digest in manifest["files"].items():
        file = directory / name
        if not file.is_file() or sha256(file) != digest:
            raise CheckpointDamaged(f"{file} is missing or does not match its checksum")
    return manifest


def read(directory: Path) -> Snapshot:
    """A verified checkpoint. Tensors are on the CPU. Loads with ``weights_only=True``: no code is run."""
    directory = _located(directory)
    info = verify(directory)

    def load(name: str) -> Any:
        return torch.load(directory / name, map_location="cpu", weights_only=True)

    averaged = load("averaged.pt") if "averaged.pt" in info["files"] else {}
    return Snapshot(info, load("networks.pt"), averaged, load("training.pt"), load("history.pt"))


def read_networks(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Manifest and weights for inference: averaged generators take the place of the trained ones."""
    directory = _located(directory)
    info = verify(directory)
    weights = torch.load(directory / "networks.pt", map_location="cpu", weights_only=True)
    if "averaged.pt" in info["files"]:
        weights |= torch.load(directory / "averaged.pt", map_location="cpu", weights_only=True)
    return info, weights


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a value that is not finite."""
    return [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
