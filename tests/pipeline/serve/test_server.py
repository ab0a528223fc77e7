from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import uvicorn
from mlflow.exceptions import MlflowException
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from agit_core import Translator
from agit_core.errors import BadInput
from agit_core.translator import Result
from pipeline.serve import connections, http, pyfunc, server
from pipeline.serve import uploads as serve_images
from tests.agit_core import models
from tests.pipeline.command import agit, environment
from tests.pipeline.served import eventually, started

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as the registry writes it."""
    folder = models.write_model(tmp_path_factory.mktemp("serve") / "model")
    model = Translator.load(folder).model
    (folder / pyfunc.FILE).write_text(pyfunc.mlmodel(model))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cwd = tmp_path_factory.mktemp("cwd")
    with started("pipeline.cli", "serve", "--model", folder, "--port", "0", cwd=cwd) as address:
        yield address


def encoded(pixels: np.ndarray[Any, Any], kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def damaged_avif() -> bytes:
    """One that Pillow opens and cannot decode."""
    data = base64.b64decode(encoded(models.photograph(64, 64), "AVIF"))
    head, _, pixels = data.partition(b"mdat")
    return head + b"mdat" + b"\xff" * len(pixels)


def broken_exif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=b"Exif\0\0nonsense")
    return buffer.getvalue()


def decoded(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True))))


def call(url: str, images: list[Any], timeout: float = 120, **params: Any) -> httpx.Response:
    body = {"inputs": {"image": images}, "params": params}
    return httpx.post(f"{url}/invocations", json=body, timeout=timeout)


def test_images_in_images_out(url: str, folder: Path) -> None:
    assert httpx.get(f"{url}/ping").status_code == 200
    photos = [models.photograph(30, 41), models.photograph(52, 24, seed=1)]
    translator = Translator.load(folder, device="cpu")
    for direction in ("a2b", "b2a"):
        answer = call(url, [encoded(p) for p in photos], direction=direction)
        assert answer.status_code == 200, answer.text
        for photo, row in zip(photos, answer.json()["predictions"], strict=True):
            expected = translator.translate(photo, direction)
            np.testing.assert_array_equal(decoded(row["image"]), expected.image)
            np.testing.assert_array_equal(decoded(row["mask"]), expected.mask)
    split = {
        "dataframe_split": {"columns": ["image"], "data": [["data:image/png;base64," + encoded(photos[0])]]}
    }
    answer = httpx.post(f"{url}/invocations", json=split, timeout=120)
    np.testing.assert_array_equal(
        decoded(answer.json()["predictions"][0]["image"]), translator.translate(photos[0]).image
    )


def test_wrong_calls_are_answered_in_a_sentence(url: str) -> None:
    good = encoded(models.photograph(20, 20))
    text = base64.b64encode(b"hello").decode()
    for images, params, message in (
        ([good, text], {}, "image 1: this is not an image that can be read"),
        (["***"], {}, "image 0: the image is not valid base64"),
        ([good], {"direction": "c2d"}, "there is no direction 'c2d'; use a2b or b2a"),
        ([good] * 65, {}, "65 images are too many for one call"),
    ):
        answer = call(url, images, **params)
        assert answer.status_code == 400
        assert message in answer.json()["message"]


def test_limits(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 2**20

    for content in (b"x" * (41 * 2**20), chunks()):
        try:
            answer = httpx.post(f"{url}/invocations", content=content, timeout=120)
        except httpx.WriteError:  # hung up before all of it was sent
            continue
        assert answer.status_code == 413
        assert "larger than the limit of 40 MiB" in answer.text
    # another site's name that points at this machine
    assert httpx.get(f"{url}/ping", headers={"Host": "evil.example"}).status_code == 400
    assert call(url, [encoded(models.photograph(20, 20))]).status_code == 200


def test_requests_are_json(folder: Path) -> None:
    """MLflow would unpack a Parquet file of any size before it looks at the rows."""
    client = TestClient(server.application(str(folder), device="cpu"))
    table = pd.DataFrame({"image": [encoded(models.photograph(20, 20))]})
    for kind, body in (
        ("application/vnd.apache.parquet", table.to_parquet()),
        ("Application/vnd.apache.parquet; charset=utf-8", table.to_parquet()),
        ("text/csv", table.to_csv(index=False).encode()),
        (None, b"{}"),
    ):
        headers = {"Content-Type": kind} if kind else {}
        answer = client.post("/invocations", content=body, headers=headers)
        assert answer.status_code == 415, kind
        assert answer.json() == {"error": "the request must be of the type application/json"}
    split = json.dumps({"dataframe_split": table.to_dict("split", index=False)})
    for kind in ("application/json", "application/json; charset=utf-8"):
        answer = client.post("/invocations", content=split, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
    for path in ("/ping", "/health", "/version"):
        assert client.get(path).status_code == 200


def test_what_mlflow_would_ignore_is_refused(folder: Path) -> None:
    client = TestClient(server.application(str(folder), device="cpu"))
    image = encoded(models.photograph(20, 20))
    plain: dict[str, Any] = {"inputs": {"image": [image]}}
    split = {"columns": ["image", "direction"], "data": [[image, "b2a"]]}
    for body, sentence in (
        (
            plain | {"params": {"threshold": 0.5}},
            "unknown parameter 'threshold' in the request; known: direction",
        ),
        (
            plain | {"params": {"direction": "b2a", "": 1}},
            "unknown parameter '' in the request; known: direction",
        ),
        (plain | {"params": ["b2a"]}, 'params must be an object, such as {"direction": ...}'),
        (plain | {"direction": "b2a"}, "unknown key 'direction' in the request; known: inputs, "),
        ({"inputs": {"image": [image], "direction": ["b2a"]}}, "unknown column 'direction'"),
        ({"instances": [{"image": image, "direction": "b2a"}]}, "unknown column 'direction'"),
        ({"dataframe_split": split}, "unknown column 'direction' in the request; known: image"),
        ({"inputs": {"picture": [image]}}, "unknown column 'picture' in the request; known: image"),
    ):
        answer = client.post("/invocations", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(sentence)
    for params in ({"direction": "b2a"}, {}, None):
        answer = client.post("/invocations", json=plain | {"params": params})
        assert answer.status_code == 200, answer.text


def test_json_that_nobody_means_is_a_wrong_call(folder: Path) -> None:
    client = TestClient(server.application(str(folder), device="cpu"), raise_server_exceptions=False)
    good = json.dumps({"inputs": {"image": [encoded(models.photograph(20, 20))]}})
    assert client.post("/invocations", content=good, headers=JSON).status_code == 200
    for body, message in (
        ("[" * 100_000, "nested"),
        ('{"inputs":' * 90_000, "nested"),
        ('{"inputs": {"image": ' + "[" * 40 + "]" * 40 + "}}", "nested"),
        ('{"inputs": {"image": [1e400]}}', "too large"),
        ('{"inputs": {"image": [-1e30]}}', "too large"),
        (f'{{"inputs": {{"image": [{"9" * 5000}]}}}}', "too large"),
        (f'{{"params": {{"direction": {"9" * 30}}}, "inputs": {{"image": []}}}}', "too large"),
        ('{"inputs": {"image": [NaN]}}', "too large"),
        ('{"inputs": [' + "[]," * 20_000 + "[]]}", "more than 10000 values"),
        ("\xff", "not JSON"),
        ("{", "not JSON"),
        ("5", ""),
        ("null", ""),
        ('{"inputs": 5}', ""),
        ('{"inputs": null}', ""),
        ('{"inputs": {"image": [[1], [2, 3]]}}', ""),
        ('{"inputs": {"image": {"a": 1}}}', ""),
        ('{"inputs": {"image": [null]}}', ""),
        ('{"dataframe_split": {"columns": 3, "data": "x"}}', ""),
        ('{"dataframe_split": {"columns": ["image"], "data": [[1, 2]], "index": {}}}', ""),
        ('{"dataframe_records": [1, "x"]}', ""),
        ('{"instances": [{"image": 3}]}', ""),
        (good[:-1] + ', "params": 3}', ""),
        (good[:-1] + ', "params": {"direction": 3}}', ""),
        (good[:-1] + ', "params": {"direction": ["a2b"]}}', ""),
    ):
        answer = client.post("/invocations", content=body.encode("latin-1"), headers=JSON)
        assert answer.status_code == 400, (body[:80], answer.text[:300])
        assert message in answer.text
        assert "stack_trace" not in answer.json(), body[:80]


@pytest.fixture
def small_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server of nothing in a thread of this process, whose limits are short."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 3.0)
    monkeypatch.setattr(http, "BODY_SECONDS", 3.0)
    monkeypatch.setattr(http, "WHOLE_BODY_SECONDS", 5.0)
    ready, servers = threading.Event(), list[uvicorn.Server]()
    address = list[str]()
    real = uvicorn.Server.run

    def run(self: uvicorn.Server, sockets: Any = None) -> None:
        servers.append(self)
        self.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        ready.set()
        real(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    serve = partial(http.run, lambda: PlainTextResponse("here"), "127.0.0.1", 0, 1000, address.append)
    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(60)
    port = int(address[0].rpartition(":")[2])
    yield address[0], port
    servers[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def test_half_a_header_ends_soon_and_closes_the_door_for_nobody(small_server: tuple[str, int]) -> None:
    url, port = small_server
    half = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(80)]
    for number, connection in enumerate(half):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost" if number % 2 else b"")
    assert httpx.get(url, timeout=60).text == "here"
    body = socket.create_connection(("127.0.0.1", port), 60)
    body.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx")
    assert b" 408 " in body.recv(4096).splitlines()[0]
    later = socket.create_connection(("127.0.0.1", port), 60)
    later.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while not answer.endswith(b"here"):
        answer += later.recv(4096)
    later.sendall(b"GET /")  # half of a second request
    assert [connection.recv(1) for connection in (*half, later)] == [b""] * (len(half) + 1)
    assert httpx.get(url, timeout=60).text == "here"
    for connection in (*half, body, later):
        connection.close()


def test_a_body_that_drips_ends_too(small_server: tuple[str, int]) -> None:
    url, port = small_server
    body = socket.create_connection(("127.0.0.1", port), 60)
    body.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
    body.settimeout(0.5)
    answer = b""
    for _ in range(100):
        with contextlib.suppress(TimeoutError):
            answer = body.recv(4096)
            break
        body.sendall(b"x")
    assert b" 408 " in answer.splitlines()[0]
    body.close()
    assert httpx.get(url, timeout=60).text == "here"


class Slow:
    """A translator that stands still until it is let go, and counts how many do so at once."""

    directions = ("a2b",)

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running, self.most = 0, 0

    def maps(self, direction: str) -> None:
        """Any direction."""

    def translate(self, picture: Image.Image, direction: str) -> Result[Image.Image]:
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.go.wait(60)
        self.running -= 1
        return Result(picture, picture.convert("L"))


def test_one_request_at_a_time_and_a_queue_that_ends() -> None:
    slow = Slow()
    served = pyfunc.Served(slow)  # type: ignore[arg-type]
    table = pd.DataFrame({"image": [encoded(np.zeros((4, 4, 3), np.uint8))]})
    places = 1 + pyfunc.MOST_WAITING
    with ThreadPoolExecutor(places + 1) as pool:
        calls = [pool.submit(served.predict, table) for _ in range(places + 1)]
        # all but the one that finds no place wait
        refused = next(call for call in as_completed(calls, timeout=60))
        with pytest.raises(MlflowException, match="the server is busy: 8 requests wait already") as told:
            refused.result()
        assert told.value.get_http_status_code() == 503
        slow.go.set()
        assert [len(call.result(60)) for call in calls if call is not refused] == [1] * places
    assert slow.most == 1
    assert len(served.predict(table)) == 1


def test_a_requests_pixels_are_limited_together(folder: Path) -> None:
    served = pyfunc.Served(Translator.load(folder, device="cpu"), 1200)
    image = encoded(np.zeros((20, 30, 3), np.uint8))
    assert len(served.predict(pd.DataFrame({"image": [image] * 2}))) == 2
    with pytest.raises(
        MlflowException, match=r"image 2: with this one the request has 0\.0018 million pixels"
    ):
        served.predict(pd.DataFrame({"image": [image] * 3}))


def test_mlflows_own_command_serves_the_folder(folder: Path, tmp_path: Path) -> None:
    port = http._bind("127.0.0.1", 0)
    number = port.getsockname()[1]
    port.close()
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "--model-uri", folder]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(number)]
    # in an activated environment, with this checkout's code
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    there = environment(PATH=path, PYTHONPATH=str(Path(__file__).parents[3]))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=tmp_path,
            env=there,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{number}"

        def answers() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                return httpx.get(f"{url}/ping").status_code == 200
            except httpx.TransportError:
                return False

        eventually(answers, "mlflow models serve does not answer")
        photo = models.photograph(28, 36)
        row = call(url, [encoded(photo)], direction="b2a").json()["predictions"][0]
        expected = Translator.load(folder, device="cpu").translate(photo, "b2a")
        np.testing.assert_array_equal(decoded(row["image"]), expected.image)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_mlflows_python_client_loads_it(folder: Path) -> None:
    model = mlflow.pyfunc.load_model(str(folder))
    photo = models.photograph(24, 32)
    told = model.predict(pd.DataFrame({"image": [encoded(photo, "JPEG")]}), params={"direction": "a2b"})
    assert list(told.columns) == ["image", "mask"]
    assert decoded(told["image"][0]).shape == (24, 32, 3)
    with pytest.raises(MlflowException, match="image 0: the image is empty"):
        model.predict(pd.DataFrame({"image": [""]}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the image is empty"),
        (b"GIF89a", "not an image"),
        (base64.b64decode(encoded(models.photograph(64, 64)))[:3000], "damaged"),
        (b"x" * (serve_images.LARGEST_BYTES + 1), "the limit is 20 MiB"),
        (damaged_avif(), "damaged"),
        (broken_exif(), "damaged"),
    ],
)
def test_pictures_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        serve_images.decode(data)


def test_what_fails_is_answered_in_a_sentence_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(server.application(str(folder), device="cpu"))

    def answer(data: bytes) -> httpx.Response:
        return client.post("/invocations", json={"inputs": {"image": [base64.b64encode(data).decode()]}})

    refused = answer(damaged_avif())
    assert refused.status_code == 400
    assert refused.json()["message"].startswith("image 0: the image is damaged")

    def upset(*_: Any) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Translator, "translate", upset)
    failed = answer(base64.b64decode(encoded(models.photograph(20, 20))))
    assert failed.status_code == 500
    assert failed.json()["message"] == "the request failed; the server's log says why"
    assert "stack_trace" not in failed.text
    assert "of all things" in caplog.text


def test_a_decompression_bomb_is_refused_unread() -> None:
    buffer = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 50_000
    with pytest.raises(BadInput, match="million"):
        serve_images.decode(buffer.getvalue())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_the_address_that_is_announced_is_answered(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(self: uvicorn.Server, sockets: list[Any]) -> None:
        told.append(TestClient(self.config.app, base_url=announced[0]).get("/").status_code)
        told.append(TestClient(self.config.app, base_url="http://evil.example").get("/").status_code)

    announced, told = list[str](), list[int]()
    monkeypatch.setattr(uvicorn.Server, "run", served)
    http.run(lambda: PlainTextResponse("here"), host, 0, 1000, announced.append)
    assert told == [200, 400]


def test_a_port_that_is_taken_is_a_wrong_call(folder: Path, tmp_path: Path) -> None:
    with http._bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = agit("serve", "--model", folder, "--port", str(port), cwd=tmp_path)
    assert done.status == 2
    assert f"cannot serve at 127.0.0.1:{port}" in done.last_line
