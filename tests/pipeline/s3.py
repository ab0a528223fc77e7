"""A real, authenticated S3 server on a free port of this machine: ``rclone serve s3``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
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


class DelayedConnection:
    """A TCP relay to a server in which every byte arrives ``seconds`` later, in each direction.

    The rate is not limited: what is sent together arrives together, as over a long line.
    """

    def __init__(self, port: int, seconds: float, own_port: int = 0) -> None:
        self._target = port
        self._seconds = seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        opening = asyncio.start_server(self._serve, "127.0.0.1", own_port)
        self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(self._relay(reader, back), self._relay(there, writer))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        async def deliver() -> None:
            while True:
                due, data = await line.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            writer.close()

        delivering = asyncio.ensure_future(deliver())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            data = b"-"
            while data:
                data = await reader.read(1 << 16)
                await line.put((self._loop.time() + self._seconds, data))
            await delivering
        delivering.cancel()
