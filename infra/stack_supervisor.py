"""The stack's processes, kept alive by supervisord: start, look, stop, and nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

from agit_core.errors import BadInput, RunFailed
from infra.stack_programs import Program, socket_of, supervisor_config
from infra.stack_state import MARK, Stack, write_private
from pipeline import http_health
from pipeline.launch.local import carriers

# on a slow, busy machine Prefect's sixty migrations alone take minutes
_READY_SECONDS = 900.0
_STOP_SECONDS = 90.0
_GAVE_UP = {"FATAL", "UNKNOWN"}


def start(stack: Stack, found: list[Program]) -> None:
    """Starts the supervisor, which starts nothing yet.

    Raises:
        RunFailed: it does not start.
    """
    stack.logs.mkdir(parents=True, exist_ok=True)
    config = stack.folder / "supervisord.conf"
    write_private(config, supervisor_config(stack, found))
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(config)],
        cwd=stack.root,
        env=stack.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RunFailed(f"supervisord did not start: {' '.join((done.stdout + done.stderr).split())[-300:]}")
    until = time.monotonic() + _READY_SECONDS
    while not alive(stack):
        if time.monotonic() > until:
            raise RunFailed(f"supervisord does not answer; its log is {stack.logs / 'supervisor.log'}")
        time.sleep(0.1)


def alive(stack: Stack) -> bool:
    """Whether the supervisor answers."""
    with contextlib.suppress(OSError, Fault):
        return bool(_calls(stack).supervisor.getState()["statename"] in {"RUNNING", "RESTARTING"})
    return False


def run(stack: Stack, name: str) -> None:
    """Starts a program unless it runs; returns at once."""
    if states(stack).get(name, {}).get("state") in {"RUNNING", "STARTING"}:
        return
    try:
        _calls(stack).supervisor.startProcess(name, False)
    except Fault as fault:
        raise RunFailed(
            f"{name} cannot be started ({fault.faultString}); its log is {_log(stack, name)}"
        ) from None


def wait_until_ready(stack: Stack, program: Program) -> None:
    """Returns when the program runs and answers.

    Raises:
        RunFailed: it does not, or ends again and again.
    """
    until = time.monotonic() + _READY_SECONDS
    while True:
        state = states(stack)[program.name]["state"]
        if state == "RUNNING" and answers(program):
            return
        if state in _GAVE_UP or time.monotonic() > until:
            raise RunFailed(
                f"{program.name} does not {'start' if state in _GAVE_UP else 'answer'} ({state.lower()}): "
                f"{_last_line(_log(stack, program.name))}; its log is {_log(stack, program.name)}"
            )
        time.sleep(0.2)


def states(stack: Stack) -> dict[str, dict[str, Any]]:
    """``state`` and ``pid`` (0: none) of every program, by name."""
    told: Any = _calls(stack).supervisor.getAllProcessInfo()
    return {item["name"]: {"state": item["statename"], "pid": int(item["pid"])} for item in told}


def answers(program: Program) -> bool:
    """Whether its server answers; a program that serves nobody always does."""
    if program.url is None:
        return True
    status, _ = http_health.ask(f"{program.url}{program.health}", timeout=5)
    return status is not None and status < 500  # below that it wants a key


def stop(stack: Stack) -> list[int]:
    """Stops the programs in the reverse order of their start, then the supervisor, then whatever is left.

    Returns:
        the processes that had to be killed because nothing else ended them.
    """
    with contextlib.suppress(OSError, Fault):
        _calls(stack).supervisor.shutdown()
    until = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < until and _supervisors(stack):
        time.sleep(0.2)
    killed: set[int] = set()
    until = time.monotonic() + _STOP_SECONDS
    while (left := processes(stack)) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        killed |= set(left)
        time.sleep(0.1)
    if left:
        raise RunFailed(f"processes {', '.join(map(str, left))} of the stack do not end")
    shutil.rmtree(stack.runtime, ignore_errors=True)
    return sorted(killed)


def processes(stack: Stack) -> list[int]:
    """All processes of the stack, found by its mark in their environment (Linux); zombies not counted."""
    return carriers(stack.token, MARK)


def _supervisors(stack: Stack) -> list[int]:
    return [
        pid for pid in processes(stack) if b"supervisor.supervisord" in _command(pid) and pid != os.getpid()
    ]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _calls(stack: Stack) -> Any:
    try:
        from supervisor.xmlrpc import SupervisorTransport
    except ImportError:
        raise BadInput(
            "the package supervisor is not installed; uv pip install -c constraints.txt -e '.[pipeline,stack]'"
        ) from None
    transport = SupervisorTransport("", "", f"unix://{socket_of(stack)}")
    return ServerProxy("http://127.0.0.1", transport=transport)


def _log(stack: Stack, name: str) -> Path:
    return stack.logs / f"{name}.log"


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return lines[-1].strip()[:300]
    return "it said nothing"
