"""The training job as a process of this machine, with a Ray of its own and nothing left behind."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import pipeline
from pipeline import ray_session, storage
from pipeline.launch.specs import parse_verdict, write_spec
from pipeline.train.lease import TOKEN, this_process

output = logging.getLogger("pipeline.train.output")
"""Every line of the job's output, at level INFO."""

_STOP_SECONDS = 15.0


class LocalJob:
    """``python -m pipeline.train_job SPEC_URI`` in its own session.

    The job watches its launcher and ends when that is gone; the launcher, when it ends or stops the job,
    also ends whatever the job left, which it finds by the token in the environment.
    """

    def __init__(self, process: subprocess.Popen[bytes], token: str, folder: Path, log_uri: str) -> None:
        self._process = process
        self._token = token
        self._folder = folder
        self._log_uri = log_uri
        self._verdict: dict[str, str] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=2000)
        self._stopped = False
        assert process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(process.stdout,), name="job-output", daemon=True
        )
        self._reader.start()

    @classmethod
    def start(cls, spec: dict[str, Any], attempt: int) -> LocalJob:
        """Starts the job."""
        # sockets live in it: a path longer than 107 bytes would not do
        folder = Path(tempfile.mkdtemp(prefix="agit-", dir="/tmp" if os.path.isdir("/tmp") else None))
        owner = this_process() | {"folder": str(folder)}
        token = owner["token"]
        spec_uri = write_spec(spec, attempt, owner)
        # the user's settings of Ray are handed on, but not the address and the keys of another Ray that runs here
        environment = {k: v for k, v in os.environ.items() if k not in ray_session.OTHER_CLUSTER}
        environment |= {
            TOKEN: token,
            "AGIT_LAUNCHER_PID": str(owner["pid"]),
            "AGIT_RAY_FOLDER": str(folder),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": _python_path(),
            # the command's folder may hold a package called as ours
            "PYTHONSAFEPATH": "1",
            **ray_session.environment(),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", spec.get("job", "pipeline.train_job"), spec_uri],
            env=environment,
            # Ray puts its driver's folder before all others on the paths of its workers
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(
            process, token, folder, storage.join(spec["run_uri"], "logs", f"attempt-{attempt:04d}.log")
        )

    def wait(self, seconds: float) -> bool:
        """Waits at most so long; True when the job has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        if self._process.returncode is None:
            return False
        self._clean()
        return True

    def ended(self) -> str | None:
        """None after success, otherwise how it ended."""
        code = self._process.returncode
        if code == 0:
            return None
        if code < 0:
            return f"killed by signal {-code}"
        said = next((line.strip() for line in reversed(self._tail) if line.strip()), "nothing was said")
        return f"exit status {code}: {said[:300]}"

    def verdict(self) -> dict[str, str] | None:
        """What the job said about its failure."""
        if self._verdict is None and self._process.returncode == 2:
            return {"kind": "BadInput", "message": f"the job ended with {self.ended()}"}
        return self._verdict

    def stop(self) -> None:
        """Asks the job to end, then makes sure of it."""
        if self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self._clean()

    def _clean(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        sweep(self._token)
        self._process.wait()
        self._reader.join(timeout=5)
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(Exception):  # the log informs; nothing depends on it
            storage.write_text(self._log_uri, "".join(self._tail))

    def _read(self, stream: IO[bytes]) -> None:
        for raw in stream:
            line = raw.decode(errors="replace")
            self._tail.append(line)
            self._verdict = parse_verdict(line) or self._verdict
            output.info(line.rstrip())


def clear(owner: dict[str, Any]) -> None:
    """Removes what a job of a dead launcher on this machine left; a search's trial belongs to its search."""
    if "folder" in owner:
        sweep(owner["token"])
        if _made_here(Path(owner["folder"])):
            shutil.rmtree(owner["folder"], ignore_errors=True)


def _made_here(folder: Path) -> bool:
    """Whether it is one of :meth:`LocalJob.start`: its name comes from the storage, into which others may write."""
    if folder.parent not in {Path("/tmp"), Path(tempfile.gettempdir())} or not folder.name.startswith(
        "agit-"
    ):
        return False
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def sweep(token: str, seconds: float = 5.0) -> None:
    """Kills every process that carries a job's token and waits until they are gone (Linux)."""
    until = time.monotonic() + seconds
    while (found := carriers(token)) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def carriers(token: str, variable: str = TOKEN) -> list[int]:
    """Processes whose environment carries the token in this variable, zombies not counted (Linux)."""
    mark = f"{variable}={token}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _python_path() -> str:
    root = str(Path(pipeline.__file__).parents[1])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
