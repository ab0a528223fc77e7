"""Background writing: never in the step's way, patient with the storage, honest when it gives up."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from agit_core.checkpoint import Snapshot
from agit_core.errors import RunFailed
from pipeline import storage
from pipeline.train.background_writer import Progress, Saver
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.lease import TakenOver
from tests.pipeline.disk import fill, small_disk
from tests.pipeline.s3 import S3Server
from tests.pipeline.train.test_checkpoints import snapshot
from tests.pipeline.training import wait_for


class HeldStore(CheckpointStore):
    """A store whose storage accepts nothing until it is released."""

    def __init__(self, run_uri: str, keep: int) -> None:
        super().__init__(run_uri, keep)
        self.go = threading.Event()

    def write(self, snapshot: Snapshot, check: Callable[[], None] = lambda: None) -> None:
        assert self.go.wait(600)
        super().write(snapshot, check)


def test_put_does_not_wait_and_the_newest_wins(tmp_path: Path) -> None:
    store = HeldStore(str(tmp_path), keep=9)
    saver = Saver(store, patience_s=10)
    for step in (10, 20, 30, 40):
        saver.put({str(tmp_path / f"m{step}"): b"x"}, snapshot(step))
        if step == 10:
            wait_for((tmp_path / "m10").exists, "the thread to start on the first one")
    store.go.set()
    saver.drain()
    assert saver.last_stored == 40
    # the first was being stored; of those that waited only the newest was, and no file was lost
    assert CheckpointStore(str(tmp_path), keep=9).steps() == [40, 10]
    assert all((tmp_path / f"m{step}").exists() for step in (10, 20, 30, 40))
    saver.close()


def test_a_run_that_was_taken_over_stores_nothing_more(tmp_path: Path) -> None:
    def check() -> None:
        raise TakenOver("another one trains it")

    store = CheckpointStore(str(tmp_path), keep=9)
    saver = Saver(store, patience_s=600, check=check)
    saver.put({str(tmp_path / "metrics"): b"x"}, snapshot(10))
    # at once: no patience brings the run back
    with pytest.raises(TakenOver):
        saver.drain()
    assert store.steps() == []
    assert not (tmp_path / "metrics").exists()
    saver.close()


def test_catching_up_bounds_what_a_kill_can_cost(tmp_path: Path) -> None:
    """Whoever catches up before each snapshot never has two of them on the way."""
    store = HeldStore(str(tmp_path), keep=9)
    saver = Saver(store, patience_s=10)
    saver.catch_up()
    saver.put({}, snapshot(5))
    waiting = ThreadPoolExecutor(1).submit(saver.catch_up)
    assert not waiting.done()
    store.go.set()
    waiting.result()
    assert saver.last_stored == 5
    for step in (10, 20, 30):
        saver.put({}, snapshot(step))
        saver.catch_up()
        assert saver.last_stored == step
    assert CheckpointStore(str(tmp_path), keep=9).steps() == [30, 20, 10, 5]
    saver.close()


def test_survives_an_outage(s3_private: S3Server) -> None:
    store = CheckpointStore(storage.join(s3_private.uri, "run"), keep=3)
    saver = Saver(store, patience_s=60)
    saver.put({}, snapshot(10))
    saver.drain()
    s3_private.stop()
    # neither waits nor fails
    saver.put({}, snapshot(20))
    saver.put({storage.join(s3_private.uri, "run/row"): b"row"}, snapshot(30))
    time.sleep(1)
    saver.check()
    s3_private.start()
    saver.drain()
    assert store.newest() == 30
    assert storage.read_bytes(storage.join(s3_private.uri, "run/row")) == b"row"
    saver.close()


def test_gives_up_in_one_sentence(s3_private: S3Server) -> None:
    saver = Saver(CheckpointStore(storage.join(s3_private.uri, "run"), keep=3), patience_s=0.1)
    s3_private.stop()
    saver.put({}, snapshot(10))
    with pytest.raises(RunFailed, match="does not answer") as caught:
        saver.drain()
    assert "\n" not in str(caught.value)
    with pytest.raises(RunFailed):
        saver.check()
    saver.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def large(step: int) -> Snapshot:
    """More than a few blocks."""
    return dataclasses.replace(snapshot(step), networks={"w": torch.randn(50_000)})


def test_a_full_disk_is_waited_for_and_told(disk: Path) -> None:
    store = CheckpointStore(str(disk / "run"), keep=3)
    (disk / "run").mkdir()
    ballast = fill(disk)
    saver = Saver(store, patience_s=30)
    saver.put({}, large(10))
    time.sleep(0.5)
    assert store.steps() == []
    saver.check()
    ballast.unlink()
    saver.drain()
    assert store.steps() == [10]
    saver.close()
    fill(disk)
    saver = Saver(store, patience_s=0)
    saver.put({}, large(20))
    with pytest.raises(RunFailed, match="No space left"):
        saver.drain()
    assert store.steps() == [10]
    saver.close()


def test_a_full_scratch_disk_delays_an_upload(
    disk: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints for object storage are written to the worker's disk first."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    store = CheckpointStore(storage.join(s3.uri, "run"), keep=3)
    saver = Saver(store, patience_s=60)
    ballast = fill(disk)
    saver.put({}, large(10))
    time.sleep(0.5)
    saver.check()
    assert store.steps() == []
    ballast.unlink()
    saver.drain()
    assert store.steps() == [10]
    assert not list(disk.iterdir()), "nothing stays on the disk"
    saver.close()


def test_progress_is_written_while_the_step_sleeps(tmp_path: Path) -> None:
    saver = Saver(CheckpointStore(str(tmp_path), keep=1), patience_s=1)
    progress = Progress(str(tmp_path), saver, 4, state="running", step=10, total_steps=100, resumed_from=10)
    file = tmp_path / "progress.json"
    wait_for(file.exists, "the first progress.json")
    first = json.loads(file.read_text())
    assert first["step"] == 10
    assert first["images_per_s"] is None
    assert first["last_checkpoint_step"] == 10
    time.sleep(0.2)
    progress.update(step=20, losses={"cycle_a": 0.5})
    progress.close(message="done")
    last = json.loads(file.read_text())
    assert last["step"] == 20
    assert last["losses"] == {"cycle_a": 0.5}
    assert last["message"] == "done"
    assert last["images_per_s"] > 0
    assert last["eta_s"] > 0
    saver.close()
