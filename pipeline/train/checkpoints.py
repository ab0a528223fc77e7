"""Checkpoints of a run in storage: whole or invisible, verified on load, the last k and the best one kept.

Ray Train could store them too. This does not use it, because its bookkeeping file is not written atomically (a
controller killed at that moment leaves a run that can never start again), because an outage of the storage
ends its controller, and because it keeps either the newest or the best checkpoints but not both. Here the
storage itself is the truth: a folder ``checkpoints/step-00000100`` is whole when its ``checkpoint.json``,
which is written last and holds every file's SHA-256, is there.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agit_core import checkpoint
from agit_core.checkpoint import CheckpointDamaged, Snapshot
from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.records import CHECKPOINTS

log = logging.getLogger(__name__)

_NAME = re.compile(r"^step-(\d{8,})$")
_DAMAGED = "damaged.json"


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_uri: the run's folder.
        keep: how many of the newest stay.
        best_by: key of ``info["scores"]`` whose lowest value keeps one more; None keeps none.
    """

    def __init__(self, run_uri: str, keep: int, best_by: str | None = None) -> None:
        self.uri = storage.join(run_uri, CHECKPOINTS)
        self.keep = keep
        self.best_by = best_by
        self._info: dict[int, dict[str, Any]] = {}
        self._uploaded = b""

    def folder(self, step: int) -> str:
        """URI of the checkpoint of a step."""
        return storage.join(self.uri, f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Steps whose checkpoints are whole as far as the names tell, newest first."""
        return sorted((s for s, names in self._folders().items() if _looks_whole(names)), reverse=True)

    def newest(self) -> int:
        """The newest whole checkpoint's step; 0 when there is none."""
        return next(iter(self.steps()), 0)

    def info(self, step: int) -> dict[str, Any]:
        """A checkpoint's manifest; empty where it cannot be understood, which :meth:`load` then says."""
        if step not in self._info:
            try:
                found = storage.read_json(storage.join(self.folder(step), checkpoint.MANIFEST))
            except (ValueError, RecursionError):
                found = None
            self._info[step] = found if isinstance(found, dict) else {}
        return self._info[step]

    def best(self) -> int | None:
        """The step with the lowest score of the stage that the newest checkpoint is in.

        Losses of the two stages are not comparable: the discriminators see different pictures. Where all of the stage
        have diverged, it is the newest that has not.
        """
        steps = self.steps()
        if self.best_by is None or not steps:
            return None
        stage = next((info["stage"] for info in map(self.info, steps) if "stage" in info), None)
        scored = {
            step: float(self.info(step)["scores"][self.best_by])
            for step in steps
            if self.best_by in self.info(step).get("scores", {})
        }
        of_stage = {step: score for step, score in scored.items() if self.info(step).get("stage") == stage}
        finite = {step: score for step, score in of_stage.items() if math.isfinite(score)}
        if of_stage and not finite:
            return max((step for step, score in scored.items() if math.isfinite(score)), default=None)
        return min(finite, key=lambda step: (finite[step], -step)) if finite else None

    # ------------------------------------------------------------------ reading

    def load_newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest checkpoint that is finite and what its checksums say, and a sentence for each that is not.

        Those are marked and not looked at again.
        """
        damaged: list[str] = []
        for step in self.steps():
            try:
                snapshot = self.load(step)
                if broken := checkpoint.not_finite(snapshot.networks | snapshot.averaged):
                    raise CheckpointDamaged(
                        f"its weights are not finite: {broken[0]}"
                    )  # an earlier version's
                return snapshot, damaged
            except CheckpointDamaged as error:
                damaged.append(f"the checkpoint of step {step} is damaged ({error}); using the one before")
                log.warning(damaged[-1])
                self._info.pop(step, None)
                self._uploaded = b""
                storage.write_json(
                    storage.join(self.folder(step), _DAMAGED), {"reason": str(error), "time": time.time()}
                )
        return None, damaged

    def load(self, step: int) -> Snapshot:
        """One checkpoint, verified.

        Raises:
            CheckpointDamaged: a file is missing or does not match its checksum.
            RunFailed: it cannot be read at the moment.
        """
        folder = self.folder(step)
        if not storage.is_remote(folder):
            try:
                return checkpoint.read(storage.local_path(folder))
            except OSError as error:
                text = " ".join(str(error).split())
                raise RunFailed(
                    f"cannot read {folder}: {text}; check the folder's permissions and disk"
                ) from None
        with tempfile.TemporaryDirectory(prefix="agit-load-") as scratch:
            storage.download_folder(folder, scratch)
            return checkpoint.read(Path(scratch))

    # ------------------------------------------------------------------ writing

    def check_room(self, size: int) -> None:
        """Refuse, before a long training, a disk that has no room for one checkpoint.

        Args:
            size: bytes of a checkpoint, roughly.

        Raises:
            BadInput: names the folder (that of temporary files for object storage) and what is free.
        """
        remote = storage.is_remote(self.uri)
        folder = Path(tempfile.gettempdir()) if remote else storage.local_path(self.uri)
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size:
            raise BadInput(
                f"{folder} has {free / 1e6:.0f} MB free and a checkpoint of this run takes about {size / 1e6:.0f} MB; "
                f"make room, or {'set TMPDIR to' if remote else 'give a storage on'} a larger disk"
            )

    def write(self, snapshot: Snapshot, check: Callable[[], None] = lambda: None) -> None:
        """Stores a snapshot under its step and removes what need not be kept. May be repeated after a failure.

        Args:
            check: raises when the run is somebody else's by now; called right before the checkpoint becomes valid.
        """
        step = int(snapshot.info["step"])
        folder = self.folder(step)
        if storage.is_remote(folder):
            self._upload(snapshot, folder, check)
        else:
            _sweep(storage.local_path(self.uri))
            _write_local(storage.local_path(folder), snapshot)
        self._info[step] = snapshot.info
        try:
            self._prune()
        except (RunFailed, OSError) as error:  # the next one does it; this one is stored
            log.warning("old checkpoints are not removed yet: %s", error)

    def _upload(self, snapshot: Snapshot, folder: str, check: Callable[[], None]) -> None:
        manifest = storage.join(folder, checkpoint.MANIFEST)
        with tempfile.TemporaryDirectory(prefix="agit-save-") as scratch:
            local = Path(scratch) / storage.name(folder)
            _write_local(local, snapshot)
            last = (local / checkpoint.MANIFEST).read_bytes()
            (local / checkpoint.MANIFEST).unlink()
            if self._uploaded != last:  # or it is a second try, and this step's files are all there
                # a folder of the same step is there when a damaged checkpoint made the run go back behind it
                storage.remove(manifest)
                storage.remove(folder)
                storage.upload_folder(local, folder)
                self._uploaded = last
            check()
            storage.write_bytes(manifest, last)

    def _prune(self) -> None:
        folders = self._folders()
        whole = sorted((s for s, names in folders.items() if _looks_whole(names)), reverse=True)
        kept = {*whole[: self.keep], self.best()}
        for step in folders:
            # newer leftovers may be an upload in progress
            if step not in kept and step < whole[0]:
                storage.remove(storage.join(self.folder(step), checkpoint.MANIFEST))
                storage.remove(self.folder(step))
                self._info.pop(step, None)

    def _folders(self) -> dict[int, set[str]]:
        """Step -> names of the files in its folder."""
        found: dict[int, set[str]] = {}
        start = len(self.uri) + 1
        for uri in storage.list_(self.uri, recursive=True):
            parts = uri[start:].split("/")
            match = _NAME.match(parts[0])
            if match and len(parts) == 2:
                found.setdefault(int(match[1]), set()).add(parts[1])
        return found


def _write_local(directory: Path, snapshot: Snapshot) -> None:
    try:
        checkpoint.write(directory, snapshot)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError about streams
        free = shutil.disk_usage(directory.parent).free
        size = sum(tensor.nbytes for tensor in snapshot.networks.values())
        reason = f"No space left ({free} bytes are free)" if free < size else " ".join(str(error).split())
        raise RunFailed(
            f"cannot write the checkpoint {directory}: {reason}; make room or set TMPDIR to a larger disk"
        ) from error


def _looks_whole(names: set[str]) -> bool:
    return checkpoint.MANIFEST in names and _DAMAGED not in names


def _sweep(root: Path) -> None:
    """Removes what a killed writer left half done; there is one writer at a time."""
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
