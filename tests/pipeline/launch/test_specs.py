"""``agit spec``: what a RayJob is told is what the launcher would have told its own job."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from pipeline import config, storage, train_job
from pipeline.launch import specs
from tests.pipeline.training import prepared, spec_of, tiny


def test_specification_of_a_run_that_something_else_starts(tmp_path: Path) -> None:
    data, settings = prepared(tmp_path), tiny(tmp_path)
    uri = specs.specify(settings, data)
    told = storage.read_json(uri)
    expected = spec_of(settings, data)
    assert uri == storage.join(expected["run_uri"], "spec.json")
    assert {key: told[key] for key in expected} == expected
    train_job.check(
        config.parse(told["config"]), storage.read_json(storage.join(told["data_uri"], "manifest.json"))
    )
    assert specs.read_spec(uri) == told
    # another one for the same run is its next attempt
    assert storage.read_json(specs.specify(settings, data))["attempt"] == 2


def test_a_job_on_a_node_that_does_not_share_the_storage(tmp_path: Path) -> None:
    uri = tmp_path / "runs" / "x" / "spec.json"
    job = [sys.executable, "-m", "pipeline.train_job", str(uri)]
    done = subprocess.run(job, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"there is no {uri} on {socket.gethostname()}; give storage that" in done.stdout.splitlines()[-1]
