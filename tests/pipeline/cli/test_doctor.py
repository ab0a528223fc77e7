from __future__ import annotations

import contextlib
import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agit_core.errors import BadInput
from infra import stack_supervisor
from infra.stack_programs import Program
from infra.stack_state import free_port
from pipeline import http_health
from pipeline.cli import doctor
from pipeline.config import load
from pipeline.data.sources import opening
from pipeline.flows.embedded import Server
from tests.pipeline.command import agit


def _states(answer: dict) -> dict[str, str]:
    return {check["name"]: check["state"] for check in answer["checks"]}


def test_a_working_installation_passes(tmp_path: Path) -> None:
    called = agit("doctor", "--json", "--set", "storage=./new", cwd=tmp_path)
    assert called.status == 0, called.err
    states = _states(called.answer)
    assert called.answer["ok"] is True
    for name in ("python", "torch", "ray", "prefect", "cores", "memory", "storage", "mlflow server"):
        assert states[name] == "ok"
    assert "missing" not in states.values()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "the storage is left as it was"


def test_what_is_missing_comes_with_its_remedy(tmp_path: Path) -> None:
    port = free_port()
    called = agit(
        "doctor",
        "h2z",
        *("--set", "data.source=./nowhere", "--set", "train.device=cuda"),
        *("--set", "storage=s3://none/x", "--set", "evaluate.inception=./none.pt"),
        *("--set", f"register.tracking_uri=http://127.0.0.1:{port}"),
        *("--set", f"cluster.address=http://127.0.0.1:{port}"),
        "--json",
        cwd=tmp_path,
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        CUDA_VISIBLE_DEVICES="",
    )
    assert called.status == 1
    missing = {
        check["name"]: check["remedy"] for check in called.answer["checks"] if check["state"] == "missing"
    }
    servers = {"prefect server", "mlflow server", "ray server"}
    assert set(missing) == {"gpu", "data source", "storage", "inception weights", *servers}
    assert all(missing.values())
    assert "PREFECT_API_URL" in missing["prefect server"]
    assert called.last_line.startswith("agit: a local run is not possible yet: fix ")
    assert "inception weights" in called.last_line


def test_a_table_for_people(tmp_path: Path) -> None:
    called = agit("doctor", cwd=tmp_path)
    assert called.status == 0
    assert "A local run is possible." in called.out


@contextlib.contextmanager
def _listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def no_http() -> Iterator[int]:
    """The port of a server that speaks something else."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1000)
            self.request.sendall(b"SSH-2.0-somebody\r\n")

    with _listening(Handler) as port:
        yield port


@pytest.fixture(scope="module")
def locked() -> Iterator[int]:
    """The port of a server that lets nobody in but user:pass-word."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Authorization"] == "Basic dXNlcjpwYXNzLXdvcmQ=" else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with _listening(Handler) as port:
        yield port


def _examined(
    tmp_path: Path, *overrides: str, tracking_uri: str = "sqlite:///x.db", prefect_url: str | None = None
) -> dict[str, dict[str, Any]]:
    settings = load("demo", [f"storage={tmp_path}/agit", *overrides])
    found = doctor.examine(settings, tracking_uri, prefect_url, lambda: opening.find(settings.data))
    return {check["name"]: check for check in found["checks"]}


def test_a_server_that_wants_a_key_is_there(
    tmp_path: Path, locked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token")
    monkeypatch.delenv("PREFECT_API_KEY", raising=False)
    url = f"http://127.0.0.1:{locked}"
    checks = _examined(tmp_path, f"cluster.address={url}", prefect_url=f"{url}/api")
    assert (checks["ray server"]["state"], checks["ray server"]["found"]) == ("ok", url)
    assert checks["prefect server"]["state"] == "ok"
    assert "requires a key: PREFECT_API_KEY" in checks["prefect server"]["found"]


def test_what_is_no_http_server_is_listed_with_all_other_checks(tmp_path: Path, no_http: int) -> None:
    url = f"http://127.0.0.1:{no_http}"
    checks = _examined(tmp_path, f"cluster.address={url}", tracking_uri=url, prefect_url=f"{url}/api")
    for name in ("ray server", "mlflow server", "prefect server"):
        assert checks[name]["state"] == "missing"
        assert "no answer in HTTP: SSH-2.0-somebody" in checks[name]["found"]
    assert "git" in checks
    assert not stack_supervisor.answers(Program("x", [], url=url, health="/"))
    with pytest.raises(BadInput, match="does not answer"):
        Server(f"{url}/api").wait()


def test_a_check_that_cannot_be_made_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    checks = _examined(tmp_path, "evaluate.inception=s3://b/w.pt", "data.source=s3://b/horses")
    for name in ("inception weights", "data source"):
        assert checks[name]["state"] == "missing"
        assert "does not answer" in checks[name]["remedy"]
    assert checks["storage"]["state"] == "ok"
    assert "git" in checks


def test_passwords_are_not_shown(tmp_path: Path, locked: int) -> None:
    there, away = (
        f"http://user:pass-word@127.0.0.1:{locked}",
        f"http://user:pass-word@127.0.0.1:{free_port()}",
    )
    for tracking_uri, prefect_url, cluster in ((there, away, there), (away, there, away)):
        checks = _examined(
            tmp_path, f"cluster.address={cluster}", tracking_uri=tracking_uri, prefect_url=prefect_url
        )
        assert "pass-word" not in str(checks)
        assert checks["mlflow server"]["state"] == ("ok" if tracking_uri == there else "missing")
    assert http_health.ask(there, 5) == (200, None), "the credentials are sent"
    with pytest.raises(BadInput, match="does not answer") as caught:
        Server(f"{away}/api").wait()
    assert "pass-word" not in str(caught.value)


def test_it_looks_where_a_run_looks(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "http://127.0.0.1:{port}/prefect"\n')
    called = agit("doctor", "--json", cwd=tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}/mlflow")
    found = {check["name"]: check["found"] for check in called.answer["checks"]}
    assert called.status == 1
    for name in ("prefect", "mlflow"):
        assert found[f"{name} server"].startswith(f"http://127.0.0.1:{port}/{name} does not respond")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("./a,./b", True),
        ("a, b", True),
        ("./a", True),
        ("horse2zebra", True),
        ("https://example.org/x.zip", True),
        ("x.csv", True),
        ("./a,./nowhere", False),
        ("./a,./b,./c", False),
        ("nosuchfolder", False),
        ("./x.csv,./a", False),
        ("y.zip", False),
        ("https://example.org/page", False),
    ],
)
def test_a_source_is_found_by_the_rules_of_preparing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, found: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "x.csv").write_text("image,domain\n")
    check = _examined(tmp_path, f"data.source={source}")["data source"]
    assert check["state"] == ("ok" if found else "missing")
    assert found or "data.source" in check["remedy"]
