"""A process that is left behind by the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

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
