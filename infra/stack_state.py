"""What a development stack is: its folder, ports, keys and the environment of everything in it.

``.agit/stack/`` holds ``stack.json`` (where it listens; no secret), ``keys.json`` and ``env`` (both readable by
their owner alone), ``logs/`` and the servers' data. Keys are made once; ports and sockets anew by each ``up``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import infra
from agit_core.errors import BadInput

MARK = "AGIT_STACK"
"""Environment variable that marks every process of a stack, however deep."""
BUCKET = "agit"
KEYS = "keys.json"
PORTS = {"s3": 9000, "prefect": 4200, "mlflow": 5000, "ray": 8265}
"""Addresses that people open; where Ray's parts meet each other is nobody's business."""
_RAY_INTERNAL = ("ray_gcs", "ray_client")
_SERVER_PORTS = range(20000, 32768)
"""Below those of outgoing connections (Linux: 32768 and more), above the ones that Ray gives its workers."""
# what somebody else's servers are called must not leak into this stack
_FOREIGN = ("AWS_", "PREFECT_", "MLFLOW_", "RAY_", "RCLONE_", "AGIT_")
CODE = Path(infra.__file__).parents[1]


@dataclass(frozen=True)
class Stack:
    """A stack that runs or is about to."""

    root: Path
    """The working directory; relative paths of flow runs start there."""
    ports: dict[str, int]
    token: str
    runtime: Path
    """Sockets: a path longer than 107 bytes would not do."""
    keys: dict[str, str] = field(repr=False, default_factory=dict)

    @classmethod
    def new(cls, root: Path, free_ports: bool = False) -> Stack:
        """A stack for this folder, on the usual ports or on free ones.

        Raises:
            BadInput: a port is taken.
        """
        ports = {name: free_port() for name in PORTS} if free_ports else dict(PORTS)
        for name, port in ports.items():
            if not free_ports and taken(port):
                raise BadInput(
                    f"port {port} for {name} is taken on this machine; stop what uses it, "
                    "or take free ports with `agit-stack up --free-ports`"
                )
        ports |= {name: free_port() for name in _RAY_INTERNAL}
        runtime = Path(tempfile.mkdtemp(prefix="agit-stack-", dir="/tmp" if os.path.isdir("/tmp") else None))
        stack = cls(root, ports, secrets.token_hex(8), runtime, _keys(folder_of(root)))
        write_private(
            stack.env_file, "".join(f"export {k}={shlex.quote(v)}\n" for k, v in stack.client.items())
        )
        return stack

    @classmethod
    def find(cls, root: Path) -> Stack | None:
        """The stack that was started in this folder and not taken down."""
        folder = folder_of(root)
        try:
            told = json.loads((folder / "stack.json").read_text())
            return cls(root, told["ports"], told["token"], Path(told["runtime"]), _keys(folder))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError):
            raise BadInput(f"{folder / 'stack.json'} is damaged; end its processes and remove it") from None

    def save(self) -> None:
        """Writes ``stack.json``: from then on `prefect` in this folder knows the server."""
        told = asdict(self) | {"root": str(self.root), "runtime": str(self.runtime)}
        told = {k: v for k, v in told.items() if k != "keys"} | {"prefect_api_url": self.prefect_api_url}
        temporary = self.folder / "stack.json.part"
        temporary.write_text(json.dumps(told, indent=1) + "\n")
        temporary.replace(self.folder / "stack.json")

    def forget(self) -> None:
        (self.folder / "stack.json").unlink(missing_ok=True)

    @property
    def folder(self) -> Path:
        return folder_of(self.root)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def prefect_api_url(self) -> str:
        return f"{self.url('prefect')}/api"

    @property
    def client(self) -> dict[str, str]:
        """What a shell or a process needs to use the stack; holds the keys."""
        return {
            "PREFECT_API_URL": self.prefect_api_url,
            "PREFECT_API_AUTH_STRING": self.keys["prefect"],
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "AGIT_STORAGE": f"s3://{BUCKET}/storage",
            "AGIT_RAY_ADDRESS": self.url("ray"),
            "AWS_ENDPOINT_URL": self.url("s3"),
            "AWS_ACCESS_KEY_ID": self.keys["s3_id"],
            "AWS_SECRET_ACCESS_KEY": self.keys["s3_secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.keys["ray_token"],
        }

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the stack's processes."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
        python = os.pathsep.join([str(CODE), *filter(None, [kept.get("PYTHONPATH")])])
        return {
            **kept,
            **self.client,
            MARK: self.token,
            "PATH": path,
            "PYTHONPATH": python,
            "PYTHONUNBUFFERED": "1",
            "PWD": str(self.root),
            "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_API_AUTH_STRING": self.keys["prefect"],
            # pages of the server itself, by either of its names; by default pages of any site may call its API
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
                f"http://{host}:{self.ports['prefect']}" for host in ("127.0.0.1", "localhost")
            ),
            # slots of the concurrency limits survive a restart of the server, and end with their lease
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
            "RAY_USAGE_STATS_ENABLED": "0",
            # on the command line every user of the machine could read it
            "RCLONE_AUTH_KEY": f'"{self.keys["s3_id"]},{self.keys["s3_secret"]}"',
        }


def folder_of(root: Path) -> Path:
    return root / ".agit" / "stack"


def _keys(folder: Path) -> dict[str, str]:
    """The stack's keys by name, made where they are missing."""
    path = folder / KEYS
    before: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        before = json.loads(path.read_text())
    keys = {
        "s3_id": f"agit{secrets.token_hex(8)}",
        "s3_secret": secrets.token_hex(24),
        "ray_token": secrets.token_hex(32),
        "prefect": f"agit:{secrets.token_hex(32)}",
    } | before
    if keys != before:
        write_private(path, json.dumps(keys, indent=1) + "\n")
    return keys


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read, at no moment otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    temporary.replace(path)


def free_port() -> int:
    """A port that nobody holds on any address of this machine, for a server that starts in a while.

    Not one that the kernel gives out: it numbers outgoing connections from the same range, and on a busy machine
    one of those is likely to have it by then.
    """
    return next(port for port in secrets.SystemRandom().sample(_SERVER_PORTS, 1000) if not taken(port, ""))


def taken(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server cannot listen there; the empty address stands for all of them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False
