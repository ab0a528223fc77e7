"""Checkpoint folders: the exact training state, written atomically, verified on load, read without running code.

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
    """A checkpoint folder that is incomplete or fails its checksums; an earlier one may be intact."""


@dataclass(frozen=True)
class Snapshot:
    """The complete state for an exact resume, copied to the CPU so that training continues while it is written."""

    info: dict[str, Any]
    """JSON-ready: step, epoch, stage, config, image_size, sample plan."""
    networks: dict[str, Tensor]
    averaged: dict[str, Tensor]
    training: dict[str, Any]
    history: dict[str, dict[int, Tensor]]


def write(directory: Path, snapshot: Snapshot) -> None:
    """Write a checkpoint folder under a temporary name, then rename it over any existing one.

    A kill at any moment leaves either the old folder or the new one intact.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile.mkdtemp: its mode 0700 would survive the rename
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
    """Name of the old folder between the two renames of a replacement."""
    return directory.with_name(f".{directory.name}.old")


def _located(directory: Path) -> Path:
    """Fall back to the old folder if a kill between the two renames left only that."""
    directory = Path(directory)
    return _aside(directory) if not directory.exists() and _aside(directory).exists() else directory


def _flush(path: Path) -> None:
    """fsync a file or folder, so that a rename never becomes durable before the contents it publishes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(manifest: dict[str, Any]) -> str:
    """Checksum of the manifest itself, which catches e.g. a flipped digit in ``step``."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(directory: Path) -> dict[str, Any]:
    """Verify every file of a checkpoint folder and return its manifest.

    Raises:
        CheckpointDamaged: the manifest is missing or unreadable, or a file is missing or fails its checksum.
        BadInput: the checkpoint has another format version.
    """
    directory = _located(directory)
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        whole = manifest["sha256"] == _digest(manifest)
    # other OSErrors come from the disk and do not mean that the checkpoint is damaged
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
    """Read and verify a checkpoint onto the CPU, with ``weights_only=True`` so that no pickled code runs."""
    directory = _located(directory)
    info = verify(directory)

    def load(name: str) -> Any:
        return torch.load(directory / name, map_location="cpu", weights_only=True)

    averaged = load("averaged.pt") if "averaged.pt" in info["files"] else {}
    return Snapshot(info, load("networks.pt"), averaged, load("training.pt"), load("history.pt"))


def read_networks(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the manifest and the weights for inference; averaged generators replace the trained ones."""
    directory = _located(directory)
    info = verify(directory)
    weights = torch.load(directory / "networks.pt", map_location="cpu", weights_only=True)
    if "averaged.pt" in info["files"]:
        weights |= torch.load(directory / "averaged.pt", map_location="cpu", weights_only=True)
    return info, weights


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that contain NaN or infinity."""
    return [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
