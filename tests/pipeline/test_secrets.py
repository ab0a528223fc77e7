"""Secrets in every address and setting that may hold one: nothing that is written or printed has them."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agit_core.errors import BadInput
from infra.stack_state import free_port
from pipeline import config as configs
from pipeline import logs, run_status, storage, tasks
from pipeline.cli import main
from pipeline.data.sources import download
from pipeline.launch import cluster, specs
from pipeline.registry import models
from tests.pipeline.command import agit
from tests.pipeline.pictures import FOUR, folder
from tests.pipeline.training import TINY, untrained

SECRETS = (
    "sourcePW1",
    "urlTOKEN2",
    "endpointPW3",
    "proxyPW4",
    "awsSECRET5",
    "envSECRET6",
    "trackPW7",
    "rayPW8",
)


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves its folder, with a password if it is given one."""

    password: str | None = None

    def do_GET(self) -> None:
        if self.password is not None and self.headers.get("Authorization") != self.password:
            self.send_error(401)
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a server with set.zip."""
    root = tmp_path_factory.mktemp("www")
    source = folder(root / "in", FOUR)
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for path in sorted(source.rglob("*.*")):
            archive.write(path, path.relative_to(source))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Secrets in the environment."""
    chosen = {
        "AWS_ENDPOINT_URL": "http://user:endpointPW3@127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "awsSECRET5",
        "HTTPS_PROXY": "http://user:proxyPW4@127.0.0.1:9",
    }
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    return chosen


def shown(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def kept(root: Path) -> list[tuple[str, str]]:
    """File and secret, of whatever holds one."""
    return [
        (path.relative_to(root).as_posix(), secret)
        for path in root.rglob("*")
        if path.is_file()
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


@pytest.mark.usefixtures("small_inception")
def test_nothing_that_a_run_writes_or_prints_holds_a_secret(
    tmp_path: Path,
    address: str,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    caplog.set_level("DEBUG")
    source = f"http://user:sourcePW1@{address}/set.zip?token=urlTOKEN2"
    tree = {
        **TINY,
        "storage": "./state",
        "data": {**TINY["data"], "source": source, "maximum_quarantined": 0.5},
        "evaluate": {"subsets": 2, "subset_size": 2, "bootstrap": 10, "device": "cpu"},
        "register": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "cluster": {"env": {"ANYTHING": "envSECRET6"}},
    }
    config = configs.parse(tree)
    data = tasks.prepare(config)
    assert data.manifest.source.startswith("http://•••@127.0.0.1:"), "it really came from there"
    specs.specify(config, data.uri)
    run = untrained(config, data)
    evaluation = tasks.evaluate(config, data, run)
    registration = tasks.register(config, data, run, evaluation)
    tasks.summarize(config, run, evaluation, registration, tasks.report(config, data, run.uri))
    print(run_status.describe(run_status.status(run.uri)), models.history(config))
    with pytest.raises(BadInput) as refused:
        tasks.prepare(
            configs.parse({**tree, "data": {**tree["data"], "source": source.replace("set.zip", "gone.zip")}})
        )
    printed = capfd.readouterr()
    assert "gone.zip" in str(refused.value)
    assert "did not finish" in printed.err
    logged = "\n".join(map(logs.TextLines().format, caplog.records))
    assert "set.zip" in logged, "of the libraries"
    assert shown(printed.out + printed.err + logged + str(refused.value)) == []
    assert {path.name for path in tmp_path.iterdir()} >= {"state", "mlflow.db"}
    assert kept(tmp_path) == []


def test_neither_prefects_database_nor_a_commands_output_holds_a_secret(
    tmp_path: Path, address: str, planted: dict[str, str]
) -> None:
    source = f"data.source=http://user:sourcePW1@{address}/gone.zip?X-Amz-Signature=urlTOKEN2"
    servers = {"MLFLOW_TRACKING_URI": f"http://user:trackPW7@127.0.0.1:{free_port()}"}
    cluster = f"cluster.address=http://user:rayPW8@127.0.0.1:{free_port()}"
    env = "cluster.env={ANYTHING: envSECRET6}"
    called = agit("run", "demo", "--set", source, "--set", env, "--debug", cwd=tmp_path, **planted)
    assert called.status == 2
    assert (tmp_path / ".agit/prefect/prefect.db").is_file()
    examined = agit(
        "doctor",
        "demo",
        "--set",
        cluster,
        "--set",
        "storage=s3://bucket/x",
        cwd=tmp_path,
        **planted,
        **servers,
    )
    assert "127.0.0.1" in examined.out
    lines = (called.out + called.err + examined.out + examined.err).splitlines()
    assert [line for line in lines if shown(line)] == []
    assert kept(tmp_path) == []
    configuration = main.show_config("demo", [source, env, cluster])
    assert shown(str(configuration.value)) == []


@pytest.mark.parametrize(
    "setting",
    [
        "storage=s3://key:sourcePW1@bucket/x",
        "train.start_from=https://user:sourcePW1@host/model",
        "evaluate.inception=https://host/inception.pt?token=urlTOKEN2",
        "data.masks=s3://key:sourcePW1@bucket/masks",
    ],
)
def test_what_would_be_stored_to_be_read_again_takes_no_secret(setting: str) -> None:
    with pytest.raises(BadInput, match="holds credentials") as refused:
        configs.load("demo", [setting])
    assert shown(str(refused.value)) == []


@pytest.mark.parametrize("uri", ["s3://key:sourcePW1@bucket/x", "ftp://user:sourcePW1@host/x"])
def test_storage_takes_no_secret_in_its_name(uri: str) -> None:
    with pytest.raises(BadInput) as refused:
        storage.exists(uri)
    assert shown(str(refused.value)) == []


def test_a_clusters_password_is_not_stored_with_the_run() -> None:
    settings = configs.load("demo", ["cluster.address=http://user:rayPW8@head:8265"]).cluster
    assert cluster._place(settings) == {"address": "http://•••@head:8265"}


def test_an_addresss_password_can_stand_in_netrc(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "password", "Basic dXNlcjpzb3VyY2VQVzE=")
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    with pytest.raises(BadInput, match="401"):
        download.fetch(f"http://{address}/set.zip", tmp_path / "downloads", attempts=1)
    file.write_text("machine 127.0.0.1 login user password sourcePW1")
    assert download.fetch(f"http://{address}/set.zip", tmp_path / "downloads").is_file()
    assert download.fetch(f"http://user:sourcePW1@{address}/set.zip", tmp_path / "downloads").is_file()
    file.write_text("machine")
    with pytest.raises(BadInput, match="netrc cannot be read"):
        download.fetch(f"http://{address}/set.zip", tmp_path / "downloads")
