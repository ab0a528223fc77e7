"""A server of ours as users start it: a separate process, found by the address that it prints."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.pipeline.command import environment

DEADLINE = 240.0


@contextlib.contextmanager
def started(*arguments: str | Path, cwd: Path, pattern: str = r"http://\S+:\d+") -> Iterator[str]:
    """Runs a module with these arguments until the block ends; gives the first address it prints.

    Ended as by Ctrl-C, which must be enough and must count as success.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True)
    sentence: list[str] = []
    found = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            sentence.append(line)
            if re.search(pattern, line):
                found.set()
        found.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert found.wait(DEADLINE), "no address: " + "".join(sentence)
        match = next((m for line in sentence if (m := re.search(pattern, line))), None)
        assert match is not None, "".join(sentence)
        yield match[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0, "".join(sentence)
    finally:
        process.kill()
        process.wait()


def eventually(condition: object, what: str) -> None:
    """Waits for ``condition()`` to be true."""
    assert callable(condition)
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(what)
