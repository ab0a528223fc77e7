"""Protection against idle and slow connections: a timeout for headers and a limit of concurrent requests."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""Timeout for a complete request header, from the start of a connection or from a later request's first byte."""


class PromptProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 protocol with a timeout for headers, which Uvicorn itself lacks."""

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()  # a request is being processed; its body has limits elsewhere
        elif self._head_due is None:
            self._head_due = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _unwatch(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None


class Places:
    """Refuses requests beyond ``most`` concurrent ones with status 503; idle connections do not count."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._free = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._free:
            busy = JSONResponse({"error": "the server is busy; send the request again later"}, 503)
            await busy(scope, receive, send)
            return
        self._free -= 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._free += 1
