"""Who may train a run, and how a job learns that it no longer does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agit_core.errors import RunFailed
from pipeline import storage
from pipeline.launch import specs
from pipeline.records import SPEC, Owner, Spec
from pipeline.train import lease
from tests.pipeline.training import wait_for

ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": 1, "token": "theirs"}


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "runs" / "h2z-1")


def write(run_uri: str, owner: dict[str, Any]) -> Spec:
    specs.write_spec(Spec(run_id="h2z-1", run_uri=run_uri), 3, Owner(**owner))
    specification = SPEC.read(run_uri)
    assert specification is not None
    return specification


def tell(run_uri: str, state: str, age: float) -> None:
    progress = {"state": state, "time": time.time() - age}
    storage.write_json(storage.join(run_uri, "progress.json"), progress)


class TestSecond:
    """``refuse_second``: before a run is started."""

    def test_nobody_was_there(self, run_uri: str) -> None:
        assert lease.refuse_second(run_uri) is None

    def test_a_process_of_this_machine(self, run_uri: str) -> None:
        """As long as it lives, whatever its progress; a process that reuses its id is another one."""
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        try:
            owner = lease.this_process() | {
                "pid": process.pid,
                "started": lease.process_started(process.pid),
            }
            write(run_uri, owner)
            tell(run_uri, "starting", 3600)
            with pytest.raises(RunFailed, match=f"by process {process.pid} of this machine; wait for it"):
                lease.refuse_second(run_uri)
            before = write(run_uri, owner | {"started": owner["started"] - 1})
            assert lease.refuse_second(run_uri) == before
        finally:
            process.kill()
            process.wait()
        tell(run_uri, "running", 1)
        before = write(run_uri, owner)
        assert lease.refuse_second(run_uri) == before

    def test_this_process_itself(self, run_uri: str) -> None:
        before = write(run_uri, lease.this_process())
        assert lease.refuse_second(run_uri) == before

    @pytest.mark.parametrize("key", ["boot_id", "pid_namespace"])
    def test_another_machine_with_the_same_name(self, run_uri: str, key: str) -> None:
        """Its process is not searched here, where it cannot be."""
        owner = lease.this_process() | {"started": 1}
        assert key in owner
        write(run_uri, owner | {key: "another"})
        tell(run_uri, "running", 1)
        with pytest.raises(RunFailed, match="is being trained by process"):
            lease.refuse_second(run_uri)
        # as earlier versions wrote it
        del owner[key]
        assert lease.is_here(owner)

    @pytest.mark.parametrize(
        ("state", "age", "refused"),
        [
            ("running", 2, True),
            ("starting", 2, True),
            ("running", 60, False),
            ("starting", 60, False),
            ("failed", 1, False),
            ("running", -20, True),
            ("running", -7200, False),
        ],
    )
    def test_another_machine(
        self, run_uri: str, state: str, age: float, refused: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lease, "_AGAIN_SECONDS", 0.0)
        before = write(run_uri, ELSEWHERE)
        tell(run_uri, state, age)
        if refused:
            with pytest.raises(RunFailed, match="run h2z-1 is being trained by process 1 on elsewhere"):
                lease.refuse_second(run_uri)
        else:
            assert lease.refuse_second(run_uri) == before
        assert lease.refuse_second(run_uri, host="elsewhere") == before

    @pytest.mark.parametrize("state", ["starting", "running"])
    def test_another_machine_whose_workers_wait_or_are_started_anew(
        self, run_uri: str, state: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They report no progress meanwhile, but their job is alive."""
        monkeypatch.setattr(lease, "_AGAIN_SECONDS", 0.0)
        monkeypatch.setattr(lease, "_BEAT_SECONDS", 0.01)
        before = write(run_uri, ELSEWHERE)
        tell(run_uri, state, 3600)
        sign = storage.join(run_uri, "alive.json")
        with lease.alive(run_uri):
            for _ in range(2):  # there is more than one beat
                wait_for(lambda: storage.exists(sign), "a heartbeat")
                with pytest.raises(RunFailed, match="is being trained by process 1 on elsewhere"):
                    lease.refuse_second(run_uri)
                storage.remove(sign)
        storage.write_json(sign, {"time": time.time() - 60})
        assert lease.refuse_second(run_uri) == before
        with lease.alive(run_uri):
            tell(run_uri, "failed", 1)
            assert lease.refuse_second(run_uri) == before, "this is an end"

    def test_a_storage_that_is_away_does_not_end_a_job(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with lease.alive(str(tmp_path / "file")):
            time.sleep(0.05)

    @pytest.mark.parametrize("age", [3600, -3600])
    @pytest.mark.parametrize(("then", "refused"), [("running", True), ("failed", False)])
    def test_another_machine_whose_clock_differs(
        self, run_uri: str, age: float, then: str, refused: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What counts is a new heartbeat while we wait, not its time."""
        before = write(run_uri, ELSEWHERE)
        tell(run_uri, "running", age)
        monkeypatch.setattr(time, "sleep", lambda seconds: tell(run_uri, then, age - seconds))
        if refused:
            with pytest.raises(RunFailed, match="by process 1 on elsewhere"):
                lease.refuse_second(run_uri)
        else:
            assert lease.refuse_second(run_uri) == before


class TestTakenOver:
    """``confirm`` when a job begins, ``check`` while it trains."""

    def test_the_specification_is_another_launchers(
        self, run_uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        specification = write(run_uri, ELSEWHERE)
        monkeypatch.setenv(lease.TOKEN, "mine")
        with pytest.raises(lease.TakenOver, match="by process 1 on elsewhere"):
            specs.read_spec(storage.join(run_uri, "spec.json"))
        monkeypatch.setenv(lease.TOKEN, "theirs")
        assert specs.read_spec(storage.join(run_uri, "spec.json")) == specification

    @pytest.mark.parametrize(
        "owner", [ELSEWHERE, {"submission_id": "h2z-1-4", "address": "http://head:8265", "token": "theirs"}]
    )
    def test_a_job_that_no_launcher_started(
        self, run_uri: str, owner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A RayJob: the specification that was made for it, or for nobody, but not a launcher's."""
        monkeypatch.delenv(lease.TOKEN, raising=False)
        uri = storage.join(run_uri, "spec.json")
        for accepted in ({}, {"token": "of agit spec"}):
            assert write(run_uri, accepted) == specs.read_spec(uri)
        write(run_uri, owner)
        with pytest.raises(lease.TakenOver, match=r"h2z-1 was started by .*; leave it to that one, or call"):
            specs.read_spec(uri)

    def test_another_launcher_wrote_its_own(self, run_uri: str) -> None:
        mine = write(run_uri, lease.this_process())
        lease.check(mine)
        cluster = {"host": os.uname().nodename, "submission_id": "h2z-1-4", "address": "http://head:8265"}
        write(run_uri, cluster | {"token": "session/h2z-1-4"})
        with pytest.raises(lease.TakenOver, match="by job h2z-1-4 on http://head:8265"):
            lease.check(mine)

    def test_no_sign_of_another(self, run_uri: str) -> None:
        """A folder that was removed, or a specification without an owner, takes nothing over."""
        lease.check(Spec(run_id="h2z-1", run_uri=run_uri, owner=Owner(**lease.this_process())))
        lease.check(write(run_uri, {}))
