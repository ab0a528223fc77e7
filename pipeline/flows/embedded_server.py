"""The process of the embedded Prefect server: ``python -m pipeline.flows.embedded_server FD PARENT``.

It listens on the socket that it was given, so there is no race for a port, and ends with the process that
started it, however that ends. Requests need the key in ``PREFECT_SERVER_API_AUTH_STRING``; no web page of another
origin may read an answer, and a name that somebody has pointed at this machine is refused.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.flows import prefect_schema
from pipeline.process_identity import when_orphaned

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def main(descriptor: int, parent: int) -> None:
    """Serves Prefect's API until the parent is gone or asks for the end."""
    # what Prefect sets for its own temporary server: no UI, only the services that such a server needs
    os.environ.update(
        PREFECT_UI_ENABLED="0",
        PREFECT__SERVER_EPHEMERAL="1",
        PREFECT__SERVER_FINAL="1",
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS="",
    )
    when_orphaned(parent, lambda: os._exit(0))  # SQLite survives it, as it survives a power cut
    prefect_schema.create(Path(os.environ["PREFECT_HOME"], "prefect.db"))
    gc.disable()  # a sixth of the imports' time is spent on collecting what stays
    import uvicorn

    config = uvicorn.Config(
        application,
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def application() -> ASGIApp:
    """Prefect's API for requests that address this machine as ``127.0.0.1`` or ``localhost``."""
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    served = TrustedHostMiddleware(create_app(), allowed_hosts=["127.0.0.1", "localhost"])
    gc.freeze()
    gc.enable()
    return served


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
