"""The training job as a local process with a private Ray instance."""

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
from typing import IO

import pipeline
from pipeline import ray_session, storage
from pipeline.launch.specs import parse_verdict, write_spec
from pipeline.records import Owner, Spec
from pipeline.train.lease import TOKEN, this_process

output = logging.getLogger("pipeline.train.output")
"""Every line of the job's output, at level INFO."""

_STOP_SECONDS = 15.0


class LocalJob:
    """``python -m pipeline.train_job SPEC_URI`` in a separate session.

    The job ends when its launcher dies. After the job's end, the launcher kills all processes that the job left, which
    it finds by the token in their environment.
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
    def start(cls, spec: Spec, attempt: int) -> LocalJob:
        """Write the specification and start the job."""
        # a short path, because it holds sockets, whose paths are limited to 107 bytes
        folder = Path(tempfile.mkdtemp(prefix="agit-", dir="/tmp" if os.path.isdir("/tmp") else None))
        owner = Owner(**this_process(), folder=str(folder))
        token = str(owner.token)
        spec_uri = write_spec(spec, attempt, owner)
        # pass on the user's Ray settings, except the address and keys of another Ray instance
        environment = {k: v for k, v in os.environ.items() if k not in ray_session.OTHER_CLUSTER}
        environment |= {
            TOKEN: token,
            "AGIT_LAUNCHER_PID": str(owner.pid),
            "AGIT_RAY_FOLDER": str(folder),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": _python_path(),
            # the working directory may contain a package of the same name as ours
            "PYTHONSAFEPATH": "1",
            **ray_session.environment(),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", spec.job, spec_uri],
            env=environment,
            # Ray puts the driver's working directory first on the workers' import path
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(process, token, folder, storage.join(spec.run_uri, "logs", f"attempt-{attempt:04d}.log"))

    def wait(self, seconds: float) -> bool:
        """Wait for at most ``seconds``; return whether the job has ended."""
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
        last = next((line.strip() for line in reversed(self._tail) if line.strip()), "no output")
        return f"exit status {code}: {last[:300]}"

    def verdict(self) -> dict[str, str] | None:
        """Cause of the failure that the job printed, if any."""
        if self._verdict is None and self._process.returncode == 2:
            return {"kind": "BadInput", "message": f"the job ended with {self.ended()}"}
        return self._verdict

    def stop(self) -> None:
        """Terminate the job, then kill what is left of it."""
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


def clear(owner: Owner) -> None:
    """Clean up after a job whose launcher on this machine has died; a search's trials belong to the search's job."""
    if owner.folder is not None:
        if owner.token:
            sweep(owner.token)
        if _made_here(Path(owner.folder)):
            shutil.rmtree(owner.folder, ignore_errors=True)


def _made_here(folder: Path) -> bool:
    """Whether :meth:`LocalJob.start` created a folder; its name comes from the storage and cannot be trusted."""
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
    """Kill every process with a job's token in its environment and wait until they have ended (Linux)."""
    until = time.monotonic() + seconds
    while (found := carriers(token)) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def carriers(token: str, variable: str = TOKEN) -> list[int]:
    """Ids of the processes with this token in their environment, except zombies (Linux)."""
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
