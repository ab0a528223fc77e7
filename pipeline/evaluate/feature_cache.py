"""Cache of Inception features in storage, of real test images and of their translations.

One ``features/{key}.npz`` each. The key covers everything that determines the contents, so entries are never stale. An
unreadable entry is computed again, with a warning.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agit_core.errors import BadInput
from agit_core.scores import inception
from pipeline import storage
from pipeline.config import Config, fingerprint

log = logging.getLogger(__name__)

FORMAT = 2
"""Part of every key; increase it when the same key would yield different values."""
Arrays = dict[str, Tensor]


def load_inception(config: Config, device: torch.device) -> inception.Inception:
    """Load the feature network, from ``evaluate.inception`` if set.

    Raises:
        BadInput: it is not found, or is another network.
    """
    home = storage.downloads(config.storage)
    given = config.evaluate.inception
    if given is None:
        return inception.load(None, home, device)
    local: str | Path = given
    if storage.is_remote(given):
        local = home / f"inception-{hashlib.sha256(given.encode()).hexdigest()[:12]}.pt"
        try:
            storage.download_file(given, local)
        except FileNotFoundError:
            raise BadInput(
                f"no Inception file at {given}; correct evaluate.inception or leave it out"
            ) from None
    found = inception.load(local, home, device)
    found.source = f"configured file {given}"
    return found


def key(**parts: Any) -> str:
    """Cache key of features computed from ``parts`` with the 2015-12-05 Inception."""
    return fingerprint(
        {"format": FORMAT, "inception": inception.SHA256, "resize": inception.RESIZE, **parts}, 24
    )


def cached(config: Config, name: str, compute: Callable[[], Arrays], rows: int) -> tuple[Arrays, bool]:
    """The arrays stored under ``name``, or newly computed and stored; and whether they were cached.

    Args:
        rows: length of the array ``features``, which every entry has.
    """
    uri = storage.join(config.storage, "features", f"{name}.npz")
    try:
        return _unpack(storage.read_bytes(uri), rows), True
    except FileNotFoundError:
        pass
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
        NotImplementedError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        log.warning("cached features %s cannot be read (%s); computing them again", uri, error)
    arrays = compute()
    storage.write_bytes(uri, _pack(arrays))
    return arrays, False


def _pack(arrays: Arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value.numpy() for name, value in arrays.items()})  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpack(data: bytes, rows: int) -> Arrays:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    shape = tuple(arrays["features"].shape)
    if shape != (rows, inception.FEATURES):
        raise ValueError(f"features are {shape}, expected {(rows, inception.FEATURES)}")
    return arrays
