"""Machines on one machine: network namespaces on a bridge, each with its own address and a cable to pull."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

INTERFACE = "eth0"
"""What every machine calls its end of the cable."""


@dataclass
class Machine:
    """A namespace; processes in it reach others only through the cable."""

    name: str
    address: str
    cable: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.name, *command]
        process = subprocess.Popen(
            inside, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.processes.append(process)
        return process

    def pull_cable(self) -> None:
        """Silence: nothing is sent or received any more, and no connection is closed."""
        _ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self.cable, "up")

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]


@dataclass
class Network:
    """The bridge; ``address`` is this process's own on it."""

    address: str
    machines: list[Machine]


@contextlib.contextmanager
def network(machines: int) -> Iterator[Network]:
    """Skips the test where network namespaces are not permitted, as in most containers."""
    number = os.getpid() % 250
    prefix, bridge = f"10.213.{number}", f"agbr{number}"
    made: list[Machine] = []
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{prefix}.1/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for n in range(machines):
                machine = Machine(f"agit{number}-{n}", f"{prefix}.{n + 2}", f"agv{number}-{n}")
                _ip("netns", "add", machine.name)
                made.append(machine)
                _connect(machine, bridge)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", "")
            pytest.skip(f"network namespaces are not permitted here ({error} {told})")
        yield Network(f"{prefix}.1", made)
    finally:
        for machine in made:
            _end(machine)
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
            _ip("link", "del", bridge)


def _connect(machine: Machine, bridge: str) -> None:
    _ip("link", "add", machine.cable, "type", "veth", "peer", INTERFACE, "netns", machine.name)
    _ip("link", "set", machine.cable, "master", bridge, "up")
    _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", INTERFACE)
    for name in ("lo", INTERFACE):
        _ip("-n", machine.name, "link", "set", name, "up")


def _end(machine: Machine) -> None:
    for _ in range(100):
        pids = machine.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            break
        time.sleep(0.1)
    for process in machine.processes:
        process.wait()
    _ip("netns", "del", machine.name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
