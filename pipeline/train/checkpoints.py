"""Checkpoints of a run in storage: written atomically, verified on load; the last k and the best one are kept.

Ray Train's checkpoint storage is not used for three reasons: its bookkeeping file is not written atomically (a
controller killed at that moment leaves a run that can never start again), a storage outage ends its controller, and it
keeps either the newest or the best checkpoints but not both. Here a folder ``checkpoints/step-00000100`` is complete if
it contains ``checkpoint.json``, which is written last and holds the SHA-256 of every file.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agit_core import checkpoint
from agit_core.checkpoint import CheckpointDamaged, Snapshot
from agit_core.errors import BadInput, RunFailed
from pipeline import records, storage
from pipeline.config import LOSSES, Config
from pipeline.records import CHECKPOINTS
from pipeline.train import scored
from pipeline.train.damage import MARK, mark

log = logging.getLogger(__name__)

_NAME = re.compile(r"^step-(\d{8,})$")


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_uri: the run's folder.
        keep: number of newest checkpoints to keep.
        best_by: key of ``info["scores"]``; the checkpoint with the lowest value is kept too. Or a metric of the
            catalogue, by scores on validation images. None: no such checkpoint.
        score_every: steps between checkpoints to be scored, each of which is kept until it is.
    """

    def __init__(
        self, run_uri: str, keep: int, best_by: str | None = None, score_every: int | None = None
    ) -> None:
        self.run_uri = run_uri
        self.uri = storage.join(run_uri, CHECKPOINTS)
        self.keep = keep
        self.best_by = best_by
        self.score_every = score_every
        self._info: dict[int, dict[str, Any]] = {}
        self._uploaded = b""

    @classmethod
    def of(cls, run_uri: str, config: Config) -> CheckpointStore:
        """The store that a run's configuration describes."""
        return cls(run_uri, config.train.keep_checkpoints, config.best_by, config.validation.every)

    def folder(self, step: int) -> str:
        """URI of the checkpoint of a step."""
        return storage.join(self.uri, f"step-{step:08d}")

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are complete judging by their file names, newest first."""
        return sorted((s for s, names in self._folders().items() if _looks_whole(names)), reverse=True)

    def newest(self) -> int:
        """Step of the newest complete checkpoint; 0 if there is none."""
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
        """Step with the best score on validation images, or with the lowest loss of the newest checkpoint's stage.

        Losses of the two stages are not comparable, because the discriminators see different images. If all
        checkpoints of the stage have diverged, the newest finite one of any stage.
        """
        steps = self.steps()
        if self.best_by is None or not steps:
            return None
        if self.best_by not in LOSSES:
            scores = records.read_scores(self.run_uri)
            return scored.best({step: one for step, one in scores.items() if step in steps}, self.best_by)
        stage = next((info["stage"] for info in map(self.info, steps) if "stage" in info), None)
        losses = {
            step: float(self.info(step)["scores"][self.best_by])
            for step in steps
            if self.best_by in self.info(step).get("scores", {})
        }
        of_stage = {step: score for step, score in losses.items() if self.info(step).get("stage") == stage}
        finite = {step: score for step, score in of_stage.items() if math.isfinite(score)}
        if of_stage and not finite:
            return max((step for step, score in losses.items() if math.isfinite(score)), default=None)
        return min(finite, key=lambda step: (finite[step], -step)) if finite else None

    # ------------------------------------------------------------------ reading

    def load_newest(self) -> tuple[Snapshot | None, list[str]]:
        """Load the newest checkpoint that is intact and finite; also return one sentence per damaged one.

        Damaged checkpoints are marked and skipped from then on.
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
                mark(self.folder(step), str(error))
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
        """Store a snapshot under its step and remove checkpoints beyond the limits. May be retried after a failure.

        Args:
            check: raises if this process no longer owns the run; called right before the checkpoint becomes valid.
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
            self.prune()
        except (RunFailed, OSError) as error:  # the checkpoint is stored; the next call prunes again
            log.warning("old checkpoints are not removed yet: %s", error)

    def _upload(self, snapshot: Snapshot, folder: str, check: Callable[[], None]) -> None:
        manifest = storage.join(folder, checkpoint.MANIFEST)
        with tempfile.TemporaryDirectory(prefix="agit-save-") as scratch:
            local = Path(scratch) / storage.name(folder)
            _write_local(local, snapshot)
            last = (local / checkpoint.MANIFEST).read_bytes()
            (local / checkpoint.MANIFEST).unlink()
            if (
                self._uploaded != last
            ):  # otherwise this is a retry, and all files but the manifest are uploaded
                # a folder of this step may exist: a damaged checkpoint, from before which the run resumed
                storage.remove(manifest)
                storage.remove(folder)
                storage.upload_folder(local, folder)
                self._uploaded = last
            check()
            storage.write_bytes(manifest, last)

    def unscored(self) -> list[int]:
        """The checkpoints that are to be scored and have not been, oldest first."""
        if self.score_every is None:
            return []
        waiting = {step for step in self.steps() if step % self.score_every == 0}
        return sorted(waiting - records.scored_steps(self.run_uri)) if waiting else []

    def prune(self) -> None:
        """Removes what need not be kept."""
        folders = self._folders()
        whole = sorted((s for s, names in folders.items() if _looks_whole(names)), reverse=True)
        # in this order, or one that is scored between the two would be in neither
        kept = {*whole[: self.keep], *self.unscored(), self.best()}
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
    return checkpoint.MANIFEST in names and MARK not in names


def _sweep(root: Path) -> None:
    """Remove temporary folders of a killed writer; there is only one writer at a time."""
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
