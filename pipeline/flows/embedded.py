"""The embedded Prefect: a server that the run starts itself, and that leaves with it.

Who has a Prefect server (``PREFECT_API_URL``, a ``prefect.toml`` or a profile) keeps it; then only the noise is
turned down. Settings are environment variables because Prefect reads them when it is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from agit_core.errors import BadInput, RunFailed
from pipeline import http_health
from pipeline.flows import secret_overrides
from pipeline.redact import redact

HOME = Path(".agit/prefect")
EMBEDDED = "AGIT_PREFECT_EMBEDDED"
"""Set in a process whose Prefect server is its own."""
# On a slow, busy machine: import of the server, then some sixty migrations of a new SQLite file.
_STARTUP_SECONDS = 300.0
_STOP_SECONDS = 5.0
_FLOWS = {"agit": ("pipeline.flows.train", "agit"), "agit-tune": ("pipeline.flows.tune", "agit_tune")}


def run_flow(name: str, debug: bool = False, **parameters: Any) -> Any:
    """Runs a flow in this process and returns what it returns; its exceptions come through as they are.

    Raises:
        BadInput: the Prefect server that is configured does not answer.
        RunFailed: the embedded server does not start.
    """
    with server(debug) as started:
        # what the stages need takes seconds to import, as the server's start does
        for stage in (
            "data.prepare.stage",
            "launch.follow",
            "evaluate.scoring",
            "registry.registration",
            "report.build",
        ):
            importlib.import_module(f"pipeline.{stage}")
        module, function = _FLOWS[name]
        flow = getattr(importlib.import_module(module), function)
        started.wait()
        if "overrides" in parameters:
            parameters["overrides"] = secret_overrides.hide(parameters["overrides"])
        try:
            return flow(**parameters)
        finally:
            _send_what_is_queued()


@contextlib.contextmanager
def server(debug: bool = False) -> Iterator[Server]:
    """Prefect's environment and, where no server is configured, an embedded one; before ``import prefect``."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # one line per stage is shown by pipeline.progress; the rest is in the run's log in Prefect
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG" if debug else "CRITICAL",
    }
    url = configured_url()
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    started = Server(url) if url else Server.start()
    try:
        yield started
    finally:
        started.stop()


class Server:
    """A Prefect server that answers, or will soon."""

    def __init__(
        self,
        url: str,
        process: subprocess.Popen[bytes] | None = None,
        log: Path | None = None,
        environment: dict[str, str | None] | None = None,
    ) -> None:
        self.url = url
        self._process = process
        self._log = log
        self._environment = environment or {}

    @classmethod
    def start(cls) -> Server:
        """Starts an embedded server and points this process at it; it keeps its runs in ``PREFECT_HOME``.

        Every request needs a key that is made for this server alone. The server and the children of this process
        get it through their environment, which other users of the machine cannot read.
        """
        home = Path(os.environ.setdefault("PREFECT_HOME", str(HOME.absolute())))
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if home == HOME.absolute():
            home.chmod(0o700)  # made by an earlier version
        os.environ.setdefault("PREFECT_API_BLOCKS_REGISTER_ON_START", "false")
        key = f"agit:{secrets.token_hex(32)}"
        log = home / "server.log"
        with socket.socket() as listening, log.open("wb") as out:
            log.chmod(0o600)
            listening.bind(("127.0.0.1", 0))
            listening.listen(64)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipeline.flows.embedded_server",
                    str(listening.fileno()),
                    str(os.getpid()),
                ],
                # the working folder may hold a package called as ours
                env=os.environ | {"PREFECT_SERVER_API_AUTH_STRING": key, "PYTHONSAFEPATH": "1"},
                umask=0o077,
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Ctrl-C in the terminal is for the run, which then still has its server to tell about it
                start_new_session=True,
            )
        own = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": key, EMBEDDED: "1"}
        before = {name: os.environ.get(name) for name in own}
        os.environ |= own
        return cls(url, process, log, before)

    def wait(self) -> None:
        """Returns when the server answers.

        Raises:
            BadInput: the configured one does not.
            RunFailed: the embedded one does not.
        """
        if self._process is None:
            problem = _problem(self.url, timeout=10)
            if problem is not None:
                raise BadInput(
                    f"the Prefect server at {redact(self.url)} does not answer ({problem}); start it, or unset "
                    "PREFECT_API_URL to use the embedded one"
                )
            return
        until = time.monotonic() + _STARTUP_SECONDS
        while _problem(self.url, timeout=5) is not None:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RunFailed(f"the embedded Prefect server did not start; its log is {self._log}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends an embedded server; a configured one is left alone."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def configured_url() -> str | None:
    """The API address of the environment, of ``.env``, ``prefect.toml`` or ``pyproject.toml`` here, or of the active
    Prefect profile: the places where Prefect looks, in its order."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    if url := dotenv_values(".env").get("PREFECT_API_URL"):
        return url
    in_project = _toml(Path("pyproject.toml")).get("tool", {}).get("prefect", {})
    for settings in (_toml(Path("prefect.toml")), in_project):
        if url := settings.get("api", {}).get("url"):
            return str(url)
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    profiles = _toml(home / "profiles.toml")
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    return profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")


def _send_what_is_queued() -> None:
    """Logs and events of the run travel in the background; the server is to have them before it ends."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=_STOP_SECONDS)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _problem(api_url: str, timeout: float) -> str | None:
    """None when something answers there in HTTP, otherwise why not."""
    status, problem = http_health.ask(f"{api_url.rstrip('/')}/health", timeout)
    # a refusal is an answer: the key is for Prefect's client to send
    return problem if status is None else None
