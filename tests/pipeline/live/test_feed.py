"""A training as it is shown live, on real MLflow, TensorBoard and Weights & Biases; only the job is played."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from agit_core.errors import BadInput
from infra.stack_state import free_port
from pipeline import records, storage
from pipeline.config import Config, load
from pipeline.live import feed
from pipeline.live.feed import reporting
from pipeline.registry import tracking
from tests.pipeline.fabricated_run import png, strip
from tests.pipeline.s3 import S3Server
from tests.pipeline.training import wait_for

RUN = "h2z-0a1b2c3d"


def row(step: int) -> dict[str, Any]:
    losses = {"cycle_a": 1 / step, "cycle_b": 2 / step}
    figures = {
        "epoch": step // 10,
        "learning_rate": 1e-4,
        "losses": losses,
        "mask_health": {"coverage_a": 0.3},
    }
    return {"step": step, "stage": "full", **figures, "images_per_s": 7.5, "time": 1.7e9 + step}


class Job:
    """What a training job leaves in the run's folder."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def rows(self, *steps: int) -> None:
        text = "".join(json.dumps(row(step)) + "\n" for step in steps)
        storage.write_text(storage.join(self.uri, records.METRICS, f"{steps[-1]:08d}.jsonl"), text)

    def samples(self, step: int) -> None:
        folder = records.sample_folder(self.uri, step)
        names = ["a2b-0.png", "a2b-1.png", "b2a-0.png"]
        for name in names:
            storage.write_bytes(storage.join(folder, name), png(strip(name[0], 0, 0.5)))
        records.SAMPLE_STEP.write(folder, records.SampleStep(step=step, tile=64, columns=[], strips=names))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(feed, "_LISTING_SECONDS", 0.05)
    monkeypatch.setitem(feed._CLOSING_SECONDS, "FINISHED", 120.0)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def of(*report_to: str, **more: str) -> Config:
        extra = [f"{key}={value}" for key, value in more.items()]
        return load("h2z", [f"storage={tmp_path}", f"train.report_to=[{','.join(report_to)}]", *extra])

    return of


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(str(tmp_path / "runs" / RUN))


def mlflow_run(config: Config) -> Any:
    client = tracking.client(tracking.tracking_uri(config))
    experiment = client.get_experiment_by_name("h2z")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return found[0] if found else None


def curve(config: Config, name: str) -> list[tuple[int, float]]:
    run = mlflow_run(config)
    if run is None:
        return []
    points = tracking.client(tracking.tracking_uri(config)).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def test_mlflow_shows_the_training_while_it_goes_on(settings: Callable[..., Config], job: Job) -> None:
    config = settings("mlflow")
    with reporting(config, RUN, job.uri) as report:
        report({"step": 12, "rows": [row(10)]})
        wait_for(lambda: curve(config, "losses.cycle_a") == [(10, 0.1)], "the first row")
        run = mlflow_run(config)
        assert (run.info.status, run.info.run_name) == ("RUNNING", RUN)
        assert run.data.params["method.stages.tau"] == "0.1"
        assert run.data.metrics["images_per_s"] == 7.5
        assert run.data.metrics["mask_health.coverage_a"] == 0.3
        # the job's file has a row that was never reported
        job.rows(10, 20, 30)
        job.samples(30)
        report({"step": 31, "rows": [row(40)]})
        wait_for(lambda: len(curve(config, "learning_rate")) == 4, "the rows between")
        # a checkpoint is scored some time after its row
        scores = records.Scores(step=20, metrics={"kid_target_a2b": 0.25})
        records.score_file(20).write(storage.join(job.uri, records.SCORES), scores)
        report({"step": 51, "rows": [row(50)]})
        wait_for(lambda: curve(config, "validation.kid_target_a2b") == [(20, 0.25)], "the scores")
        client = tracking.client(tracking.tracking_uri(config))
        wait_for(lambda: client.list_artifacts(run.info.run_id, "images"), "the pictures")
    assert [step for step, _ in curve(config, "losses.cycle_b")] == [10, 20, 30, 40, 50]
    finished = mlflow_run(config)
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["mlflow.loggedImages"] == "True"
    shown = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert {path.split("/")[1].split("+timestamp")[0] for path in shown} == {
        "samples a2b+step+30",
        "samples b2a+step+30",
    }

    # the same call again, after a kill: nothing twice, and the run continues
    with contextlib.suppress(RuntimeError), reporting(config, RUN, job.uri) as report:
        report({"rows": [row(60)]})
        wait_for(lambda: len(curve(config, "learning_rate")) == 6, "the next row")
        assert mlflow_run(config).info.status == "RUNNING"
        raise RuntimeError
    assert mlflow_run(config).info.status == "FAILED"
    assert [step for step, _ in curve(config, "losses.cycle_a")] == [10, 20, 30, 40, 50, 60]
    assert len(client.list_artifacts(run.info.run_id, "images")) == len(shown)


