"""What a process leaves open to others: ports that it listens on, what they serve, folders that others can enter."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx

# 127.0.0.1 as the kernel writes it, and the same for sockets that speak IPv6 too
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
NOBODY = 65534
RAY_METHODS = (
    "InternalKVGcsService/InternalKVKeys",
    "JobInfoGcsService/GetAllJobInfo",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
)
"""One of each service that a Ray instance has."""


@dataclass(frozen=True)
class Port:
    """A port that a process accepts connections on."""

    command: str
    address: str
    """Hexadecimal, as the kernel writes it."""
    number: int


def listening(pids: list[int]) -> list[Port]:
    """Every TCP port of these processes (Linux)."""
    owners: dict[str, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in list(Path(f"/proc/{pid}/fd").iterdir()):
                with contextlib.suppress(OSError):
                    owners[os.readlink(descriptor)] = pid
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            owner = owners.get(f"socket:[{fields[9]}]")
            if fields[3] == "0A" and owner is not None:
                address, port = fields[1].split(":")
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{owner}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append(Port(command[:80], address, int(port, 16)))
    return found


def served(port: Port) -> list[str]:
    """What somebody without a key gets there, in HTTP and in gRPC; nothing where each request needs one."""
    address = f"127.0.0.1:{port.number}"
    found = []
    closed = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}
    for path in ("/", "/metrics"):
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.get(f"http://{address}{path}", timeout=10)
            if answer.is_success:
                found.append(f"{port.command}: {path}")
    with grpc.insecure_channel(address) as channel, contextlib.suppress(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(2)
        for method in RAY_METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=10)
            except grpc.RpcError as error:
                if error.code() in closed:
                    continue
            found.append(f"{port.command}: {method}")
    return found


def enterable(folder: Path) -> bool:
    """Whether another user could list the folder: asked as one where possible, otherwise judged by its modes."""
    if os.getuid() == 0:
        asked = subprocess.run(
            ["/bin/ls", str(folder)],
            cwd="/",
            env={"LC_ALL": "C"},
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
        assert asked.returncode == 0 or "Permission denied" in asked.stderr, asked.stderr
        return asked.returncode == 0
    modes = [path.stat().st_mode for path in (folder, *folder.absolute().parents)]
    return all(mode & stat.S_IXOTH for mode in modes) and bool(modes[0] & stat.S_IROTH)
