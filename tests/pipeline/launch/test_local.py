"""Starting and following the job on this machine: progress, reuse, refusal, and nothing left behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.config import Config, load, parse
from pipeline.launch import follow, local, specs
from pipeline.records import Manifest, Owner, Spec
from pipeline.train import events
from pipeline.train.checkpoints import CheckpointStore
from tests import doors
from tests.chaos import processes
from tests.pipeline.training import TINY, prepared, spec_of, tiny, wait_for

MANIFEST = Manifest(fingerprint="0123456789ab")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tmp_path_factory.mktemp("data"))


class TestRunId:
    """A training's name is what it computes."""

    def name(self, fingerprint: str = "0123456789ab", **changes: Any) -> str:
        tree: dict[str, Any] = {**TINY, "storage": "x"}
        for section, values in changes.items():
            tree[section] = tree[section] | values if isinstance(values, dict) else values
        return specs.run_id(parse(tree), Manifest(fingerprint=fingerprint))

    def test_begins_with_the_data_sets_name(self) -> None:
        assert self.name().startswith("tiny-")
        assert len(self.name()) == len("tiny-") + 8

    @pytest.mark.parametrize(
        "changes",
        [
            {"train": {"workers": 1}},
            {"train": {"minimum_workers": 1}},
            {"train": {"device": "auto", "threads_per_worker": 2, "prefetch_threads": 4}},
            {"train": {"checkpoint_every": 7, "keep_checkpoints": 9, "sample_every": 3, "log_every": 1}},
            {"train": {"max_failures": 0, "storage_patience_s": 1.0, "best_by": None}},
            {"storage": "elsewhere"},
            {"data": {"shuffle": "exact", "shuffle_bytes": 10}},
            {"evaluate": {"subsets": 3}} if "evaluate" in TINY else {},
        ],
    )
    def test_where_and_how_it_runs_do_not_matter(self, changes: dict[str, Any]) -> None:
        assert self.name(**changes) == self.name()

    @pytest.mark.parametrize(
        "changes",
        [
            {"train": {"max_steps": 61}},
            {"train": {"batch_size": 4}},
            {"method": {"flip": False}},
            {"seed": 1},
            {"data": {"shuffle": "windowed"}},
            {"fingerprint": "ffff"},
        ],
    )
    def test_what_it_computes_does(self, changes: dict[str, Any]) -> None:
        assert self.name(**changes) != self.name()

    @pytest.mark.parametrize(
        ("preset", "overrides", "name"),
        [
            ("h2z-cyclegan", [], "h2z-cyclegan-82e64cbe"),
            ("h2z", ["initialisation=normal"], "h2z-d7f1ae04"),
            ("demo", ["preset=uaggan", "revision=1", "initialisation=normal"], "demo-d64c299e"),
        ],
    )
    def test_stays_what_it_was_in_the_first_version(
        self, preset: str, overrides: list[str], name: str
    ) -> None:
        config = load(preset, [f"method.networks.{override}" for override in overrides])
        assert specs.run_id(config, MANIFEST) == name


class TestVerdict:
    """The job's last line."""

    def test_is_found_behind_a_prefix(self) -> None:
        line = '(job) AGIT-VERDICT {"kind": "BadInput", "message": "no: {x}"}'
        assert specs.parse_verdict(line) == {"kind": "BadInput", "message": "no: {x}"}

    @pytest.mark.parametrize(
        "line", ["", "AGIT-VERDICT", "AGIT-VERDICT {", "AGIT-VERDICT 3", 'AGIT-VERDICT {"a": 1}']
    )
    def test_other_lines_have_none(self, line: str) -> None:
        assert specs.parse_verdict(line) is None


class ShortJob:
    """A job that runs until it has been waited for three times."""

    waited, stopped = 0, False

    def wait(self, seconds: float) -> bool:
        self.waited += 1
        return self.waited == 3

    def ended(self) -> str | None:
        return None

    def verdict(self) -> dict[str, str] | None:
        return None

    def stop(self) -> None:
        self.stopped = True


def test_a_clock_that_is_put_forward_does_not_use_a_jobs_time_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = itertools.count(step=3600.0)
    monkeypatch.setattr(time, "time", lambda: next(hours))
    job = ShortJob()
    follow._follow(job, str(tmp_path), lambda state: None, limit_s=60)
    assert (job.waited, job.stopped) == (3, False)


