"""What `agit clean` shows and removes: never what a registered model, a kept run or somebody at work needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agit_core import model_folder
from agit_core.errors import BadInput
from pipeline import clean, records, storage
from pipeline.config import Config, parse
from pipeline.flows import embedded, prefect_schema
from pipeline.flows import unused_runs as flow_runs
from pipeline.registry import tracking, versions

OLD = time.time() - 100 * 86400


@dataclass
class Version:
    source: str
    tags: dict[str, str]
    run_id: str = "none"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return parse({"name": "x", "storage": str(tmp_path)})


def run(config: Config, name: str, data: str, **files: dict[str, Any]) -> str:
    uri = storage.join(config.storage, "runs", name)
    data_uri = storage.join(config.storage, "data", data)
    spec = {"run_id": name, "run_uri": uri, "data_uri": data_uri, "config": {}, "attempt": 1}
    storage.write_json(storage.join(data_uri, records.MANIFEST.name), {})
    storage.write_bytes(storage.join(data_uri, "trainA/part-00000.parquet"), b"12345678")
    for file, value in {"spec": spec, "result": {"steps": 1, "checkpoint": ""}, **files}.items():
        storage.write_json(storage.join(uri, f"{file}.json"), value)
    return uri


def aged(config: Config, *, but: str | None = None) -> None:
    """Everything is old, apart from what has this in its path."""
    for path in Path(config.storage).rglob("*"):
        if path.is_file() and (but is None or but not in str(path)):
            os.utime(path, (OLD, OLD))


def found(config: Config, days: float = 30) -> list[str]:
    return sorted(thing.uri.removeprefix(f"{config.storage}/") for thing in clean.find(config, days))


def registration(config: Config, source: str, uri: str | None = None) -> dict[str, Any]:
    where = uri or tracking.tracking_uri(config)
    about = {"name": "x", "version": 1, "aliases": [], "source": source}
    return {**about, "mlflow": {"tracking_uri": where, "run_id": "1"}}


def test_what_a_registered_model_needs_stays(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    start = run(config, "start", "of-start")
    model = storage.join(config.storage, "models/x/registered")
    begun = {"uri": storage.join(start, "checkpoints/step-00000001"), "digest": "0"}
    registered = run(config, "registered", "of-registered", start=begun)
    for name in ("registered", "lost"):
        storage.write_json(storage.join(config.storage, "models/x", name, "model.json"), {})
    storage.write_json(storage.join(config.storage, "models/x/audit/1.json"), {})
    elsewhere = storage.join(config.storage, "models/x/elsewhere")
    storage.write_json(storage.join(elsewhere, "model.json"), {})
    run(config, "elsewhere", "of-elsewhere", registration=registration(config, elsewhere, "http://other"))
    run(config, "forgotten", "of-forgotten")
    run(config, "deleted", "of-registered", registration=registration(config, model))
    storage.write_bytes(storage.join(config.storage, "features/a.npz"), b"1")
    aged(config)
    tags = {"agit.run_id": "registered", "agit.run_uri": registered}
    monkeypatch.setattr(versions, "all_versions", lambda uri: [Version(model, tags)])
    unused = ["data/of-forgotten", "features/a.npz", "models/x/lost", "runs/deleted", "runs/forgotten"]
    assert found(config) == unused
    assert found(config, days=1000) == []
    clean.remove(config, clean.find(config, 30))
    assert found(config) == []
    left = [
        path.name
        for folder in ("runs", "data", "models/x")
        for path in Path(config.storage, folder).iterdir()
    ]
    runs_and_data = [
        f"{prefix}{name}" for prefix in ("", "of-") for name in ("registered", "start", "elsewhere")
    ]
    assert sorted(left) == sorted([*runs_and_data, "registered", "elsewhere", "audit"])


def test_who_is_at_work_keeps_what_he_has(config: Config) -> None:
    now = time.time()
    run(config, "training", "of-training", progress={"state": "running", "time": now})
    run(config, "new", "of-new")
    Path(records.RESULT.uri(storage.join(config.storage, "runs/training"))).unlink()
    storage.write_bytes(storage.join(config.storage, "data/half/.parts/owner.json"), b"{}")
    aged(config, but="new")
    assert found(config, days=0) == ["data/half"]
    storage.write_bytes(storage.join(config.storage, "data/half/.parts/alive.json"), b"{}")
    assert found(config, days=0) == []


def test_a_run_that_does_not_say_which_data_it_used_keeps_all(config: Config) -> None:
    uri = run(config, "damaged", "a-set")
    aged(config, but="damaged")
    Path(records.SPEC.uri(uri)).write_text("{")
    assert found(config, days=0) == []


def test_cut_off_it_leaves_nothing_that_passes_for_whole(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, "old", "of-old")
    aged(config)
    things, real = clean.find(config, 30), storage.remove
    assert {thing.kind for thing in things} == {"runs", "data"}

    def removing(uri: str) -> None:
        if not uri.endswith(".json"):
            raise KeyboardInterrupt
        real(uri)

    monkeypatch.setattr(storage, "remove", removing)
    for thing in things:
        with pytest.raises(KeyboardInterrupt):
            clean.remove(config, [thing])
    assert not Path(config.storage, "data/of-old/manifest.json").exists()
    assert not Path(config.storage, "runs/old/result.json").exists()
    monkeypatch.undo()
    clean.remove(config, clean.find(config, 0, now=time.time() + 7200))
    assert not list(Path(config.storage).rglob("*.parquet"))


def test_runs_in_mlflow_go_unless_a_version_needs_them(config: Config, empty_database: Path) -> None:
    from mlflow.exceptions import MlflowException

    shutil.copy(empty_database, Path(config.storage) / tracking.LOCAL_DATABASE)
    uri = tracking.tracking_uri(config)
    client = tracking.client(uri)
    trained = run(config, "kept", "of-kept", progress={"state": "running", "time": time.time()})
    Path(records.RESULT.uri(trained)).unlink()
    aged(config)
    experiments = [client.create_experiment(name, tracking.artifact_location(config)) for name in ("x", "y")]

    def logged(name: str, training: str | None, experiment: str = experiments[0], when: float = OLD) -> str:
        tags = {} if training is None else {"agit.run_uri": training}
        made = client.create_run(experiment, start_time=int(when * 1000), tags=tags, run_name=name)
        storage.write_bytes(storage.join(made.info.artifact_uri, "a/curve.png"), b"12345")
        client.set_terminated(made.info.run_id, end_time=int(when * 1000))
        return str(made.info.run_id)

    gone = storage.join(config.storage, "runs/gone")
    ids = {
        "gone": logged("gone", gone),
        "kept": logged("kept", trained),
        "new": logged("new", gone, when=time.time()),
        "somebody's": logged("somebody's", None),
        "deleted": logged("deleted", None),
        "other storage": logged("other storage", "s3://bucket/runs/gone"),
        "registered": logged("registered", gone),
        "registered, deleted": logged("registered, deleted", gone, experiments[1]),
    }
    client.delete_run(ids["deleted"])
    client.create_registered_model("x")
    for name in ("registered", "registered, deleted"):
        client.create_model_version("x", storage.join(config.storage, "models/x", name), ids[name])
    client.delete_experiment(experiments[1])

    things = [thing for thing in clean.find(config, 30) if thing.kind == "mlflow"]
    assert {thing.uri for thing in things} == {f"runs:/{ids[name]}" for name in ("gone", "deleted")}
    assert [thing.bytes for thing in things] == [5, 5]
    clean.remove(config, things)
    assert [thing for thing in clean.find(config, 30) if thing.kind == "mlflow"] == []
    for name, run_id in ids.items():
        files = Path(config.storage, "mlflow-artifacts", run_id, "artifacts/a/curve.png")
        if name in {"gone", "deleted"}:
            assert not files.parents[2].exists()
            with pytest.raises(MlflowException, match="not found"):
                client.get_run(run_id)
        else:
            assert client.get_run(run_id).info.run_id == run_id
            assert files.is_file()


def test_old_flow_runs_of_the_embedded_server_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert flow_runs.find(0) is None
    database = tmp_path / ".agit/prefect" / flow_runs.DATABASE
    database.parent.mkdir(parents=True)
    prefect_schema.create(database)
    flow = str(uuid.uuid4())

    def ended(state: str, when: float | None) -> str:
        key = str(uuid.uuid4())
        at = None if when is None else time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime(when))
        connection.execute(
            "INSERT INTO flow_run (id, flow_id, name, state_type, end_time) VALUES (?, ?, ?, ?, ?)",
            (key, flow, "run", state, at),
        )
        connection.execute(
            "INSERT INTO log (id, name, level, flow_run_id, message, timestamp) VALUES (?, 'x', 20, ?, 'text', ?)",
            (str(uuid.uuid4()), key, at or "2020-01-01 00:00:00.000000"),
        )
        return key

    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO flow (id, name) VALUES (?, 'agit')", (flow,))
        old = {ended(state, OLD) for state in ("COMPLETED", "FAILED")}
        kept = {ended("COMPLETED", time.time()), ended("RUNNING", None)}
    found = flow_runs.find(30)
    assert found is not None
    assert (found.database, found.number) == (database, 2)
    assert abs(found.newest - OLD) < 2
    flow_runs.remove(30)
    assert flow_runs.find(30) is None
    with contextlib.closing(sqlite3.connect(database)) as connection:
        left = {row[0] for row in connection.execute("SELECT id FROM flow_run")}
        logs = {row[0] for row in connection.execute("SELECT flow_run_id FROM log")}
    assert left == logs == kept
    assert not left & old
    database.write_bytes(b"no database")
    with pytest.raises(BadInput, match=r"is damaged .* remove it"):
        flow_runs.find(30)
    monkeypatch.setenv("PREFECT_HOME", str(database.parent))
    with pytest.raises(BadInput, match=r"is damaged .* remove it"):
        embedded.Server.start()


def test_a_model_folders_manifest_goes_first() -> None:
    assert clean._FIRST["models"] == (model_folder.MANIFEST,)
