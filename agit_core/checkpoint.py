"""Checkpoint folders: the exact training state, written atomically, verified on load, read without running code.

A checkpoint folder holds ``networks.pt``, ``averaged.pt`` (when there are averaged generators),
``training.pt`` (optimisers, stage, epoch figures, random state), ``history.pt`` and, written last,
``checkpoint.json`` with the step, the method's configuration and the SHA-256 of every file.
"""

from __future__ import annotations

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

from agit_core.checkpoint_files import (
    FORMAT,
    MANIFEST,
    CheckpointDamaged,
    aside,
    digest,
    located,
    sha256,
    verify,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "CheckpointDamaged",
    "Snapshot",
    "not_finite",
    "read",
    "read_networks",
    "sha256",
    "verify",
    "write",
]


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
        text = json.dumps(manifest | {"sha256": digest(manifest)}, indent=1)
        (temporary / MANIFEST).write_text(text)
        _flush(temporary / MANIFEST)
        old = aside(directory)
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(directory, old)
        os.replace(temporary, directory)
        _flush(directory.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    """fsync a file or folder, so that a rename never becomes durable before the contents it publishes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(directory: Path) -> Snapshot:
    """Read and verify a checkpoint onto the CPU, with ``weights_only=True`` so that no pickled code runs."""
    directory = located(directory)
    info = verify(directory)

    def load(name: str) -> Any:
        return torch.load(directory / name, map_location="cpu", weights_only=True)

    averaged = load("averaged.pt") if "averaged.pt" in info["files"] else {}
    return Snapshot(info, load("networks.pt"), averaged, load("training.pt"), load("history.pt"))


def read_networks(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the manifest and the weights for inference; averaged generators replace the trained ones."""
    directory = located(directory)
    info = verify(directory)
    weights = torch.load(directory / "networks.pt", map_location="cpu", weights_only=True)
    if "averaged.pt" in info["files"]:
        weights |= torch.load(directory / "averaged.pt", map_location="cpu", weights_only=True)
    return info, weights


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that contain NaN or infinity."""
    return [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
