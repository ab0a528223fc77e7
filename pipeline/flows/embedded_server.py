"""The process of the embedded Prefect server: ``python -m pipeline.flows.embedded_server FD PARENT``.

It listens on the socket that it was given, so there is no race for a port, and ends with the process that
started it, however that ends.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

_WATCH_SECONDS = 1.0


def main(descriptor: int, parent: int) -> None:
    """Serves Prefect's API until the parent is gone or asks for the end."""
    # what Prefect sets for its own temporary server: no UI, only the services that such a server needs
    os.environ.update(PREFECT_UI_ENABLED="0", PREFECT__SERVER_EPHEMERAL="1", PREFECT__SERVER_FINAL="1")
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    import uvicorn

    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(0)  # SQLite survives it, as it survives a power cut


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
