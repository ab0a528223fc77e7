from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from unittest import mock

import pytest

from agit_core.errors import BadInput, RunFailed
from infra.stack_state import free_port
from pipeline import storage
from tests.pipeline.disk import fill, small_disk
from tests.pipeline.s3 import S3Server


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return storage.join(request.getfixturevalue("s3").uri, "some/prefix")


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("s3://b", "x", "y"), "s3://b/x/y"),
        (("s3://b/", "/x/", ""), "s3://b/x"),
        (("/", "x"), "/x"),
        (("/a/b/", "c"), "/a/b/c"),
        (("./.agit", "runs", "r"), "./.agit/runs/r"),
        (("/",), "/"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_json_of_a_diverged_training_is_json(tmp_path: Path) -> None:
    losses = {"losses": [float("nan"), 0.5, float("inf")], "step": 3}
    uri = str(tmp_path / "result.json")
    storage.write_json(uri, losses)
    for text in (Path(uri).read_text(), storage.json_line(losses)):
        read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        assert read == {"losses": [None, 0.5, None], "step": 3}
    assert storage.json_line(losses).count("\n") == 1


def test_the_same_calls_work_on_both(root: str, tmp_path: Path) -> None:
    one = storage.join(root, "deep/one.bin")
    assert not storage.exists(one)
    storage.write_bytes(one, b"first")
    storage.write_bytes(one, b"\x00second")
    assert storage.read_bytes(one) == b"\x00second"
    assert storage.size(one) == 7
    storage.write_json(storage.join(root, "a.json"), {"x": [1, None]})
    assert storage.read_json(storage.join(root, "a.json")) == {"x": [1, None]}
    assert storage.list_(root) == [storage.join(root, "a.json"), storage.join(root, "deep")]
    assert storage.list_(root, recursive=True) == [storage.join(root, "a.json"), one]
    assert storage.list_(storage.join(root, "nothing")) == []

    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for i in range(20):
        (folder / "sub" / f"{i}.txt").write_text(str(i))
    (folder / "top").write_bytes(b"t")
    storage.upload_folder(folder, storage.join(root, "copy"))
    back = tmp_path / "back"
    storage.download_folder(storage.join(root, "copy"), back)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(back) for p in back.rglob("*") if p.is_file())
    assert all((folder / p).read_bytes() == (back / p).read_bytes() for p in files)

    storage.remove(storage.join(root, "copy"))
    storage.remove(storage.join(root, "copy"))
    assert storage.list_(root, recursive=True) == [storage.join(root, "a.json"), one]
    storage.check_reachable(root)
    assert len(storage.list_(root, recursive=True)) == 2, "the probe is removed"


def test_an_object_whose_key_leads_elsewhere_is_not_copied(s3: S3Server, tmp_path: Path) -> None:
    """Such keys are valid, and files of such paths would lie outside the folder."""
    storage.write_bytes(storage.join(s3.uri, "run", "whole"), b"1")
    keys = [*storage.filesystem(s3.uri)[0].find(f"{s3.bucket}/run"), f"{s3.bucket}/run/../../../evil"]
    with mock.patch.object(type(storage.filesystem(s3.uri)[0]), "find", return_value=keys):
        assert storage.list_(storage.join(s3.uri, "run"), recursive=True) == [f"{s3.uri}/run/whole"]
        storage.download_folder(storage.join(s3.uri, "run"), tmp_path / "a" / "b" / "c" / "d")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["whole"]


def test_a_missing_file_is_a_file_not_found_error(root: str, tmp_path: Path) -> None:
    for call in (storage.read_bytes, storage.size):
        with pytest.raises(FileNotFoundError):
            call(storage.join(root, "absent"))
    with pytest.raises(FileNotFoundError):
        storage.download_file(storage.join(root, "absent"), tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        storage.download_folder(storage.join(root, "absent"), tmp_path / "y")
    assert list(tmp_path.glob("*.part")) == []


def test_arrow_reads_what_storage_writes(root: str) -> None:
    storage.write_bytes(storage.join(root, "f"), b"abc")
    fs, path = storage.arrow(storage.join(root, "f"))
    with fs.open_input_file(path) as file:
        assert file.read() == b"abc"


def test_a_local_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "f"
    storage.write_bytes(str(target), b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFailed, match="No space left"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_storage_that_takes_nothing_is_refused_by_its_path_before_any_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        storage.check_reachable(str(disk / "state"))
        fill(disk)
        with pytest.raises(BadInput, match=f"cannot write {disk}/state/.*; the disk is full: make room"):
            storage.check_reachable(str(disk / "state"))
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(BadInput, match=f"cannot write {disk}/state/.*; the file system is read-only"):
            storage.check_reachable(str(disk / "state"))


def _one_sentence(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 500
    for word in words:
        assert word in text, text


def test_unreachable_endpoint(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    start = time.monotonic()
    with pytest.raises(BadInput) as caught:
        storage.check_reachable(s3.uri)
    _one_sentence(caught.value, endpoint, "does not answer", "AWS_ENDPOINT_URL")
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(BadInput) as caught:
        storage.check_reachable(s3.uri)
    _one_sentence(caught.value, "refuses the credentials", variable)


def test_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(BadInput) as caught:
        storage.check_reachable(s3.uri)
    _one_sentence(caught.value, "AWS_ACCESS_KEY_ID")


def test_missing_bucket(s3: S3Server) -> None:
    with pytest.raises(BadInput) as caught:
        storage.check_reachable("s3://no-such-bucket/prefix")
    _one_sentence(caught.value, "no-such-bucket", "create it")


def test_unusable_local_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput) as caught:
        storage.check_reachable(str(tmp_path / "file" / "below"))
    _one_sentence(caught.value, "below")


def test_unknown_scheme() -> None:
    with pytest.raises(BadInput, match=r"gopher.*s3://"):
        storage.check_reachable("gopher://x/y")


def test_a_server_that_dies_is_a_failed_run_and_comes_back(s3_private: S3Server) -> None:
    uri = storage.join(s3_private.uri, "x")
    storage.write_bytes(uri, b"kept")
    s3_private.stop()
    with pytest.raises(RunFailed) as caught:
        storage.write_bytes(uri, b"lost")
    _one_sentence(caught.value, uri, "does not answer")
    s3_private.start()
    assert storage.read_bytes(uri) == b"kept"


def test_a_folder_below_the_machines_temporary_one_is_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = storage.private_folder("agit-test")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert storage.private_folder("agit-test").stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    # somebody was faster: with a link to where they would have us write, or a folder of their own
    folder.symlink_to(tmp_path)
    with pytest.raises(BadInput, match="is not a folder of this user"):
        storage.private_folder("agit-test")
    folder.unlink()
    folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is not a folder of this user"):
        storage.private_folder("agit-test")
    folder.unlink()
    folder.touch()
    with pytest.raises(BadInput, match="is not a folder of this user"):
        storage.private_folder("agit-test")
    folder.unlink()
    other = os.getuid() + 1
    monkeypatch.setattr("os.getuid", lambda: other)
    folder.with_name(f"agit-test-{other}").mkdir()
    with pytest.raises(BadInput, match="is not a folder of this user"):
        storage.private_folder("agit-test")
