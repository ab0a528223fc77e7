"""Builds the shards of a data set: workers encode, this process writes; resumable after a kill.

On a Ray cluster a shard of a set with many is one task, which reads, encodes and writes it by itself. A record
(``note``) is written after each shard; a later call skips the shards that have one.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.format.shards import Row, ShardWriter, Written, read_rows, read_table
from pipeline.data.prepare.claim import Claim
from pipeline.data.prepare.decode import ImagePolicy
from pipeline.data.prepare.encode import Encoded, Task, encode
from pipeline.data.prepare.parallel import cluster, on_cluster, ordered_map
from pipeline.data.prepare.plan import PARTS, Done, ShardPlan
from pipeline.data.prepare.previous import Earlier, Known
from pipeline.data.sources.source import Entry, carried
from pipeline.records import Shard

ENTRIES_PER_TASK = 64
ENTRIES_PER_WORKER = 128
MERGED_CORES = 20
"""Cores with which one process that merges rows into shards keeps up (``SCALE.md``)."""
_UPLOADS = 2
_META = b"agit"


def build(
    uri: str,
    claim: Claim,
    plans: list[ShardPlan],
    policies: dict[str, ImagePolicy],
    *,
    remote: bool,
    rows_per_group: int,
    workers: int | None,
    earlier: Earlier | None,
    progress: Callable[[int], None],
) -> list[Done]:
    """Write every missing shard, each followed by its record.

    Args:
        uri: folder of the data set.
        claim: this process's claim on that folder.
        policies: image policy per split.
        remote: whether reading an entry involves network latency.
        workers: number of workers; default: one per core of this machine or of the Ray cluster.
        earlier: a finished data set with the same settings, whose rows are reused where the contents are equal.
        progress: called with the number of finished entries.

    Raises:
        RunFailed: the storage does not respond or a worker was killed; the next call resumes.
    """
    finished = _finished(uri, plans)
    todo = [
        _Work(uri, claim, plan, policies[plan.split], rows_per_group, earlier)
        for plan in plans
        if plan.note not in finished
    ]
    done_entries = sum(len(done.plan.entries) for done in finished.values())
    progress(done_entries)
    if workers != 1 and _shards_are_tasks(todo):
        written = []
        for shard, done in ordered_map(_write_shard, todo, workers, len(todo)):
            written.append(replace(done, plan=shard.plan))
            done_entries += len(shard.plan.entries)
            progress(done_entries)
        return _ordered(plans, finished, written)
    owners: deque[_Work] = deque()

    def tasks() -> Iterator[Task]:
        for work in todo:
            for entries in work.portions():
                owners.append(work)
                yield Task(tuple(map(carried, entries)) if on_cluster() else entries, work.policy, remote)

    most = max(1, sum(len(plan.entries) for plan in plans) // ENTRIES_PER_WORKER)
    uploads: deque[Future[Done]] = deque()
    written = []
    with tempfile.TemporaryDirectory(prefix="agit-shards-") as folder, ThreadPoolExecutor(_UPLOADS) as pool:
        for task, encoded in ordered_map(encode, tasks(), workers, most):
            work = owners.popleft()
            work.add(Path(folder), encoded)
            done_entries += len(task.entries)
            if work.complete:
                done_entries += work.kept
                uploads.append(pool.submit(work.finish))
                while (
                    len(uploads) > _UPLOADS
                ):  # limits the disk space that queued shards take on a slow network
                    written.append(uploads.popleft().result())
            progress(done_entries)
        written += [upload.result() for upload in uploads]
    return _ordered(plans, finished, written)


def _ordered(plans: list[ShardPlan], finished: dict[str, Done], written: list[Done]) -> list[Done]:
    by_note = finished | {done.plan.note: done for done in written}
    return [by_note[plan.note] for plan in plans]


def _shards_are_tasks(todo: list[_Work]) -> bool:
    """Whether each shard is a task of the cluster: where any node can read the entries, and shards keep all busy.

    A few shards use more cores when their entries are spread; beyond :data:`MERGED_CORES` the process that merges them
    could not keep up.
    """
    if not on_cluster() or not todo or not all(map(_read_anywhere, todo)):
        return False
    with cluster() as cores:
        return len(todo) >= min(cores, MERGED_CORES)


def _read_anywhere(work: _Work) -> bool:
    return all(e.image.remote and (e.mask is None or e.mask.remote) for e in work.plan.entries)


def _write_shard(work: _Work) -> Done:
    """Write a whole shard; return it without its entries, which the caller has."""
    with tempfile.TemporaryDirectory(prefix="agit-shards-") as folder:
        for entries in work.portions():
            work.add(Path(folder), encode(Task(entries, work.policy, True)))
        return replace(work.finish(), plan=replace(work.plan, entries=[]))


def without(uri: str, claim: Claim, done: Done, dropped: dict[str, str], rows_per_group: int) -> Done:
    """Rewrite a shard without the rows named in ``dropped``; quarantine them with the given reasons."""
    present = set(done.index["name"].to_pylist()) & dropped.keys()
    if not present:
        return done
    # remove the record first: after a kill in between, the whole shard is built again
    with claim.putting():
        storage.remove(storage.join(uri, done.plan.note))
    target = storage.join(uri, done.plan.path)
    with tempfile.TemporaryDirectory(prefix="agit-shards-") as folder:
        old, new = Path(folder) / "old.parquet", Path(folder) / "new.parquet"
        storage.download_file(target, old)
        writer = ShardWriter(new, done.plan.number, rows_per_group)
        writer.add(row for row in read_rows(old, done.index) if row.name not in present)
        written = writer.close()
        with claim.putting():
            storage.upload_file(new, target)
    digests = {entry.name: entry.digest for entry in done.plan.entries}
    rejected = [{"name": n, "reason": dropped[n], "digest": digests[n]} for n in sorted(present)]
    return replace(
        done,
        shard=_line(done.plan, written),
        masks=written.masks,
        rejected=[*done.rejected, *rejected],
        notes=[note for note in done.notes if note["name"] not in present],
        index=written.index,
    )


def _line(plan: ShardPlan, written: Written) -> Shard:
    return Shard(path=plan.path, rows=written.rows, bytes=written.bytes, sha256=written.sha256)


class _Work:
    """A shard being built: reused rows merged with newly encoded ones, in the plan's order."""

    def __init__(
        self,
        uri: str,
        claim: Claim,
        plan: ShardPlan,
        policy: ImagePolicy,
        rows_per_group: int,
        earlier: Earlier | None,
    ) -> None:
        self.plan = plan
        self.policy = policy
        self._uri = uri
        self._claim = claim
        self._rows_per_group = rows_per_group
        self._earlier = earlier
        self._known = earlier.known(plan) if earlier else Known()
        self._missing = [entry for entry in plan.entries if self._known.has(entry) is None]
        self._rejected: list[dict[str, str]] = []
        self._notes: list[dict[str, str]] = []
        self._cursor = self._received = 0
        self._path: Path | None = None
        self._writer: ShardWriter | None = None
        self._rows: Iterator[Row] = iter(())

    @property
    def complete(self) -> bool:
        """Whether every missing entry has been added."""
        return self._received == len(self._missing)

    @property
    def kept(self) -> int:
        """Number of entries reused from the earlier data set."""
        return len(self.plan.entries) - len(self._missing)

    def portions(self) -> Iterator[tuple[Entry, ...]]:
        """The missing entries in portions of one task; a single empty portion if none is missing."""
        for start in range(0, max(1, len(self._missing)), ENTRIES_PER_TASK):
            yield tuple(self._missing[start : start + ENTRIES_PER_TASK])

    def add(self, folder: Path, encoded: Encoded) -> None:
        """Add the result of the next portion."""
        if self._known.whole_shard and not self._missing:
            return
        if self._writer is None:
            self._path = folder / self.plan.path.replace("/", "-")
            self._writer = ShardWriter(self._path, self.plan.number, self._rows_per_group)
            self._rows = self._earlier.rows(self.plan, self._known, folder) if self._earlier else iter(())
        fresh = {row.name: row for row in encoded.rows}
        refused = {item.name: item for item in encoded.rejected}
        self._notes += [{"name": note.name, "reason": note.reason} for note in encoded.notes]
        self._received += len(fresh) + len(refused)
        for entry in self.plan.entries[self._cursor :]:
            known = self._known.has(entry)
            if known is True:
                self._writer.add([next(self._rows)])
                if entry.name in self._known.notes:
                    self._notes.append({"name": entry.name, "reason": self._known.notes[entry.name]})
            elif isinstance(known, str):
                self._reject(entry, known)
            elif entry.name in fresh:
                self._writer.add([fresh[entry.name]])
            elif entry.name in refused:
                self._reject(entry, refused[entry.name].reason)
            else:
                break
            self._cursor += 1

    def finish(self) -> Done:
        """Store the shard and then its record."""
        target = storage.join(self._uri, self.plan.path)
        if self._writer is None or self._path is None:
            assert self._earlier is not None
            with self._claim.putting():
                done = self._earlier.copied(self.plan, self._known, target)
        else:
            written = self._writer.close()
            with self._claim.putting():
                storage.upload_file(self._path, target)
            self._path.unlink()
            done = self._done(written)
        with self._claim.putting():
            _write_note(self._uri, done)
        return done

    def _reject(self, entry: Entry, reason: str) -> None:
        self._rejected.append({"name": entry.name, "reason": reason, "digest": entry.digest})

    def _done(self, written: Written) -> Done:
        shard = _line(self.plan, written)
        return Done(self.plan, shard, written.masks, self._rejected, self._notes, written.index, self.kept)


