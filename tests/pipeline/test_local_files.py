"""Files that appear whole or not at all, whatever is killed."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline import storage
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