def test_a_job_that_takes_longer_than_it_may_is_stopped(tmp_path: Path) -> None:
    job = ShortJob()
    with pytest.raises(RunFailed, match="the job took longer than"):
        follow._follow(job, str(tmp_path), lambda state: None, limit_s=0)
    assert job.stopped


def start_follower(config: Config, data: str, file: Path) -> subprocess.Popen[bytes]:
    """A process that follows the training, as a flow's does."""
    file.write_text(json.dumps(config.plain()))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.launcher", str(file), data],
        stdout=subprocess.DEVNULL,
        stderr=file.with_suffix(".log").open("ab"),
    )


def test_a_folder_that_no_job_made_is_not_removed(tmp_path: Path) -> None:
    """Its name stands in the run's specification, which everybody who can write to the storage can change."""
    for precious in (tmp_path / "agit-precious", tmp_path):
        precious.mkdir(exist_ok=True)
        local.clear(Owner(folder=str(precious), token="nobody's"))
        assert precious.is_dir()
    made = Path(tempfile.mkdtemp(prefix="agit-", dir="/tmp"))
    local.clear(Owner(folder=str(made), token="nobody's"))
    assert not made.exists()


def test_a_package_of_the_users_called_as_ours_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path / "pipeline", tmp_path):
        folder.mkdir(exist_ok=True)
        for name in ("__init__", "redact", "pipeline"):
            (folder / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    job = local.LocalJob.start(Spec(run_id="run", run_uri=str(tmp_path / "run"), job="pipeline.redact"), 1)
    assert job.wait(60)
    assert job.ended() is None


def token_of(run_uri: str) -> str:
    return str(storage.read_json(storage.join(run_uri, "spec.json"))["owner"]["token"])


@pytest.mark.long
def test_trains_shows_progress_and_leaves_nothing_but_the_run(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # somebody's cluster: not ours to use
    monkeypatch.chdir(tmp_path)
    seen: list[dict[str, Any]] = []
    result = follow.train(tiny("./here", workers=1), data, seen.append)

    assert (result.result.steps, result.reused) == (60, False)
    assert Path(result.result.checkpoint).is_dir()
    assert Path(result.uri).is_relative_to(tmp_path / "here" / "runs")
    states = [state["state"] for state in seen]
    assert states[0] == "starting"
    assert states[-1] == "finished"
    steps = [state["step"] for state in seen]
    assert steps == sorted(steps)
    assert all(0 <= state["step"] <= 60 for state in seen)
    assert storage.read_text(storage.join(result.uri, "logs", "attempt-0001.log"))

    spec = storage.read_json(storage.join(result.uri, "spec.json"))
    assert local.carriers(spec["owner"]["token"]) == []
    assert not Path(spec["owner"]["folder"]).exists()
    assert list(home.rglob("*")) == []

    again = follow.train(tiny("./here", workers=2), data)
    assert again.reused
    assert again.result.checkpoint == result.result.checkpoint


@pytest.mark.long
def test_an_ended_launcher_takes_the_job_with_it(data: str, tmp_path: Path) -> None:
    """By SIGTERM at once, after SIGKILL because the job notices; the next launcher resumes."""
    config = tiny(tmp_path, workers=1, max_steps=100_000)
    run_uri = spec_of(config, data).run_uri
    for end in (signal.SIGTERM, signal.SIGKILL):
        follower = start_follower(config, data, tmp_path / "config.json")
        wait_for(lambda: _progress(run_uri).get("state") == "running", "the first step")
        with pytest.raises(RunFailed, match=f"is being trained by process {follower.pid} of this machine"):
            follow.train(config, data)
        token = token_of(run_uri)
        ports = doors.listening(local.carriers(token))
        assert ports
        assert [port for port in ports if port.address not in doors.LOOPBACK] == []
        if end == signal.SIGTERM:
            assert [answer for port in ports for answer in doors.served(port)] == []
        spec = storage.read_json(storage.join(run_uri, "spec.json"))
        sessions = list(Path(spec["owner"]["folder"]).glob("ray/session_2*"))
        assert sessions
        assert [session for session in sessions if doors.enterable(session)] == []
        os.kill(follower.pid, end)
        status = follower.wait(300)
        if end == signal.SIGTERM:
            assert status == 128 + signal.SIGTERM
            assert local.carriers(token) == []
            assert _progress(run_uri)["state"] == "interrupted", "nobody has to wait for its silence"
        wait_for(lambda token=token: not local.carriers(token), "the orphaned job to end")
        storage.remove(storage.join(run_uri, "progress.json"))
    assert storage.read_json(storage.join(run_uri, "spec.json"))["attempt"] == 2


@pytest.mark.long
def test_a_run_that_another_machine_took_over_is_left_to_it(data: str, tmp_path: Path) -> None:
    """This one had been silent, say suspended, for so long that it seemed dead."""
    config = tiny(tmp_path, workers=1, max_steps=100_000, checkpoint_every=2)
    spec = spec_of(config, data)
    run_uri, store, began = spec.run_uri, CheckpointStore(spec.run_uri, keep=1), time.time()
    follower = start_follower(config, data, tmp_path / "config.json")
    wait_for(lambda: store.newest() > 0, "the first checkpoint")
    token = token_of(run_uri)
    specs.write_spec(spec, 2, Owner(host="elsewhere", pid=1, started=1, token="theirs"))
    assert follower.wait(120) == 1
    told = (tmp_path / "config.log").read_text()
    assert f"run {spec.run_id} was started again meanwhile, by process 1 on elsewhere (attempt 2)" in told
    assert local.carriers(token) == []
    assert storage.read_json(storage.join(run_uri, "alive.json"))["time"] > began
    # what became of the run is the other one's to say
    assert _progress(run_uri)["state"] == "running"
    assert "failed" not in [event.kind for event in events.read(run_uri)]


def test_wrong_settings_are_told_without_starting_ray(data: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, workers=3)
    with pytest.raises(BadInput, match="batch of 2 cannot be split over 3 workers"):
        follow.train(config, data)
    run_uri = spec_of(config, data).run_uri
    assert local.carriers(token_of(run_uri)) == []
    # what was wrong is put right: the run starts as if nothing had been
    assert storage.read_json(storage.join(run_uri, "spec.json"))["attempt"] == 1


def test_another_machine_at_work_is_respected(data: str, tmp_path: Path) -> None:
    config = tiny(tmp_path)
    spec = spec_of(config, data)
    specs.write_spec(spec, 1, Owner(host="elsewhere", pid=1, started=1, token="t", folder="f"))
    state = {"state": "running", "time": time.time(), "step": 3}
    storage.write_json(storage.join(spec.run_uri, "progress.json"), state)
    with pytest.raises(RunFailed, match="is being trained by process 1 on elsewhere"):
        follow.train(config, data)


def test_a_cluster_at_work_is_respected_also_from_the_machine_that_asked_it(
    data: str, tmp_path: Path
) -> None:
    config = tiny(tmp_path)
    spec = spec_of(config, data)
    owner = Owner(host=socket.gethostname(), submission_id="x-1", address="http://head:8265")
    specs.write_spec(spec, 1, owner)
    state = {"state": "running", "time": time.time(), "step": 3}
    storage.write_json(storage.join(spec.run_uri, "progress.json"), state)
    with pytest.raises(RunFailed, match="is being trained by job x-1 on http://head:8265"):
        follow.train(config, data)


def test_an_unreachable_cluster_is_told(data: str, tmp_path: Path) -> None:
    config = parse({**TINY, "storage": str(tmp_path), "cluster": {"address": "http://127.0.0.1:9"}})
    with pytest.raises(BadInput, match="does not answer"):
        follow.train(config, data)


def test_a_marked_process_is_found_however_deep_and_swept() -> None:
    token = "test-" + os.urandom(8).hex()
    sleep = "import time; time.sleep(60)"
    child = f"subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)"
    script = f"import subprocess, sys; {child}; {sleep}"
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {local.TOKEN: token})
    wait_for(lambda: len(local.carriers(token)) == 2, "both processes")
    local.sweep(token)
    process.wait()
    assert local.carriers(token) == []


def _progress(run_uri: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = storage.read_json(storage.join(run_uri, "progress.json"))
    except FileNotFoundError:
        return {}
    return state


def test_descendants_are_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert process.pid in processes.descendants(os.getpid())
    assert processes.alive(process.pid)
    process.kill()
    process.wait()
    assert not processes.alive(process.pid)