def _write_note(uri: str, done: Done) -> None:
    note = {
        "shard": done.shard.plain(),
        "masks": done.masks,
        "rejected": done.rejected,
        "notes": done.notes,
        "kept": done.kept,
    }
    buffer = io.BytesIO()
    pq.write_table(done.index.replace_schema_metadata({_META: json.dumps(note)}), buffer)
    storage.write_bytes(storage.join(uri, done.plan.note), buffer.getvalue())


def _finished(uri: str, plans: list[ShardPlan]) -> dict[str, Done]:
    """Shards that an interrupted call has already written, by the path of their record."""
    present = {storage.name(note) for note in storage.list_(storage.join(uri, PARTS))}
    done: dict[str, Done] = {}
    for plan in plans:
        if storage.name(plan.note) not in present:
            continue
        try:
            table = read_table(io.BytesIO(storage.read_bytes(storage.join(uri, plan.note))))
            note = json.loads((table.schema.metadata or {})[_META])
            shard = Shard.model_validate(note["shard"])
            if storage.size(storage.join(uri, plan.path)) == shard.bytes:
                done[plan.note] = Done(
                    plan,
                    shard,
                    note["masks"],
                    note["rejected"],
                    note["notes"],
                    table.replace_schema_metadata(None),
                    note["kept"],
                )
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
            continue  # lost or damaged: made again
    return done
