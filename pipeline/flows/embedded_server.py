"""The process of the embedded Prefect server: ``python -m pipeline.flows.embedded_server FD PARENT``.

It listens on an inherited socket, which avoids a race for the port, and ends when its parent process dies. Requests
require the key in ``PREFECT_SERVER_API_AUTH_STRING``; cross-origin access is disabled, and requests for other host
names are refused (DNS rebinding).
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
    """Serve Prefect's API until the parent terminates this process or dies."""
    # as for Prefect's own ephemeral server: no UI and a minimum of services
    os.environ.update(
        PREFECT_UI_ENABLED="0",
        PREFECT__SERVER_EPHEMERAL="1",
        PREFECT__SERVER_FINAL="1",
        PREFECT_SERVER_CORS_ALLOWED_ORIGINS="",
    )
    when_orphaned(parent, lambda: os._exit(0))  # safe for SQLite, which tolerates a crash
    prefect_schema.create(Path(os.environ["PREFECT_HOME"], "prefect.db"))
    gc.disable()  # saves a sixth of the import time
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
    """Create Prefect's API, restricted to the host names ``127.0.0.1`` and ``localhost``."""
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    served = TrustedHostMiddleware(create_app(), allowed_hosts=["127.0.0.1", "localhost"])
    gc.freeze()
    gc.enable()
    return served


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
