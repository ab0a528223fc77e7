"""Checkpoints in storage: whole or invisible, verified, the last k and the best."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agit_core import checkpoint_files
from agit_core.checkpoint import MANIFEST, CheckpointDamaged, Snapshot
from agit_core.errors import BadInput, RunFailed
from pipeline import records, storage
from pipeline.train import scored
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.lease import TakenOver
from tests.pipeline.disk import small_disk
from tests.pipeline.s3 import S3Server
from tests.pipeline.training import differences


def snapshot(step: int, score: float = 1.0, stage: str = "full") -> Snapshot:
    info = {"step": step, "stage": stage, "image_size": 8, "method": {}, "scores": {"cycle": score}}
    weights = {"w": torch.arange(8.0) + step}
    return Snapshot(info, weights, {}, {"optimizer": [step]}, {"a": {0: torch.zeros(1, 4, 2, 2)}, "b": {}})


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run's folder, here and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "run")
    server: S3Server = request.getfixturevalue("s3")
    return storage.join(server.uri, "run")


def test_keeps_the_newest_and_the_best(root: str) -> None:
    store = CheckpointStore(root, keep=2, best_by="cycle")
    for step, score in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 2.2)):
        store.write(snapshot(step, score))
    assert store.steps() == [50, 40, 20]
    assert CheckpointStore(root, 2, "cycle").best() == 20
    assert CheckpointStore(root, 2, None).best() is None


def test_a_checkpoint_stays_until_it_is_scored_and_the_best_one_longer(root: str) -> None:
    store = CheckpointStore(root, keep=1, best_by="kid_target", score_every=20)

    def score(step: int, value: float) -> None:
        records.score_file(step).write(
            storage.join(root, records.SCORES), records.Scores(step=step, metrics={"kid_target": value})
        )

    for step in (10, 20, 30, 40):
        store.write(snapshot(step))
    assert store.steps() == [40, 20], "step 20 waits to be scored"
    assert store.unscored() == [20, 40]
    assert store.best() is None
    score(20, 0.1)
    score(40, 0.2)
    store.write(snapshot(50, stage="masked"))
    assert store.steps() == [50, 20]
    assert (store.unscored(), store.best()) == ([], 20)
    store.write(snapshot(60, stage="masked"))
    score(60, 0.05)
    store.prune()
    assert store.steps() == [60]
    assert CheckpointStore(root, 1, "kid_target").best() == 60, "scores of both stages can be compared"
    # steps that will be done again are scored again
    scored.remove_after(root, 20)
    assert list(records.read_scores(root)) == [20]


def test_best_is_of_the_present_stage(root: str) -> None:
    store = CheckpointStore(root, keep=1, best_by="cycle")
    store.write(snapshot(10, 0.1, "full"))
    store.write(snapshot(20, 0.9, "masked"))
    store.write(snapshot(30, 1.5, "masked"))
    assert store.best() == 20
    assert store.steps() == [30, 20]


def test_the_best_outlives_a_divergence(root: str) -> None:
    store = CheckpointStore(root, keep=2, best_by="cycle")
    for step, score in ((10, 0.5), (20, 0.1), (30, 0.3), (40, math.nan), (50, math.inf), (60, math.nan)):
        store.write(snapshot(step, score))
    assert CheckpointStore(root, 2, "cycle").best() == 20
    assert store.steps() == [60, 50, 20]
    store.write(snapshot(70, math.nan, "masked"))
    assert store.best() == 20, "nothing of the present stage is worth keeping"


def test_goes_on_from_the_last_that_is_finite(root: str) -> None:
    """Earlier versions also stored what came after a divergence."""
    store = CheckpointStore(root, keep=3)
    store.write(snapshot(10))
    broken = snapshot(20)
    broken.networks["w"][3] = math.nan
    store.write(broken)
    newest, told = CheckpointStore(root, keep=3).load_newest()
    assert newest is not None
    assert newest.info["step"] == 10
    assert len(told) == 1
    assert "step 20 is damaged (its weights are not finite: w)" in told[0]
    assert store.steps() == [10]


def test_a_checkpoint_that_is_stored_is_not_stored_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated write, as after a lost answer, would first have to remove what is there."""
    store = CheckpointStore(storage.join(s3.uri, "run"), keep=1)
    store.write(snapshot(10))
    remove = storage.remove

    def fails(uri: str) -> None:
        if storage.exists(storage.join(store.folder(20), MANIFEST)):
            raise RunFailed("away")
        remove(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", fails)
        store.write(snapshot(20))
        store.write(snapshot(20))
    assert store.steps() == [20, 10]
    store.write(snapshot(30))
    assert store.steps() == [30], "removed with the next one"


def test_who_was_taken_over_in_the_middle_of_an_upload_makes_nothing_valid(s3: S3Server) -> None:
    store = CheckpointStore(storage.join(s3.uri, "run"), keep=1)

    def check() -> None:
        raise TakenOver("by another")

    with pytest.raises(TakenOver):
        store.write(snapshot(10), check)
    assert store.steps() == []


@pytest.mark.parametrize("what", ["listing", "manifest", "tensor file"])
def test_a_disk_that_fails_once_is_no_missing_or_damaged_checkpoint(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path / "run"), keep=2)
    store.write(snapshot(10))

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        if what == "listing":
            patch.setattr(os, "scandir", fails)
        elif what == "manifest":
            patch.setattr(Path, "read_text", fails)
        else:
            patch.setattr(checkpoint_files, "sha256", fails)
        with pytest.raises(RunFailed, match="Stale file handle"):
            store.load_newest()
    found, damaged = store.load_newest()
    assert found is not None
    assert damaged == []


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "run"), keep=1)
    store.write(snapshot(10))
    made = tmp_path / "folder"
    made.mkdir()
    assert Path(store.folder(10)).stat().st_mode == made.stat().st_mode


