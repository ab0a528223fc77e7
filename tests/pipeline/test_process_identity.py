"""Processes left behind by the one that started them, and heartbeats of those that live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from agit_core.errors import RunFailed
from pipeline.process_identity import heartbeat
from tests.pipeline.training import wait_for

CHILD = """
import os, pathlib, sys, time
from pipeline.process_identity import when_orphaned

def leave():
    pathlib.Path(sys.argv[1], "left").touch()
    os._exit(0)

when_orphaned(os.getppid(), leave)
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(300)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def test_an_orphan_leaves_and_nobody_else(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path)])
    pid = tmp_path / "pid"
    wait_for(lambda: pid.is_file() and pid.read_text() != "", "the child", 60)
    child = int(pid.read_text())
    try:
        with_parent = (tmp_path / "left").exists()
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        wait_for((tmp_path / "left").exists, "the orphan's end", 60)
        assert not with_parent
    finally:
        if not (tmp_path / "left").exists():
            os.kill(child, signal.SIGKILL)


def test_a_heartbeat_outlives_a_silent_storage_and_ends_with_its_block() -> None:
    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) == 1:
            raise RunFailed("the storage does not answer")

    with heartbeat(beat, 0.01, "test", at_once=True):
        wait_for(lambda: len(beats) >= 3, "beats after one that failed", 60)
    assert "test" not in {thread.name for thread in threading.enumerate()}
    before = len(beats)
    with heartbeat(beat, 600, "test"):
        pass
    assert len(beats) == before, "the first beat waits its turn"