def test_the_registration_completes_the_run_that_was_shown(settings: Callable[..., Config], job: Job) -> None:
    config = settings("mlflow")
    job.rows(10, 20)
    with reporting(config, RUN, job.uri) as report:
        report({"rows": [row(20)]})
    shown = mlflow_run(config)
    changed = settings("mlflow", **{"train.log_every": "5"})
    logged = tracking.log_run(
        tracking.tracking_uri(config),
        "h2z",
        tracking.artifact_location(config),
        RUN,
        changed.plain(),
        {"agit.key": "k", "agit.run_id": RUN},
        [row(step) for step in (10, 20, 30)],
        {"kid_target_a2b": 0.05},
        {"name": "h2z", "fingerprint": "abc", "uri": "data"},
        {"config.yaml": b"name: h2z"},
    )
    assert logged == shown.info.run_id
    assert [step for step, _ in curve(config, "losses.cycle_a")] == [10, 20, 30]
    run = mlflow_run(config)
    assert (run.info.status, run.data.metrics["kid_target_a2b"]) == ("FINISHED", 0.05)
    assert (run.data.tags["agit.key"], tracking.LIVE in run.data.tags) == ("k", False)


def test_a_server_that_is_away_costs_a_gap_that_is_filled(
    settings: Callable[..., Config], job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server is a SQLite file whose folder cannot be made until later."""
    (tmp_path / "later").write_text("in the way")
    config = settings("mlflow", **{"register.tracking_uri": f"sqlite:///{tmp_path}/later/mlflow.db"})
    tracking.client.cache_clear()
    with reporting(config, RUN, job.uri) as report:
        report({"rows": [row(10)]})
        wait_for(lambda: "cannot show the training yet" in caplog.text, "the warning")
        began = time.perf_counter()
        job.rows(10, 20)
        report({"rows": [row(30)]})
        assert time.perf_counter() - began < 1, "who trains does not wait"
        (tmp_path / "later").unlink()
        wait_for(lambda: (tmp_path / "later" / "mlflow.db").exists(), "another try")
    assert [step for step, _ in curve(config, "losses.cycle_a")] == [10, 20, 30]
    assert caplog.text.count("cannot show the training yet") == 1


def test_tensorboard_reads_the_files(settings: Callable[..., Config], job: Job, tmp_path: Path) -> None:
    job.samples(20)
    with reporting(settings("tensorboard"), RUN, job.uri) as report:
        report({"rows": [row(10), row(20)]})
    port = free_port()
    program = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(tmp_path / "runs"),
        "--port",
        str(port),
    ]
    log = (tmp_path / "tensorboard.log").open("wb")
    server = subprocess.Popen([*program, "--load_fast=false", "--reload_interval=1"], stdout=log, stderr=log)
    try:
        data = f"http://127.0.0.1:{port}/data/plugin"

        def ask(path: str, **parameters: str) -> Any:
            answer = httpx.get(f"{data}/{path}", params=parameters, timeout=30)
            return answer.json() if answer.status_code == 200 else None

        def tags() -> Any:
            try:
                return (ask("scalars/tags") or {}).get(f"{RUN}/tensorboard")
            except httpx.HTTPError:
                return None

        found = wait_for(tags, "TensorBoard to have read the run")
        assert {"losses/cycle_a", "learning_rate", "images_per_s", "mask_health/coverage_a"} <= set(found)
        scalars = ask("scalars/scalars", run=f"{RUN}/tensorboard", tag="losses/cycle_b")
        assert [point[1:] for point in scalars] == [[10, pytest.approx(0.2)], [20, pytest.approx(0.1)]]
        assert "samples/a2b" in ask("images/tags")[f"{RUN}/tensorboard"]
    finally:
        server.terminate()
        server.wait()


def test_in_object_storage_there_is_one_event_file_and_it_is_whole(
    settings: Callable[..., Config], s3: S3Server, tmp_path: Path
) -> None:
    uri = storage.join(s3.uri, "runs", RUN)
    Job(uri).rows(10)
    for _ in range(2):  # a second process writes it anew
        with reporting(settings("tensorboard"), RUN, uri) as report:
            report({"rows": [row(20)]})
    (file,) = storage.list_(storage.join(uri, "tensorboard"))
    (tmp_path / storage.name(file)).write_bytes(storage.read_bytes(file))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.step for point in events.Scalars("losses/cycle_a")] == [10, 20]


def written(file: Path) -> Iterator[bytes]:
    """The records of an offline file of Weights & Biases: LevelDB's log format behind a header of seven bytes."""
    data, at, record = file.read_bytes(), 7, b""
    while at < len(data):
        if 32768 - at % 32768 < 7:  # a record's head does not cross the end of a block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_weights_and_biases_offline(
    settings: Callable[..., Config], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    job.samples(20)
    with reporting(settings("wandb"), RUN, job.uri) as report:
        report({"rows": [row(10), row(20)]})
    (file,) = Path(job.uri).glob(f"wandb/offline-run-*/run-{RUN}.wandb")
    history = []
    for data in written(file):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): item.value_json for item in items})
    assert [float(one["losses/cycle_a"]) for one in history if "losses/cycle_a" in one] == [0.1, 0.05]
    assert [one["train_step"] for one in history if any(key.startswith("samples/a2b") for key in one)] == [
        "20"
    ]


def test_a_training_that_never_began_leaves_nothing(
    settings: Callable[..., Config], job: Job, tmp_path: Path
) -> None:
    with pytest.raises(BadInput), reporting(settings("mlflow", "tensorboard"), RUN, job.uri):
        raise BadInput("more workers than images")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_said_before_the_training(
    settings: Callable[..., Config], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.live.to_wandb", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    sentence = re.escape("train.report_to names wandb, which needs the package wandb")
    with pytest.raises(BadInput, match=sentence), reporting(settings("wandb"), RUN, job.uri):
        raise AssertionError("it began")
