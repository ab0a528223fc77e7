from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agit_core.errors import BadInput, RunFailed
from infra.stack_state import free_port
from pipeline.data.sources.download import ATTEMPTS, fetch

BODY = bytes(range(256)) * 4096


class Server(ThreadingHTTPServer):
    """Serves one file, with ranges; ``give`` bytes per connection when that is set."""

    body = BODY
    version = '"one"'
    give: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/some%20set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(0, 200)

    def do_GET(self) -> None:
        self.server.requests.append(self.headers.get("Range", "whole"))
        if not self.path.startswith("/some"):
            self.send_error(404)
            return
        start = 0
        if self.server.ranges and self.headers.get("If-Range") == self.server.version:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self._answer(start, 206 if start else 200)
        data = self.server.body[start:]
        self.wfile.write(data if self.server.give is None else data[: self.server.give])

    def _answer(self, start: int, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(self.server.body) - start))
        self.send_header("ETag", self.server.version)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def nowait(_: float) -> None:
    pass


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path)
    assert path.read_bytes() == BODY
    assert path.name.endswith("some_set.zip")
    assert fetch(server.url, tmp_path) == path
    assert server.requests == ["whole"]


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.give = 300_000
    path = fetch(server.url, tmp_path, nowait)
    assert path.read_bytes() == BODY
    assert server.requests == ["whole", "bytes=300000-", "bytes=600000-", "bytes=900000-"]


def test_a_download_goes_on_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.give = 300_000

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path, interrupt)
    server.give = None
    assert fetch(server.url, tmp_path, nowait).read_bytes() == BODY
    assert server.requests == ["whole", "bytes=300000-"]


def test_a_part_of_another_version_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.give = 300_000

    def change(_: float) -> None:
        server.body, server.version, server.give = BODY[::-1], '"two"', None

    assert fetch(server.url, tmp_path, change).read_bytes() == BODY[::-1]
    server.body, server.version = BODY, '"three"'
    assert fetch(server.url, tmp_path).read_bytes() == BODY, "a new version is fetched again"


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.give, server.ranges = 300_000, False

    def whole(_: float) -> None:
        server.give = None

    assert fetch(server.url, tmp_path, whole).read_bytes() == BODY


def test_a_server_that_stops_sending_is_a_failed_run(server: Server, tmp_path: Path) -> None:
    server.give = 300_000

    def nothing(_: float) -> None:
        server.give = 0

    with pytest.raises(RunFailed, match="broke off after 300000 bytes"):
        fetch(server.url, tmp_path, nothing)
    assert len(server.requests) == 1 + ATTEMPTS


def test_the_checksum_is_held(server: Server, tmp_path: Path) -> None:
    right = hashlib.sha256(BODY).hexdigest()
    assert fetch(f"{server.url}#sha256={right}", tmp_path).read_bytes() == BODY
    with pytest.raises(BadInput, match=right):
        fetch(f"{server.url}#sha256={'0' * 64}", tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".zip"]
    with pytest.raises(BadInput, match="#sha256="):
        fetch(f"{server.url}#md5=abc", tmp_path)


def test_what_cannot_be_had_is_told_in_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="404"):
        fetch(server.url.replace("some", "other"), tmp_path)
    for address in (f"http://127.0.0.1:{free_port()}/x.zip", "http://no-such-host.invalid/x.zip"):
        with pytest.raises(BadInput, match="check the network") as caught:
            fetch(address, tmp_path, nowait)
        assert "\n" not in str(caught.value)


def test_what_is_there_is_used_without_a_network(server: Server, tmp_path: Path) -> None:
    url = server.url
    path = fetch(url, tmp_path)
    server.shutdown()
    server.server_close()
    assert fetch(url, tmp_path) == path
