"""What `agit clean` shows and removes: never what a registered model, a kept run or somebody at work needs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import clean, records, storage
from pipeline.config import Config
from pipeline.config_reader import parse
from pipeline.registry import tracking, versions

OLD = time.time() - 100 * 86400


@dataclass
class Version:
    source: str
    tags: dict[str, str]


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
    clean.remove(clean.find(config, 30))
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
            clean.remove([thing])
    assert not Path(config.storage, "data/of-old/manifest.json").exists()
    assert not Path(config.storage, "runs/old/result.json").exists()
    monkeypatch.undo()
    clean.remove(clean.find(config, 0, now=time.time() + 7200))
    assert not list(Path(config.storage).rglob("*.parquet"))
