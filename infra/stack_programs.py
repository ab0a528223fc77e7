"""Programs of a stack: commands, addresses, health checks, and the supervisor's configuration."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from agit_core.errors import RunFailed
from infra.stack_state import BUCKET, Stack
from pipeline.cli.doctor import cores

POOL = "agit"
_OBJECT_STORE_BYTES = 256 * 2**20
_RAY = {
    # otherwise Ray interprets 127.0.0.1 as "detect my address" and listens on every interface
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # long timeouts: processes are slow on a busy machine
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
_PACKAGES = Path(__file__).parent / "local/mlflow-server.txt"


@dataclass(frozen=True)
class Program:
    """One supervised process.

    Attributes:
        health: URL path of its health check; None if it is not a server.
        stop_seconds: grace period before it is killed.
    """

    name: str
    command: list[str]
    url: str | None = None
    health: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    stop_seconds: int = 10


def programs(stack: Stack, mlflow_packages: Path) -> list[Program]:
    """The stack's programs in the order in which they are started; they are stopped in reverse order."""
    python, folder, host = sys.executable, stack.folder, "127.0.0.1"
    port = {name: str(number) for name, number in stack.ports.items()}
    binaries = Path(python).parent
    ray = {
        "--node-ip-address": host,
        "--port": port["ray_gcs"],
        "--dashboard-host": host,
        "--dashboard-port": port["ray"],
        # 0: any free port, since no client connects to these directly
        "--dashboard-agent-listen-port": "0",
        "--metrics-export-port": "0",
        "--ray-client-server-port": port["ray_client"],
        "--num-cpus": str(max(2, cores())),
        "--object-store-memory": str(_OBJECT_STORE_BYTES),
        "--temp-dir": str(stack.runtime / "ray"),
    }
    rclone = shutil.which("rclone", path=str(binaries)) or shutil.which("rclone") or str(binaries / "rclone")
    return [
        Program(
            "s3",
            [
                rclone,
                "serve",
                "s3",
                "--addr",
                f"{host}:{port['s3']}",
                "--config",
                os.devnull,
                str(folder / "s3"),
            ],
            stack.url("s3"),
            "/",
        ),
        Program(
            "ray",
            [str(binaries / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
            + [part for pair in ray.items() for part in pair],
            stack.url("ray"),
            "/api/version",
            _RAY,
            stop_seconds=20,
        ),
        Program(
            "prefect",
            [python, "-m", "prefect", "server", "start", "--host", host, "--port", port["prefect"]],
            stack.url("prefect"),
            "/api/health",
        ),
        Program(
            "mlflow",
            [
                *(
                    python,
                    "-m",
                    "mlflow",
                    "server",
                    "--app-name",
                    "basic-auth",
                    "--host",
                    host,
                    "--port",
                    port["mlflow"],
                    "--workers",
                    "1",
                ),
                *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
                *(
                    "--default-artifact-root",
                    f"s3://{BUCKET}/storage/mlflow-artifacts",
                    "--no-serve-artifacts",
                ),
            ],
            stack.url("mlflow"),
            "/health",
            {
                "PYTHONPATH": os.pathsep.join([str(mlflow_packages), stack.environment["PYTHONPATH"]]),
                # its runners would be a dozen processes that nobody gives anything to do
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                # the name by which MLflow knows the store's address; its pages show what lies there
                "MLFLOW_S3_ENDPOINT_URL": stack.url("s3"),
            },
        ),
        Program(
            "worker",
            [
                python,
                "-m",
                "prefect",
                "worker",
                "start",
                "--pool",
                POOL,
                "--type",
                "process",
                "--name",
                "stack",
            ],
            stop_seconds=30,
        ),
    ]


def mlflow_packages() -> Path:
    """Folder with the MLflow server's packages, inside this environment; installs them if it does not exist.

    Raises:
        RunFailed: the packages cannot be installed.
    """
    digest = hashlib.sha256(_PACKAGES.read_bytes()).hexdigest()[:12]
    folder = Path(sys.prefix) / f"agit-mlflow-server-{digest}"
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--target", str(partial), "-r", str(_PACKAGES)], capture_output=True, text=True
    )
    if done.returncode != 0:
        shutil.rmtree(partial, ignore_errors=True)
        reason = " ".join(done.stderr.split())[-300:]
        raise RunFailed(f"MLflow's server could not be installed from {_PACKAGES.name}: {reason}")
    try:
        partial.rename(folder)
    except OSError:  # another process has installed it meanwhile
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def supervisor_config(stack: Stack, found: list[Program]) -> str:
    """Contents of supervisord's configuration file, without secrets: keys are in the supervisor's environment."""
    general: dict[str, dict[str, object]] = {
        "unix_http_server": {"file": socket_of(stack), "chmod": "0700"},
        "supervisord": {
            "directory": stack.root,
            "logfile": stack.logs / "supervisor.log",
            "logfile_maxbytes": "5MB",
            "logfile_backups": 2,
            "pidfile": stack.runtime / "supervisor.pid",
            "childlogdir": stack.logs,
            "identifier": f"agit-stack-{stack.token}",
        },
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
    }
    each: dict[str, dict[str, object]] = {
        f"program:{program.name}": {
            "command": " ".join(_quoted(part) for part in program.command),
            "environment": ",".join(f"{k}={_quoted(v)}" for k, v in program.environment.items()),
            "priority": 10 * (number + 1),
            # started by `agit-stack up`, once the programs that it depends on respond
            "autostart": "false",
            "autorestart": "true",
            "startsecs": 2,
            "startretries": 10,
            "stopwaitsecs": program.stop_seconds,
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": stack.logs / f"{program.name}.log",
            "stdout_logfile_maxbytes": "10MB",
            "stdout_logfile_backups": 2,
        }
        for number, program in enumerate(found)
    }
    sections = []
    for name, settings in {**general, **each}.items():
        lines = [f"{key}={_escaped(value)}" for key, value in settings.items() if value != ""]
        sections.append("\n".join([f"[{name}]", *lines, ""]))
    return "\n".join(sections)


def socket_of(stack: Stack) -> Path:
    return stack.runtime / "supervisor.sock"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(value: object) -> str:
    """Escape ``%``, because supervisord expands ``%(name)s``."""
    return str(value).replace("%", "%%")
