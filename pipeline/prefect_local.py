"""The embedded Prefect: a temporary server that the run starts itself, and that leaves with it.

Who sets ``PREFECT_API_URL`` (or has a Prefect profile that does) keeps their server; this module then only
turns the noise down. Settings are environment variables because Prefect reads them when it is imported.
"""

from __future__ import annotations

import os
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agit_core.errors import BadInput, RunFailed

# First start on a slow, busy machine: import, 60 migrations of an SQLite file.
_STARTUP_SECONDS = "300"


def configure(debug: bool = False) -> None:
    """Sets the environment of Prefect; must run before ``import prefect``. What the user has set stays."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": _STARTUP_SECONDS,
        # One line per stage is shown by pipeline.progress; everything else stays in the server's log of the run.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG" if debug else "CRITICAL",
    }
    if not os.environ.get("PREFECT_API_URL") and not os.environ.get("PREFECT_HOME"):
        defaults["PREFECT_HOME"] = str(Path(".agit/prefect").absolute())
        defaults["PREFECT_API_BLOCKS_REGISTER_ON_START"] = "false"
    for key, value in defaults.items():
        os.environ.setdefault(key, value)


def run_flow(name: str, **parameters: Any) -> Any:
    """Runs a flow in this process and returns what it returns; its exceptions come through as they are.

    Raises:
        BadInput: the Prefect server that is configured does not answer.
    """
    flows: dict[str, Any] = {}

    def load() -> None:
        # what the stages need takes seconds to import, as the server's start does
        import pipeline.data.prepare
        import pipeline.evaluate
        import pipeline.registry
        import pipeline.report
        from pipeline.flows import agit

        flows["agit"] = agit
        if name == "agit-tune":
            from pipeline.tune_flow import agit_tune

            flows["agit-tune"] = agit_tune

    start_while(load)
    try:
        return flows[name](**parameters)
    finally:
        stop()


def check(api_url: str) -> None:
    """Raises BadInput when no Prefect server answers there."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=10) as answer:
            answer.read()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the Prefect server at {api_url} does not answer ({error}); start it, or unset PREFECT_API_URL to use "
            "the embedded one"
        ) from None


def start_while(work: Callable[[], None]) -> None:
    """Starts the temporary server, if one is needed, while ``work`` (slow imports) runs.

    Raises:
        RunFailed: the server did not start.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url:
        check(url)
        work()
        return
    failures: list[BaseException] = []

    def start() -> None:
        try:
            SubprocessASGIServer().start()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=start, name="prefect-server", daemon=True)
    thread.start()
    try:
        work()
    finally:
        thread.join()
    if failures:
        raise RunFailed(
            f"the embedded Prefect server did not start: {' '.join(str(failures[0]).split())}"
        ) from failures[0]


def stop() -> None:
    """Ends the temporary server of this process; without one nothing happens."""
    from prefect.server.api.server import SubprocessASGIServer

    for server in list(SubprocessASGIServer._instances.values()):
        server.stop()
