"""The flow ``agit`` on a real Prefect server, Ray, Inception and MLflow, with everything tiny."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from agit_core.errors import BadInput, RunFailed
from pipeline import tasks
from pipeline.config import load
from pipeline.registry import tracking
from tests import doors
from tests.agit_core.models import save
from tests.chaos import processes
from tests.pipeline.command import agit, environment, tiny_config
from tests.pipeline.s3 import S3Server

CONTRACT = {"run_id", "storage", "steps", "metrics", "model", "report"}


def _prefect(folder: Path, query: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(folder / ".agit/prefect/prefect.db") as database:
        return database.execute(query).fetchall()


def _servers(folder: Path) -> list[int]:
    """Processes started below this folder that are still there, zombies not counted."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str(folder) and (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _training(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, started and read until its training has made a step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train: step") and not line.startswith("train: step 0/"):
            return process
    raise AssertionError(f"it ended before its first step: {process.wait()}")


def _flow_runs(folder: Path) -> int:
    with sqlite3.connect(folder / ".agit/prefect/prefect.db") as database:
        return int(database.execute("select count(*) from flow_run").fetchone()[0])


def _only_what_is_unchanged_is_done(folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert tasks.already_done(load(str(config))) is not None
    for setting in (
        "evaluate.subsets=3",
        "register.gate.margin=0.5",
        "report.title=other",
        "train.max_steps=5",
    ):
        assert tasks.already_done(load(str(config), [setting])) is None, setting
    database = folder / ".agit/mlflow.db"
    was = database.stat()
    os.utime(database, (time.time() + 1, time.time() + 1))
    assert tasks.already_done(load(str(config))) is None, "aliases may have changed"
    os.utime(database, ns=(was.st_atime_ns, was.st_mtime_ns))
    for name in ("evaluation.json", "registration.json", "result.json", "report.html"):
        (file,) = folder.glob(f".agit/runs/*/{name}")
        file.rename(file.with_suffix(".away"))
        assert tasks.already_done(load(str(config))) is None, name
        file.with_suffix(".away").rename(file)
    assert tasks.already_done(load(str(config))) is not None


def _was_shown_live(folder: Path, run_id: str) -> None:
    """One MLflow run from the first row to the registration, and event files."""
    client = tracking.client(f"sqlite:///{folder}/.agit/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert (run.info.run_name, run.info.status) == (run_id, "FINISHED")
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "losses.cycle_a")) == [
        1,
        2,
        3,
        4,
    ]
    assert "kid_target_a2b" in run.data.metrics
    assert len(client.list_artifacts(run.info.run_id, "images")) == 8, "two steps, two directions, two sizes"
    assert list((folder / ".agit/runs" / run_id / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_passes_all_stages_and_the_same_command_reuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    config.write_text(config.read_text().replace("report_to: []", "report_to: [mlflow, tensorboard]"))
    first = agit("run", config, "--json", cwd=tmp_path)
    assert first.status == 0, first.err
    summary = first.answer
    assert set(summary) == CONTRACT
    assert (summary["storage"], summary["steps"]) == ("./.agit", 4)
    assert summary["model"]["name"] == "tiny"
    assert summary["model"]["version"] == 1
    for name in ("kid_target", "kid_source", "kid_mean", "fid"):
        assert {f"{name}_a2b", f"{name}_b2a"} <= set(summary["metrics"])
    assert "attention_iou_a" in summary["metrics"]
    run = tmp_path / ".agit/runs" / summary["run_id"]
    assert json.loads((run / "summary.json").read_text()) == summary
    assert Path(summary["report"]).read_text().startswith("<!doctype html>"[:2])
    assert [
        stage for stage in ("prepare", "train", "evaluate", "register", "report") if stage not in first.err
    ] == []

    _was_shown_live(tmp_path, summary["run_id"])
    flows = _flow_runs(tmp_path)
    second = agit("run", config, "--json", cwd=tmp_path)
    assert second.status == 0, second.err
    assert second.answer == summary
    for stage in ("prepare", "train", "evaluate", "register"):
        assert f"{stage}: reused" in second.err
    assert _flow_runs(tmp_path) == flows, "nothing is left to do for a flow"
    with monkeypatch.context() as inside:
        _only_what_is_unchanged_is_done(tmp_path, config, inside)
    for stage in ("train", "evaluate", "report"):
        third = agit(stage, config, "--json", cwd=tmp_path)
        same = set(third.answer) & CONTRACT
        assert same == CONTRACT, f"{stage}: {third.err}"
        assert {key: third.answer[key] for key in same - {"report"}} == {
            key: summary[key] for key in same - {"report"}
        }
        assert Path(third.answer["report"]).name == "report.html"
    photo = save(tmp_path / "photo.png", 40, 30)
    for command in (
        ("evaluate", config),
        ("translate", photo, "out"),
        ("export", "weights", "--format", "safetensors"),
    ):
        called = agit(*command, "--model", "models:/tiny/1", "--json", cwd=tmp_path)
        assert called.status == 0, called.err
        assert called.answer["model"].items() >= summary["model"].items()
        told = {key: called.answer[key] for key in CONTRACT - {"report", "model"}}
        assert told == {key: summary[key] for key in told}, command
        assert (tmp_path / called.answer["report"]).samefile(tmp_path / summary["report"])

    assert _servers(tmp_path) == []
    assert {state for (state,) in _prefect(tmp_path, "select state_name from flow_run")} == {"Completed"}
    assert len(_prefect(tmp_path, "select name from task_run where state_name = 'Completed'")) == 5
    kinds = {kind for (kind,) in _prefect(tmp_path, "select type from artifact")}
    assert {"markdown", "image"} <= kinds


def test_bad_input_fails_the_flow_at_once_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "photos/trainA").mkdir(parents=True)
    called = agit("run", tiny_config(tmp_path), "--set", "data.source=./photos", cwd=tmp_path)
    assert called.status == 2
    assert "Traceback" not in called.err
    assert "photos" in called.last_line
    assert _servers(tmp_path) == []
    tries = _prefect(tmp_path, "select run_count from task_run where name like 'prepare%'")
    assert tries == [(1,)], "a wrong call is not tried again"


@pytest.mark.long
def test_everything_on_s3_and_a_server_that_dies_on_the_way(tmp_path: Path, s3_private: S3Server) -> None:
    config = tiny_config(tmp_path)
    # the storage's patience is for short gaps; here the server stays away
    arguments = (
        "run",
        config,
        "--json",
        "--set",
        f"storage={s3_private.uri}/x",
        "--set",
        "train.max_steps=300",
    )
    arguments = (*arguments, "--set", "train.checkpoint_every=20", "--set", "train.storage_patience_s=2")
    process = _training(tmp_path, *map(str, arguments))
    s3_private.stop()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "does not answer" in err.splitlines()[-1]
    assert "same command" in err.splitlines()[-1]
    assert _servers(tmp_path) == []

    s3_private.start()
    called = agit(*arguments, cwd=tmp_path)
    assert called.status == 0, called.err
    assert "prepare: reused" in called.err
    summary = called.answer
    assert summary["steps"] == 300
    assert summary["report"].startswith(f"{s3_private.uri}/x/runs/")
    kept = {
        path.relative_to(s3_private.root / s3_private.bucket / "x").parts[0]
        for path in (s3_private.root / s3_private.bucket / "x").rglob("*")
        if path.is_file()
    }
    assert {"data", "runs", "models"} <= kept
    # nothing but Prefect's and MLflow's own state stays here
    assert {path.name for path in (tmp_path / ".agit").iterdir()} <= {"prefect", "mlflow.db", "cache"}


def _expect_closed_doors(folder: Path, root: int) -> None:
    """The ports of a run are on loopback, and its Prefect server serves nobody without the key."""
    ports = doors.listening(processes.descendants(root))
    assert [port for port in ports if port.address not in doors.LOOPBACK] == []
    (prefect,) = (port.number for port in ports if "pipeline.flows.embedded_server" in port.command)
    api = f"http://127.0.0.1:{prefect}/api"
    asked = httpx.post(
        f"{api}/flow_runs/filter", json={}, headers={"Origin": "http://page.example"}, timeout=60
    )
    assert asked.status_code == httpx.codes.UNAUTHORIZED
    assert "access-control-allow-origin" not in asked.headers
    assert httpx.get(f"{api}/health", timeout=60).status_code == httpx.codes.OK
    renamed = httpx.get(f"{api}/health", headers={"Host": "page.example"}, timeout=60)
    assert renamed.status_code == httpx.codes.BAD_REQUEST
    assert stat.S_IMODE((folder / ".agit/prefect").stat().st_mode) == 0o700


@pytest.mark.long
def test_a_killed_run_leaves_no_process_and_is_resumed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    arguments = (
        "run",
        str(config),
        "--json",
        "--set",
        "train.max_steps=300",
        "--set",
        "train.checkpoint_every=10",
    )
    process = _training(tmp_path, *arguments)
    _expect_closed_doors(tmp_path, process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    until = time.monotonic() + 60
    while _servers(tmp_path) and time.monotonic() < until:
        time.sleep(0.5)
    assert _servers(tmp_path) == []

    called = agit(*arguments, cwd=tmp_path)
    assert called.status == 0, called.err
    assert called.answer["steps"] == 300


def test_only_a_silent_network_is_tried_again() -> None:
    from pipeline.flows.train import may_pass_by_itself

    with pytest.raises(RunFailed) as caught:
        raise RunFailed("the storage does not answer") from ConnectionRefusedError("refused")
    assert may_pass_by_itself(caught.value)
    assert not may_pass_by_itself(RunFailed("a worker ran out of memory"))
    assert not may_pass_by_itself(BadInput("no such folder"))
    assert not may_pass_by_itself(ConnectionError("not ours"))


def test_a_server_that_takes_no_models_from_a_folder_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.flows.train import agit as flow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:5000")
    with pytest.raises(
        BadInput, match="does not accept models from a local folder; use storage=s3"
    ) as caught:
        flow.fn(str(tiny_config(tmp_path)), storage=str(tmp_path / "state"))
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "state").exists()


def test_the_flow_can_be_served() -> None:
    """``flow.serve`` sends the flow to its process by value, where Prefect checks the parameters."""
    import cloudpickle

    from pipeline.flows.train import agit as flow

    served = pickle.loads(cloudpickle.dumps(flow))
    assert served.validate_parameters({"config": "demo"})["config"] == "demo"
