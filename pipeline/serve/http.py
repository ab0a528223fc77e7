"""Common parts of both HTTP servers: loopback restrictions, request limits, clean shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agit_core.errors import BadInput
from pipeline.serve.connections import Places, PromptProtocol

LOOPBACK = "127.0.0.1"
_CONCURRENT = 32
"""Concurrent requests, whose bodies are held in memory."""
BODY_SECONDS = 30.0
"""Timeout for the next piece of a request's body."""
WHOLE_BODY_SECONDS = 300.0
"""Timeout for all of it, against clients that send a byte now and then."""
_VALUES = 10_000
"""Most commas in a request, which bound the values to parse; pictures are base64, which has none."""
_DEPTH = 16
_LARGEST_NUMBER = 2**53
_JSON = "application/json"
_KEYS = ("inputs", "instances", "dataframe_split", "dataframe_records", "params")
_GRACE_SECONDS = 10


class BodyLimit:
    """Refuses larger request bodies with status 413, with Content-Length or chunked.

    The body is read here, so the application behind never receives more than the limit.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in {"POST", "PUT", "PATCH"}:
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        pieces, length, more = list[bytes](), 0, True
        too_large = announced.isdigit() and int(announced) > self._limit
        clock = asyncio.get_running_loop().time
        until = clock() + WHOLE_BODY_SECONDS
        while more and not too_large:
            left = until - clock()
            try:
                message = await asyncio.wait_for(receive(), min(BODY_SECONDS, left))
            except TimeoutError:
                sentence = (
                    f"nothing more of the request came for {BODY_SECONDS:g} s"
                    if left > BODY_SECONDS
                    else f"the request was not there as a whole after {WHOLE_BODY_SECONDS:g} s"
                )
                late = JSONResponse({"error": sentence}, 408, headers={"Connection": "close"})
                await late(scope, receive, send)
                return
            if message["type"] == "http.disconnect":
                return
            pieces.append(message.get("body", b""))
            length += len(pieces[-1])
            more = message.get("more_body", False)
            too_large = length > self._limit
        if too_large:
            sentence = f"the request is larger than the limit of {self._limit // 2**20} MiB"
            refusal = JSONResponse({"error": sentence}, 413, headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        body, replayed = b"".join(pieces), False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


class JsonOnly:
    """Refuses bodies that are not JSON with status 415, before anything parses them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in {"GET", "HEAD"}:
            sent = Headers(scope=scope).get("content-type", "")
            if sent.partition(";")[0].strip() != _JSON:
                refusal = JSONResponse({"error": f"the request must be of the type {_JSON}"}, 415)
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


class KnownParameters:
    """Refuses with status 400 what would make MLflow fail or what it would ignore.

    That is invalid or deeply nested JSON, far more values than images are allowed, numbers beyond a double's exact
    integers, and unknown keys, ``params`` and columns.
    """

    def __init__(self, app: ASGIApp, names: tuple[str, ...], columns: tuple[str, ...]) -> None:
        self._app, self._names, self._columns = app, names, columns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body"):
            messages.append(await receive())
        sentence = self._problem(b"".join(message.get("body", b"") for message in messages))
        if sentence is not None:
            await JSONResponse({"error": sentence}, 400)(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    def _problem(self, body: bytes) -> str | None:
        if body.count(b",") > _VALUES:
            return f"the request's JSON holds more than {_VALUES} values; send images alone"
        try:
            value = json.loads(body, parse_int=_number, parse_float=_number, parse_constant=_number)
            _check_depth(value)
        except RecursionError:
            return f"the request's JSON is nested more than {_DEPTH} deep"
        except (ValueError, OverflowError) as error:  # also for invalid UTF-8
            return f"the request is not JSON that can be used ({str(error)[:100]})"
        if not isinstance(value, dict):
            return None  # MLflow's sentence
        params = value.get("params") or {}
        if not isinstance(params, dict):
            return f'params must be an object, such as {{"{self._names[0]}": ...}}'
        for what, found, known in (
            ("key", set(value), _KEYS),
            ("parameter", set(params), self._names),
            ("column", _columns(value), self._columns),
        ):
            if unknown := sorted(found - set(known)):
                return f"unknown {what} '{unknown[0]}' in the request; known: {', '.join(known)}"
        return None


def _columns(request: dict[str, Any]) -> set[str]:
    """The names of columns in any of MLflow's forms of a table."""
    split, inputs = request.get("dataframe_split"), request.get("inputs")
    names = split.get("columns") if isinstance(split, dict) else None
    rows = [request.get("instances"), request.get("dataframe_records")]
    tables = [inputs, *(row for table in rows if isinstance(table, list) for row in table)]
    found = {name for table in tables if isinstance(table, dict) for name in table}
    return found | {name for name in (names if isinstance(names, list) else []) if isinstance(name, str)}


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) <= _LARGEST_NUMBER:
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _check_depth(value: object, left: int = _DEPTH) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise RecursionError
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def run(build: Callable[[], ASGIApp], host: str, port: int, limit: int, ready: Callable[[str], None]) -> str:
    """Serve until interrupted; return the URL.

    Args:
        build: creates the application, after the socket is bound.
        port: port number; 0: any free one.
        limit: largest request body in bytes.
        ready: called with the URL as soon as the socket is bound.

    Raises:
        BadInput: the address cannot be bound.
    """
    listening = _bind(host, port)
    url = f"http://{'localhost' if host == 'localhost' else _bracketed(host)}:{listening.getsockname()[1]}"
    with listening:
        app: ASGIApp = Places(BodyLimit(build(), limit), _CONCURRENT)
        if _is_loopback(
            host
        ):  # against DNS rebinding: a web page resolving its own host name to this machine
            names = ["localhost", LOOPBACK, "[::1]", _bracketed(host)]
            app = TrustedHostMiddleware(app, allowed_hosts=names)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                http=PromptProtocol,
                timeout_graceful_shutdown=_GRACE_SECONDS,
                server_header=False,
            )
        )
        ready(url)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is the regular way to stop
            server.run(sockets=[listening])
    return url


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()  # connections queue from now on, while the model loads
    except (OSError, OverflowError) as error:
        raise BadInput(f"cannot serve at {host}:{port} ({error}); give another --port or --host") from None
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
