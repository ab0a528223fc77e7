"""Files that appear whole or not at all, whatever is killed, and drives that do not answer."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pipeline import local_files, storage
from pipeline.local_files import replacing
from tests.pipeline.killed import write_and_die


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    write_and_die(deep / "a.bin")
    (left,) = deep.iterdir()
    names = (".hidden", ".a.part", ".parts", "b.abcdefgh.part", ".b.ABCDEFGH.part")
    for name in names:
        (deep / name).write_bytes(b"mine")
    (deep / ".link.abcdefgh.part").symlink_to(deep / ".hidden")
    with replacing(deep / "c.bin") as temporary:
        temporary.write_bytes(b"whole")
        storage.sweep(str(tmp_path))
        assert temporary.exists(), "its writer works on it"
        assert not left.exists()
    assert sorted(os.listdir(deep)) == sorted([*names, ".link.abcdefgh.part", "c.bin"])
    assert (deep / "c.bin").read_bytes() == b"whole"
    storage.sweep(str(tmp_path / "nothing"))


def test_a_read_that_stalls_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(local_files, "STALL_SECONDS", 0.05)
    local_files._start_watching.cache_clear()  # the running one sleeps for longer
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it waits for a writer, as a dead network drive would
    reading = threading.Thread(target=storage.read_bytes, args=[str(pipe)])
    reading.start()
    while not caplog.messages:
        threading.Event().wait(0.01)
    threading.Event().wait(0.2)
    with pipe.open("wb"):
        pass
    reading.join(60)
    (said,) = caplog.messages
    assert f"to read {pipe}" in said
    assert not local_files._pending
