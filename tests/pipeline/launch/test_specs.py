"""``agit spec``: a RayJob gets the specification that the launcher would write for its own job."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agit_core.errors import RunFailed
from pipeline import storage, train_job
from pipeline.config import parse
from pipeline.data.format import manifest
from pipeline.launch import specs
from tests.pipeline.training import prepared, spec_of, tiny


def test_specification_of_a_run_that_something_else_starts(tmp_path: Path) -> None:
    data, settings = prepared(tmp_path), tiny(tmp_path)
    uri = specs.specify(settings, data)
    stored = storage.read_json(uri)
    expected = {key: value for key, value in spec_of(settings, data).plain().items() if key != "owner"}
    assert uri == storage.join(expected["run_uri"], "spec.json")
    assert {key: stored[key] for key in expected} == expected
    assert stored.keys() == {*expected, "owner"}
    train_job.check(
        parse(stored["config"]),
        manifest.read(stored["data_uri"]),
    )
    assert specs.read_spec(uri).plain() == stored
    # another one for the same run is its next attempt
    assert storage.read_json(specs.specify(settings, data))["attempt"] == 2


def test_a_run_that_is_being_trained_keeps_its_specification(tmp_path: Path) -> None:
    data, settings = prepared(tmp_path), tiny(tmp_path)
    run_uri = spec_of(settings, data).run_uri
    before = storage.read_json(specs.specify(settings, data))
    state = {"state": "running", "time": time.time(), "step": 3}
    storage.write_json(storage.join(run_uri, "progress.json"), state)
    with pytest.raises(RunFailed, match="is being trained elsewhere; wait for it or stop it"):
        specs.specify(settings, data)
    assert storage.read_json(storage.join(run_uri, "spec.json")) == before


def test_a_job_on_a_node_that_does_not_share_the_storage(tmp_path: Path) -> None:
    uri = tmp_path / "runs" / "x" / "spec.json"
    job = [sys.executable, "-m", "pipeline.train_job", str(uri)]
    done = subprocess.run(job, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"there is no {uri} on {socket.gethostname()}; give storage that" in done.stdout.splitlines()[-1]
