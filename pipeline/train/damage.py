"""Whether a checkpoint that nobody is about to load is whole. Imports no PyTorch."""

from __future__ import annotations

import json
import time

from agit_core import checkpoint_files
from agit_core.checkpoint_files import CheckpointDamaged
from agit_core.errors import RunFailed
from pipeline import storage

MARK = "damaged.json"
"""In the folder of a checkpoint that no job looks at again."""


def mark(folder: str, reason: str) -> None:
    """Leave a checkpoint out of all that follows."""
    storage.write_json(storage.join(folder, MARK), {"reason": reason, "time": time.time()})


def damage(folder: str) -> str | None:
    """Why a checkpoint cannot be used; None where it is whole.

    Local files are compared with their checksums. In object storage, where each of them would have to be fetched,
    it is the manifest that is, and the others have to be there.

    Raises:
        RunFailed: it cannot be read at the moment.
    """
    try:
        if storage.is_remote(folder):
            _check_remote(folder)
        else:
            checkpoint_files.verify(storage.local_path(folder))
    except CheckpointDamaged as error:
        return str(error)
    except OSError as error:
        text = " ".join(str(error).split())
        raise RunFailed(f"cannot read {folder}: {text}; check the folder's permissions and disk") from None
    return None


def _check_remote(folder: str) -> None:
    where = storage.join(folder, checkpoint_files.MANIFEST)
    try:
        manifest = json.loads(storage.read_bytes(where))
        whole = manifest["sha256"] == checkpoint_files.digest(manifest)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointDamaged(f"{where} is missing or does not match its checksum")
    there = {storage.name(uri) for uri in storage.list_(folder)}
    if lost := sorted(set(manifest["files"]) - there):
        raise CheckpointDamaged(f"{storage.join(folder, lost[0])} is missing")
