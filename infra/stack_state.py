"""State of a development stack: folder, ports, keys, and the environment of its processes.

``.agit/stack/`` holds ``stack.json`` (addresses, no secrets), ``keys.json`` and ``env`` (both readable by their owner
only), ``logs/`` and the servers' data. Keys are generated once; ports and sockets are new for each ``up``.
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
"""Environment variable that marks every process of a stack, including all descendants."""
BUCKET = "agit"
USER = "agit"
"""Name of the only user of MLflow's server."""
KEYS = "keys.json"
PORTS = {"s3": 9000, "prefect": 4200, "mlflow": 5000, "ray": 8265}
"""Default ports of the user-facing servers; Ray's internal ports are always free ones."""
_RAY_INTERNAL = ("ray_gcs", "ray_client")
_SERVER_PORTS = range(20000, 32768)
"""Below the ephemeral ports (Linux: 32768 and up), above the ports of Ray's workers."""
# prefixes of environment variables to drop: settings for other servers must not leak into this stack
_FOREIGN = ("AWS_", "PREFECT_", "MLFLOW_", "RAY_", "RCLONE_", "AGIT_")
CODE = Path(infra.__file__).parents[1]


@dataclass(frozen=True)
class Stack:
    """A running stack, or one that is being started."""

    root: Path
    """Working directory of the stack and of its flow runs."""
    ports: dict[str, int]
    token: str
    runtime: Path
    """Folder for sockets; it needs a short path, because socket paths are limited to 107 bytes."""
    keys: dict[str, str] = field(repr=False, default_factory=dict)

    @classmethod
    def new(cls, root: Path, free_ports: bool = False) -> Stack:
        """Create a stack for this folder, on the default ports or on free ones.

        Raises:
            BadInput: a default port is in use.
        """
        ports = {name: free_port() for name in PORTS} if free_ports else dict(PORTS)
        for name, port in ports.items():
            if not free_ports and taken(port):
                raise BadInput(
                    f"port {port} for {name} is already in use on this machine; stop the program that uses it, "
                    "or use free ports with `agit-stack up --free-ports`"
                )
        ports |= {name: free_port() for name in _RAY_INTERNAL}
        runtime = Path(tempfile.mkdtemp(prefix="agit-stack-", dir="/tmp" if os.path.isdir("/tmp") else None))
        stack = cls(root, ports, secrets.token_hex(8), runtime, _keys(folder_of(root)))
        write_private(stack.mlflow_users, _mlflow_users(stack))
        write_private(
            stack.env_file, "".join(f"export {k}={shlex.quote(v)}\n" for k, v in stack.client.items())
        )
        return stack

    @classmethod
    def find(cls, root: Path) -> Stack | None:
        """The stack that was started in this folder and not stopped, or None.

        Raises:
            BadInput: ``stack.json`` is damaged.
        """
        folder = folder_of(root)
        try:
            saved = json.loads((folder / "stack.json").read_text())
            return cls(root, saved["ports"], saved["token"], Path(saved["runtime"]), _keys(folder))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError):
            raise BadInput(
                f"{folder / 'stack.json'} is damaged; end the stack's processes and remove the file"
            ) from None

    def save(self) -> None:
        """Write ``stack.json``, by which `prefect` commands in this folder find the server."""
        state = asdict(self) | {"root": str(self.root), "runtime": str(self.runtime)}
        state = {k: v for k, v in state.items() if k != "keys"} | {"prefect_api_url": self.prefect_api_url}
        temporary = self.folder / "stack.json.part"
        temporary.write_text(json.dumps(state, indent=1) + "\n")
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

    @property
    def mlflow_users(self) -> Path:
        """Configuration of the users of MLflow's server: one, with a password."""
        return self.folder / "mlflow-users.ini"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def prefect_api_url(self) -> str:
        return f"{self.url('prefect')}/api"

    @property
    def client(self) -> dict[str, str]:
        """Environment variables for clients of the stack, including the keys."""
        return {
            "PREFECT_API_URL": self.prefect_api_url,
            "PREFECT_API_AUTH_STRING": self.keys["prefect"],
            "MLFLOW_TRACKING_URI": self.url("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.keys["mlflow"],
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
        """Environment of the stack's processes."""
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
            # only the server's own UI, under both host names; the default lets pages of any site call the API
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
                f"http://{host}:{self.ports['prefect']}" for host in ("127.0.0.1", "localhost")
            ),
            # concurrency limit slots survive a restart of the server and expire with their lease
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_AUTH_CONFIG_PATH": str(self.mlflow_users),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.keys["mlflow"],
            "GIT_PYTHON_REFRESH": "quiet",
            "RAY_USAGE_STATS_ENABLED": "0",
            # not on the command line, where every user of the machine could read it
            "RCLONE_AUTH_KEY": f'"{self.keys["s3_id"]},{self.keys["s3_secret"]}"',
        }


def folder_of(root: Path) -> Path:
    return root / ".agit" / "stack"


def _mlflow_users(stack: Stack) -> str:
    lines = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{stack.folder / 'mlflow-users.db'}",
        "admin_username": USER,
        "admin_password": stack.keys["mlflow"],
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    return "\n".join(["[mlflow]", *(f"{key} = {value}" for key, value in lines.items()), ""])


def _keys(folder: Path) -> dict[str, str]:
    """The stack's keys by name; generates and stores missing ones."""
    path = folder / KEYS
    stored: dict[str, str] = {}
    with contextlib.suppress(FileNotFoundError):
        stored = json.loads(path.read_text())
    keys = {
        "s3_id": f"agit{secrets.token_hex(8)}",
        "s3_secret": secrets.token_hex(24),
        "ray_token": secrets.token_hex(32),
        "prefect": f"agit:{secrets.token_hex(32)}",
        "mlflow": secrets.token_hex(24),
    } | stored
    if keys != stored:
        write_private(path, json.dumps(keys, indent=1) + "\n")
    return keys


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only from the moment it is created."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    temporary.replace(path)


def free_port() -> int:
    """A port that is free on all addresses of this machine, for a server that starts later.

    Not an ephemeral port from the kernel: on a busy machine, an outgoing connection could take it before the server
    starts.
    """
    return next(port for port in secrets.SystemRandom().sample(_SERVER_PORTS, 1000) if not taken(port, ""))


def taken(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a port is in use on an address; the empty string means all addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False
