"""Embedded Prefect server: started by a run and stopped with it.

If a Prefect server is configured (``PREFECT_API_URL``, ``prefect.toml`` or a profile), that one is used instead.
Settings are passed as environment variables, because Prefect reads them when it is imported.
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
from pipeline.flows import prefect_schema, secret_overrides
from pipeline.redact import redact

HOME = Path(".agit/prefect")
DATABASE = "prefect.db"
EMBEDDED = "AGIT_PREFECT_EMBEDDED"
"""Environment variable set in processes that use an embedded server."""
# covers, on a slow machine, importing the server and creating the SQLite database
_STARTUP_SECONDS = 300.0
_STOP_SECONDS = 5.0
_FLOWS = {"agit": ("pipeline.flows.train", "agit"), "agit-tune": ("pipeline.flows.tune", "agit_tune")}


def run_flow(name: str, debug: bool = False, **parameters: Any) -> Any:
    """Run a flow in this process and return its result; its exceptions are passed on unchanged.

    Raises:
        BadInput: the configured Prefect server does not respond.
        RunFailed: the embedded server does not start.
    """
    with server(debug) as started:
        # import the stages, which takes seconds, while the server starts
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
    """Set Prefect's environment and, if no server is configured, start one; use it before ``import prefect``."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # quiet: pipeline.progress shows one line per stage, and Prefect keeps the run's log
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
    """A Prefect server that is running or starting."""

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
        """Start an embedded server and configure this process to use it; its runs are stored in ``PREFECT_HOME``.

        Every request requires a key generated for this server. The server and the children of this process receive it
        through their environment, which other users of the machine cannot read.
        """
        home = Path(os.environ.setdefault("PREFECT_HOME", str(HOME.absolute())))
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if home == HOME.absolute():
            home.chmod(0o700)  # an earlier version created it with other permissions
        os.environ.setdefault("PREFECT_API_BLOCKS_REGISTER_ON_START", "false")
        prefect_schema.check(home / DATABASE)
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
                # the working directory may contain a package of the same name as ours
                env=os.environ | {"PREFECT_SERVER_API_AUTH_STRING": key, "PYTHONSAFEPATH": "1"},
                umask=0o077,
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # not hit by Ctrl-C in the terminal, so that the run can still report to its server
                start_new_session=True,
            )
        own = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": key, EMBEDDED: "1"}
        before = {name: os.environ.get(name) for name in own}
        os.environ |= own
        return cls(url, process, log, before)

    def wait(self) -> None:
        """Wait until the server responds.

        Raises:
            BadInput: the configured server does not.
            RunFailed: the embedded server does not.
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
        """Stop an embedded server; do nothing for a configured one."""
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
    """The configured API URL, or None.

    Sources in Prefect's order: environment, then ``.env``, ``prefect.toml`` and ``pyproject.toml`` in the working
    directory, then the active Prefect profile.
    """
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
    """Send queued logs and events of the run, before the server is stopped."""
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
    """None if an HTTP server responds at the URL, otherwise the reason."""
    status, problem = http_health.ask(f"{api_url.rstrip('/')}/health", timeout)
    # any status counts, also 401: only Prefect's client sends the key
    return problem if status is None else None
