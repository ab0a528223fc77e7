"""Control of the stack's processes through supervisord: start, inspect, stop, clean up."""

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

# on a slow, busy machine, Prefect's sixty database migrations alone take minutes
_READY_SECONDS = 900.0
_STOP_SECONDS = 90.0
_GAVE_UP = {"FATAL", "UNKNOWN"}


def start(stack: Stack, found: list[Program]) -> None:
    """Start the supervisor, without any of its programs.

    Raises:
        RunFailed: it does not start or does not respond.
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
            raise RunFailed(f"supervisord does not respond; see its log {stack.logs / 'supervisor.log'}")
        time.sleep(0.1)


def alive(stack: Stack) -> bool:
    """Whether the supervisor responds."""
    with contextlib.suppress(OSError, Fault):
        return bool(_calls(stack).supervisor.getState()["statename"] in {"RUNNING", "RESTARTING"})
    return False


def run(stack: Stack, name: str) -> None:
    """Start a program unless it is running; do not wait for it.

    Raises:
        RunFailed: it cannot be started.
    """
    if states(stack).get(name, {}).get("state") in {"RUNNING", "STARTING"}:
        return
    try:
        _calls(stack).supervisor.startProcess(name, False)
    except Fault as fault:
        raise RunFailed(
            f"{name} cannot be started ({fault.faultString}); see its log {_log(stack, name)}"
        ) from None


def wait_until_ready(stack: Stack, program: Program) -> None:
    """Wait until a program runs and its health check succeeds.

    Raises:
        RunFailed: timeout, or the program keeps exiting.
    """
    until = time.monotonic() + _READY_SECONDS
    while True:
        state = states(stack)[program.name]["state"]
        if state == "RUNNING" and answers(program):
            return
        if state in _GAVE_UP or time.monotonic() > until:
            raise RunFailed(
                f"{program.name} does not {'start' if state in _GAVE_UP else 'respond'} ({state.lower()}): "
                f"{_last_line(_log(stack, program.name))}; see its log {_log(stack, program.name)}"
            )
        time.sleep(0.2)


def states(stack: Stack) -> dict[str, dict[str, Any]]:
    """``state`` and ``pid`` (0: not running) of every program, by name."""
    processes: Any = _calls(stack).supervisor.getAllProcessInfo()
    return {item["name"]: {"state": item["statename"], "pid": int(item["pid"])} for item in processes}


def answers(program: Program) -> bool:
    """Whether the program's health check responds; always true for a program without one."""
    if program.url is None:
        return True
    status, _ = http_health.ask(f"{program.url}{program.health}", timeout=5)
    return status is not None and status < 500  # 4xx: it runs but requires a key


def stop(stack: Stack) -> list[int]:
    """Stop the programs in reverse order, then the supervisor, then kill all remaining processes of the stack.

    Returns:
        ids of the processes that had to be killed.

    Raises:
        RunFailed: processes survived.
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
        raise RunFailed(f"processes {', '.join(map(str, left))} of the stack cannot be killed")
    shutil.rmtree(stack.runtime, ignore_errors=True)
    return sorted(killed)


def processes(stack: Stack) -> list[int]:
    """Ids of all processes with the stack's mark in their environment (Linux), except zombies."""
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
            "the package supervisor is not installed; run uv pip install -c constraints.txt -e '.[pipeline,stack]'"
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
    return "its log is empty"