def test_reads_what_was_written(root: str) -> None:
    store = CheckpointStore(root, keep=3)
    assert store.load_newest() == (None, [])
    assert store.newest() == 0
    written = snapshot(10)
    store.write(written)
    found, damaged = CheckpointStore(root, keep=3).load_newest()
    assert found is not None
    assert differences(found, written) == []
    assert not damaged


@pytest.mark.parametrize("harm", ["truncate", "flip", "missing"])
def test_damaged_newest_falls_back(root: str, harm: str) -> None:
    store = CheckpointStore(root, keep=3)
    store.write(snapshot(10))
    store.write(snapshot(20))
    victim = storage.join(store.folder(20), "networks.pt")
    data = storage.read_bytes(victim)
    if harm == "missing":
        storage.remove(victim)
    else:
        changed = data[:-40] if harm == "truncate" else data[:200] + bytes([data[200] ^ 1]) + data[201:]
        storage.write_bytes(victim, changed)
    again = CheckpointStore(root, keep=3)
    with pytest.raises(CheckpointDamaged):
        again.load(20)
    found, damaged = again.load_newest()
    assert found is not None
    assert found.info["step"] == 10
    assert len(damaged) == 1
    assert "step 20 is damaged" in damaged[0]
    # it is not tried again, and the same step can be written anew
    assert CheckpointStore(root, keep=3).steps() == [10]
    again.write(snapshot(20))
    assert CheckpointStore(root, keep=3).steps() == [20, 10]


def test_half_a_checkpoint_is_invisible_and_goes(root: str) -> None:
    store = CheckpointStore(root, keep=3)
    store.write(snapshot(10))
    for step in (5, 20):
        storage.write_bytes(storage.join(store.folder(step), "networks.pt"), b"half")
    assert store.steps() == [10]
    assert store.newest() == 10
    store.write(snapshot(30))
    assert not [
        uri for uri in storage.list_(store.uri, recursive=True) if "00000005" in uri or "00000020" in uri
    ]


def test_manifest_is_uploaded_last_and_removed_first(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment does storage hold a manifest whose files are not all there."""
    store = CheckpointStore(storage.join(s3.uri, "run"), keep=1)
    moments: list[bool] = []

    def look() -> None:
        for folder in storage.list_(store.uri):
            files = {storage.name(uri) for uri in storage.list_(folder)}
            whole = {MANIFEST, "networks.pt", "training.pt", "history.pt"}
            moments.append(MANIFEST not in files or whole <= files)

    for name in ("upload_file", "write_bytes", "remove"):

        def wrapped(*args: Any, real: Callable[..., None] = getattr(storage, name)) -> None:
            real(*args)
            look()

        monkeypatch.setattr(storage, name, wrapped)
    store.write(snapshot(10))
    store.write(snapshot(20))
    store.write(snapshot(20, 0.5))
    assert len(moments) > 10
    assert all(moments)


def test_a_killed_writers_rest_is_swept(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    rest = tmp_path / "checkpoints" / ".step-00000010-abcd"
    rest.mkdir(parents=True)
    (rest / "networks.pt").write_bytes(b"half")
    assert store.steps() == []
    store.write(snapshot(20))
    assert not rest.exists()


def test_a_disk_without_room_for_a_checkpoint_is_refused_by_its_path(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        store = CheckpointStore(str(disk / "run"), 1)
        store.check_room(500_000)
        with pytest.raises(
            BadInput, match=rf"{disk}/run/checkpoints has 1 MB free .* about 50 MB; make room"
        ):
            store.check_room(50_000_000)
