"""The state of runs, from what they left in storage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from agit_core.errors import BadInput
from pipeline import run_status, storage
from pipeline.train import events
from pipeline.train.checkpoints import CheckpointStore
from tests.pipeline.command import agit
from tests.pipeline.train.test_checkpoints import snapshot


def write_run(root: Path, name: str, state: str, age: float = 0.0, **more: Any) -> str:
    uri = str(root / "runs" / name)
    storage.write_json(
        storage.join(uri, "spec.json"), {"run_id": name, "attempt": 2, "owner": {"host": "h", "pid": 1}}
    )
    progress = {
        "state": state,
        "step": 40,
        "total_steps": 100,
        "time": time.time() - age,
        "message": "",
        **more,
    }
    storage.write_json(storage.join(uri, "progress.json"), progress)
    return uri


def test_lists_runs_last_active_first(tmp_path: Path) -> None:
    write_run(tmp_path, "old", "failed", 1000, message="the disk is full")
    write_run(tmp_path, "dead", "running", 500)
    slow = write_run(tmp_path, "slow", "starting", 400)
    storage.write_json(storage.join(slow, "alive.json"), {"time": time.time() - 5})
    write_run(tmp_path, "live", "running", 1, images_per_s=12.5, eta_s=30, workers=2)
    (tmp_path / "runs" / "stray").mkdir()
    found = run_status.list_runs(str(tmp_path))
    assert [(run.run_id, run.state) for run in found] == [
        ("live", "running"),
        ("slow", "starting"),
        ("dead", "interrupted"),
        ("old", "failed"),
    ]
    assert found[0].images_per_s == 12.5
    assert found[3].message == "the disk is full"
    live, slow_row, dead, old = run_status.rows(found)
    assert slow_row["last seen"] in {"5 s ago", "6 s ago"}
    assert (live["step"], live["images/s"], live["left"]) == ("40 of 100", "12.5", "0:30")
    assert (dead["images/s"], dead["left"], dead["checkpoint"]) == ("", "", "none")
    assert dead["last seen"] == "8 min ago"
    assert old["message"] == "the disk is full"


def test_a_storage_without_runs_is_named(tmp_path: Path) -> None:
    called = agit("runs", "--set", f"storage={tmp_path}/mistyped", cwd=tmp_path)
    assert (called.status, called.out) == (0, f"no run in {tmp_path}/mistyped\n")


def test_no_runs(tmp_path: Path) -> None:
    assert run_status.list_runs(str(tmp_path / "nothing")) == []
    with pytest.raises(BadInput, match="no run at"):
        run_status.status(str(tmp_path / "runs" / "x"))


def test_status_lists_failures_and_recoveries(tmp_path: Path) -> None:
    uri = write_run(tmp_path, "r", "running", 300, last_checkpoint_step=40)
    CheckpointStore(uri, keep=2).write(snapshot(40))
    events.record(uri, "started", step=0, workers=2)
    events.record(uri, "worker_failed", "a process of the training died" + " and more" * 100)
    events.record(uri, "resumed", step=30, redone=7, workers=2)
    status = run_status.status(uri)
    assert status.state == "interrupted"
    assert status.checkpoints == [40]
    assert (status.failures, status.steps_redone, status.attempt) == (1, 7, 2)
    assert [event.kind for event in status.events] == ["started", "worker_failed", "resumed"]
    text = "\n".join(run_status.describe(status))
    assert "step 40 of 100 (40 %)" in text
    assert "checkpoints: step 40 (newest)" in text
    assert "survived: 1 failure, 7 steps repeated" in text
    assert "started at step 0, 2 workers" in text
    assert "worker failed: a process of the training died" in text
    assert max(map(len, text.splitlines())) < 200
    assert "resumed from step 30 0 s later, 7 steps repeated, 2 workers" in text
    assert "attempt 2, started by process 1 of h" in text
    assert "no process has been training this run for 5 min;" in text


def test_status_of_a_running_job_on_a_cluster(tmp_path: Path) -> None:
    now = time.time()
    more = {
        "images_per_s": 12.5,
        "eta_s": 90,
        "workers": 1,
        "stage": "masked",
        "last_checkpoint_time": now - 8,
    }
    uri = write_run(tmp_path, "r", "running", 1, **more)
    owner = {"host": "h", "submission_id": "r-2", "address": "http://head:8265"}
    storage.write_json(storage.join(uri, "spec.json"), {"run_id": "r", "attempt": 2, "owner": owner})
    for step in (20, 30, 40):
        CheckpointStore(uri, keep=2).write(snapshot(step))
    assert run_status.describe(run_status.status(uri), now) == [
        "r: running, step 40 of 100 (40 %), stage masked, 12.5 images/s on 1 worker, 1:30 left",
        "checkpoints: step 40 (newest, 8 s ago), 30",
        "job r-2 on http://head:8265",
    ]


def test_an_interruption_is_recorded_for_a_process_that_could_not(tmp_path: Path) -> None:
    uri = str(tmp_path)
    events.record_interruption(uri)
    assert events.read(uri) == []
    events.record(uri, "started", step=0)
    events.record_interruption(uri)
    events.record_interruption(uri)
    assert [event.kind for event in events.read(uri)] == ["started", "interrupted"]
    events.record(uri, "resumed", step=0)
    events.record(uri, "failed", "the disk is full")
    events.record_interruption(uri)
    assert events.read(uri)[-1].kind == "failed"


def test_a_long_event_log_is_cut(tmp_path: Path) -> None:
    uri = write_run(tmp_path, "r", "running", 1)
    for step in range(40):
        events.record(uri, "resumed", step=step)
    lines = run_status.describe(run_status.status(uri))
    assert "... 10 earlier events (--json lists all)" in lines
    assert lines[-1].endswith("resumed from step 39, 0 steps repeated")


def test_result_is_the_last_word(tmp_path: Path) -> None:
    uri = write_run(tmp_path, "r", "running", 300)
    storage.write_json(storage.join(uri, "result.json"), {"steps": 100, "checkpoint": ""})
    status = run_status.status(uri)
    assert (status.state, status.step, status.last_checkpoint_step) == ("finished", 100, 100)


def test_events_survive_an_outage(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    events.record(str(blocked), "started")  # a folder cannot be made below a file
    assert events.read(str(tmp_path)) == []


def test_a_diverged_run_is_listed_as_json(tmp_path: Path) -> None:
    """JSON has no number for what its losses are; one such run must not hide the others."""
    uri = write_run(tmp_path, "diverged", "running", 1)
    progress = storage.join(uri, "progress.json")
    told = storage.read_json(progress) | {"losses": {"cycle_a": float("nan")}}
    storage.write_bytes(progress, json.dumps(told).encode())
    called = agit("runs", "--set", f"storage={tmp_path}", "--json", cwd=tmp_path)
    assert called.status == 0, called.err
    found = called.answer
    assert found["storage"] == str(tmp_path)
    assert [run["run_id"] for run in found["runs"]] == ["diverged"]
    called = agit("status", uri, "--json", cwd=tmp_path)
    assert called.answer["losses"] == {"cycle_a": None}
