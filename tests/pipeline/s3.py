"""A real, authenticated S3 server on a free port of this machine: ``rclone serve s3``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

KEY, SECRET = "agit-test-key", "agit-test-secret"


@dataclass
class S3Server:
    """A running server whose buckets are the folders of ``root``."""

    root: Path
    port: int
    bucket: str = "agit"
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """The bucket, as ``s3://agit``."""
        return f"s3://{self.bucket}"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }

    def start(self) -> S3Server:
        """Starts (again) on the same port and folder, and waits until it answers."""
        (self.root / self.bucket).mkdir(parents=True, exist_ok=True)
        rclone = Path(sys.executable).parent / "rclone"
        self.process = subprocess.Popen(
            [
                str(rclone),
                "serve",
                "s3",
                "--auth-key",
                f"{KEY},{SECRET}",
                "--addr",
                f"127.0.0.1:{self.port}",
                "--config",
                os.devnull,
                *self.arguments,
                str(self.root),
            ],
            stdout=subprocess.DEVNULL,
            stderr=(self.root / "server.log").open("ab"),
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"rclone ended: {(self.root / 'server.log').read_text()[-500:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.05)
        raise RuntimeError("rclone serve s3 did not start within 30 s")

    def stop(self) -> None:
        """Ends the server at once, as a crash would; :meth:`start` brings it back with its objects."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
