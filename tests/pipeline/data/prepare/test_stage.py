from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from agit_core.errors import BadInput, RunFailed
from pipeline import storage
from pipeline.config import Config, parse
from pipeline.data.format import manifest
from pipeline.data.litter import SIDECAR
from pipeline.data.prepare import build, encode
from pipeline.data.prepare.parallel import ordered_map
from pipeline.data.prepare.stage import Prepared, prepare
from pipeline.data.read.reader import ShardImages
from tests.pipeline.command import environment
from tests.pipeline.killed import write_and_die
from tests.pipeline.pictures import FOUR, encoded, folder, picture
from tests.pipeline.s3 import S3Server


def config(source: Path | str, store: Path | str, **data: Any) -> Config:
    settings = {"image_size": 32, "load_size": 36, "workers": 1, "rows_per_group": 3, **data}
    return parse({"name": "toy", "storage": str(store), "data": {"source": str(source), **settings}})


def files(uri: str) -> dict[str, bytes]:
    """Everything but the manifest, whose date changes."""
    found = storage.list_(uri, recursive=True)
    return {f[len(uri) + 1 :]: storage.read_bytes(f) for f in found if not f.endswith("manifest.json")}


def balanced(made: Prepared) -> bool:
    return all(
        split.files_in == split.rows + len(split.quarantined) for split in made.manifest.splits.values()
    )


def names(made: Prepared, split: str) -> list[str]:
    images = ShardImages(made.uri, split, Path("unused"), 0)
    return [images.name(i) for i in range(len(images))]


def test_a_folder_becomes_shards_and_a_manifest(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR, masks=True)
    events: list[dict[str, Any]] = []
    made = prepare(config(source, tmp_path / "out"), events.append)
    manifest = made.manifest
    assert not made.reused
    assert {split: s.rows for split, s in manifest.splits.items()} == FOUR
    assert {split: s.masks for split, s in manifest.splits.items()} == {**FOUR, "testA": 0, "testB": 0}
    assert balanced(made)
    assert manifest.totals["images"] == sum(FOUR.values())
    assert (manifest.image_size, manifest.load_size) == (32, 36)
    assert json.loads((Path(made.uri) / "manifest.json").read_text()) == manifest.plain()
    assert manifest.fingerprint in made.uri
    assert not (Path(made.uri) / ".parts").exists()
    assert events[-2]["done"] == events[-2]["total"] == sum(FOUR.values())
    assert pq.ParquetFile(f"{made.uri}/trainA/part-00000.parquet").metadata.num_row_groups == 3
    sizes = {s: ShardImages(made.uri, s, tmp_path, 0).read(0).shape for s in ("trainB", "testB")}
    assert sizes == {"trainB": (3, 36, 36), "testB": (3, 32, 32)}
    assert sorted(names(made, "testA")) == [f"testA-{i:03d}.jpg" for i in range(4)]


def test_the_same_again_is_reused_and_any_change_is_not(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    first = prepare(config(source, tmp_path / "out"))
    assert prepare(config(source, tmp_path / "out")).reused
    assert prepare(config(source, tmp_path / "out", workers=2)).reused
    shutil.copytree(source, tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.jpg"):
        os.utime(path, (1, 1))
    assert prepare(config(tmp_path / "moved", tmp_path / "out")).uri == first.uri, (
        "contents decide, not dates"
    )
    assert not prepare(config(source, tmp_path / "out", jpeg_quality=90)).reused
    (source / "trainA" / "trainA-000.jpg").write_bytes(encoded(picture(99), "JPEG"))
    changed = prepare(config(source, tmp_path / "out"))
    assert changed.uri != first.uri
    masks = source / "masks" / "trainA"
    masks.mkdir(parents=True)
    Image.new("L", (40, 40), 255).save(masks / "trainA-000.png")
    assert prepare(config(source, tmp_path / "out")).manifest.totals["masks"] == 1


def test_bad_files_are_set_aside_and_the_run_goes_on(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    good = encoded(picture(1, (300, 300)), "JPEG")
    (source / "trainA" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (source / "trainA" / "film.mp4").write_text("not an image")
    (source / "trainB" / "tiny.png").write_bytes(encoded(picture(1, (8, 8))))
    (source / "testA" / "empty.jpg").write_bytes(b"")
    (source / "testA" / ".DS_Store").write_bytes(b"litter")
    made = prepare(config(source, tmp_path / "out"))
    aside = {
        split: {q["name"]: q["reason"] for q in s.quarantined} for split, s in made.manifest.splits.items()
    }
    assert set(aside["trainA"]) == {"cut.jpg", "film.mp4"}
    assert "not an image" in aside["trainA"]["film.mp4"]
    assert set(aside["trainB"]) == {"tiny.png"}
    assert set(aside["testA"]) == {"empty.jpg"}
    assert balanced(made)
    assert made.manifest.totals["files_in"] == sum(FOUR.values()) + 4


def test_every_file_is_stored_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.prepare.stage._MOST_LEFT_OUT", 3)
    source = folder(tmp_path / "in", {**FOUR, "raw": 2}, masks=True)
    inside = source / "trainA"
    for number, name in enumerate(
        ("x.jfif", "nosuffix", "2009:12:01 06:58.png", "n" * 251 + ".jpg", "d.jpg/in.jpg")
    ):
        (inside / name).parent.mkdir(exist_ok=True)
        (inside / name).write_bytes(encoded(picture(100 + number), "JPEG"))
    for name, data in (
        ("zero.png", b""),
        ("page.jpg", b"<html>"),
        ("a.zip", b"PK\x03\x04"),
        ("i.heic", HEIC),
    ):
        (inside / name).write_bytes(data)
    for name in ("a.txt", "b.json", "c.xml", "d.csv", "e.yaml"):
        (inside / name).write_text("text")
    os.mkfifo(inside / "pipe.jpg")
    (inside / "gone.jpg").symlink_to("nowhere")
    (source / "masks" / "trainA" / "nobody.png").write_bytes(encoded(picture(1, mode="L")))
    (source / "README.md").write_text("photographs")
    made = prepare(config(source, tmp_path / "out", maximum_quarantined=0.5)).manifest
    on_disk = [path for path in source.rglob("*") if not path.is_dir() and path.parent.parent.name != "masks"]
    reasons = {entry["name"]: entry["reason"] for entry in made.left_out}
    assert {name: reasons[name] for name in ("2 more", "README.md")} == {
        "2 more": SIDECAR,
        "README.md": "lies beside the folders that are read",
    }
    assert "(2 files)" in reasons["raw/"]
    assert reasons["masks/trainA/nobody.png"] == "the mask belongs to no image"
    assert sum(reason == SIDECAR for reason in reasons.values()) == 3 + 1
    totals = made.totals
    assert totals["images"] + totals["quarantined"] + 5 + 1 + 2 == len(on_disk)
    assert totals["quarantined"] == 6


HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


def test_names_of_an_older_encoding(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    for name, content in ((b"gr\xfcn.png", encoded(picture(99, (64, 64)))), (b"schl\xe4cht.png", b"no")):
        Path(os.fsdecode(bytes(source / "trainA") + b"/" + name)).write_bytes(content)
    made = prepare(config(source, tmp_path / "out"))
    assert [q["name"] for q in made.manifest.splits["trainA"].quarantined] == [r"schl\xe4cht.png"]
    assert (
        r"gr\xfcn.png" in manifest.read_index(made.uri, made.manifest, "trainA", ["name"])["name"].to_pylist()
    )


def test_too_many_bad_files_stop_the_run_and_leave_nothing(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    for i in range(8):
        (source / "trainB" / f"bad-{i}.jpg").write_text("no")
    with pytest.raises(BadInput, match=r"8 of 30 files .* trainB/bad-\d.jpg: not an image.*maximum_quaran"):
        prepare(config(source, tmp_path / "out"))
    assert storage.list_(str(tmp_path / "out"), recursive=True) == []
    assert balanced(prepare(config(source, tmp_path / "out", maximum_quarantined=0.5)))
    for path in (source / "testB").iterdir():
        path.write_text("no")
    with pytest.raises(BadInput, match="no image of testB"):
        prepare(config(source, tmp_path / "out2", maximum_quarantined=1.0))


def test_limits_take_the_first_by_name(tmp_path: Path) -> None:
    made = prepare(config(folder(tmp_path / "in", FOUR), tmp_path / "out", limit=3, test_limit=2))
    assert sorted(names(made, "trainA")) == ["trainA-000.jpg", "trainA-001.jpg", "trainA-002.jpg"]
    assert {split: s.rows for split, s in made.manifest.splits.items()} == {
        "trainA": 3,
        "trainB": 3,
        "testA": 2,
        "testB": 2,
    }


def shuffled_copy(source: Path, target: Path) -> Path:
    """The same files, created in another order (which changes the order a folder lists them in)."""
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    random.Random(1).shuffle(paths)
    for path in paths:
        there = target / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    return target


def test_shards_are_equal_to_the_byte_for_any_workers_and_file_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "ENTRIES_PER_WORKER", 4)
    monkeypatch.setattr(build, "ENTRIES_PER_TASK", 3)
    source = folder(tmp_path / "in", {**FOUR, "trainA": 40}, masks=True)
    (source / "trainA" / "broken.jpg").write_text("no")
    one = prepare(config(source, tmp_path / "one", shard_bytes=4096))
    assert len(one.manifest.splits["trainA"].shards) > 2
    again = shuffled_copy(source, tmp_path / "again")
    two = prepare(config(again, tmp_path / "two", shard_bytes=4096, workers=2))
    assert files(one.uri) == files(two.uri)
    strip = {"created", "source", "checksum"}
    assert {k: v for k, v in one.manifest.plain().items() if k not in strip} == {
        k: v for k, v in two.manifest.plain().items() if k not in strip
    }


def test_a_change_touches_only_its_shards_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(tmp_path / "in", {**FOUR, "trainA": 60}, masks=True)
    (source / "trainA" / "broken.jpg").write_text("no")
    settings = {"shard_bytes": 4096}
    prepare(config(source, tmp_path / "grown", **settings))
    (source / "trainA" / "new.jpg").write_bytes(encoded(picture(1000), "JPEG"))
    (source / "trainA" / "trainA-004.jpg").write_bytes(encoded(picture(1001), "JPEG"))
    (source / "trainA" / "trainA-007.jpg").unlink()
    (source / "masks" / "trainA" / "trainA-009.png").unlink()
    read: list[str] = []
    real = encode.store

    def counting(data: bytes, *rest: Any) -> Any:
        read.append("image")
        return real(data, *rest)

    monkeypatch.setattr(encode, "store", counting)
    grown = prepare(config(source, tmp_path / "grown", **settings))
    assert len(read) == 3, "the new, the changed and the one without its mask"
    assert grown.manifest.kept == grown.manifest.totals["files_in"] - 3
    fresh = prepare(config(source, tmp_path / "fresh", **settings))
    assert files(grown.uri) == files(fresh.uri)
    assert grown.manifest.splits == fresh.manifest.splits


def test_growing_until_shards_split_ends_the_same(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {**FOUR, "trainA": 12})
    few = prepare(config(source, tmp_path / "grown", shard_bytes=8192))
    folder(source, {"trainA": 60})
    many = prepare(config(source, tmp_path / "grown", shard_bytes=8192))
    shards = [len(made.manifest.splits["trainA"].shards) for made in (few, many)]
    assert shards[1] >= 2 * shards[0]
    assert many.manifest.kept == few.manifest.totals["files_in"]
    assert files(many.uri) == files(prepare(config(source, tmp_path / "fresh", shard_bytes=8192)).uri)
    for path in list((source / "trainA").iterdir())[12:]:
        path.unlink()
    shrunk = prepare(config(source, tmp_path / "grown", shard_bytes=8192))
    assert files(shrunk.uri) == files(prepare(config(source, tmp_path / "fresh2", shard_bytes=8192)).uri)


def _flip(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda first: _flip(first / "trainA" / "part-00000.parquet"),
        lambda first: (first / "trainA" / "part-00000.parquet").unlink(),
        lambda first: _flip(first / "testB" / "part-00000.parquet"),
        lambda first: (first / "testB" / "part-00000.parquet").unlink(),
        lambda first: shutil.rmtree(first / "index"),
    ],
    ids=[
        "a flipped bit",
        "a shard gone",
        "a flipped bit in one that would be copied",
        "a shard gone that would be copied",
        "the index gone",
    ],
)
def test_a_damaged_earlier_set_is_not_built_upon(damage: Callable[[Path], None], tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    first = prepare(config(source, tmp_path / "grown"))
    damage(Path(first.uri))
    (source / "trainA" / "new.jpg").write_bytes(encoded(picture(5), "JPEG"))
    grown = prepare(config(source, tmp_path / "grown"))
    assert files(grown.uri) == files(prepare(config(source, tmp_path / "fresh")).uri)


def test_a_stricter_limit_holds_for_prepared_data_too(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    (source / "trainA" / "broken.jpg").write_text("no")
    made = prepare(config(source, tmp_path / "out", duplicates="drop"))
    with pytest.raises(
        BadInput, match=r"1 of 23 files .*trainA/broken.jpg.* more than data.maximum_quarantined"
    ):
        prepare(config(source, tmp_path / "out", duplicates="drop", maximum_quarantined=0.01))
    again = prepare(config(source, tmp_path / "out", duplicates="drop"))
    assert (again.reused, again.uri) == (True, made.uri)
    # copies that were dropped are usable files
    dropped = prepare(config(copies(tmp_path / "more"), tmp_path / "out", duplicates="drop"))
    assert (
        prepare(
            config(tmp_path / "more" / "in", tmp_path / "out", duplicates="drop", maximum_quarantined=0)
        ).uri
        == dropped.uri
    )


def copies(tmp_path: Path) -> Path:
    source = folder(tmp_path / "in", FOUR)
    shutil.copy(source / "trainA" / "trainA-001.jpg", source / "trainA" / "copy.jpg")
    shutil.copy(source / "trainA" / "trainA-002.jpg", source / "testA" / "leak.jpg")
    near = Image.open(source / "trainB" / "trainB-003.jpg")
    near.save(source / "trainB" / "near.jpg", quality=60)
    return source


def test_copies_and_leaks_are_reported(tmp_path: Path) -> None:
    made = prepare(config(copies(tmp_path), tmp_path / "out"))
    duplicates = made.manifest.duplicates
    assert sorted(map(sorted, duplicates.groups)) == [
        ["testA/leak.jpg", "trainA/trainA-002.jpg"],
        ["trainA/copy.jpg", "trainA/trainA-001.jpg"],
    ]
    assert [sorted(group) for group in duplicates.near] == [["trainB/near.jpg", "trainB/trainB-003.jpg"]]
    assert made.manifest.leaks == [["trainA/trainA-002.jpg", "testA/leak.jpg"]]
    assert made.manifest.near_leaks == []
    assert made.manifest.totals["images"] == sum(FOUR.values()) + 3


def test_a_split_of_nothing_but_copies_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    shutil.rmtree(source / "testA")
    shutil.copytree(source / "trainA", source / "testA")
    with pytest.raises(BadInput, match=r"every image of trainA .* is a copy"):
        prepare(config(source, tmp_path / "out", duplicates="drop"))
    assert not list((tmp_path / "out").glob("data/*/manifest.json"))


def test_the_example_is_of_the_split_that_is_empty(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    (source / "trainA" / "page.jpg").write_text("no image")
    for path in (source / "trainB").iterdir():
        path.write_bytes(HEIC)
    with pytest.raises(
        BadInput, match=r"no image of trainB .*\(such as trainB/.*HEIC is not read; convert it"
    ):
        prepare(config(source, tmp_path / "out"))


def test_copies_can_be_dropped(tmp_path: Path) -> None:
    source = copies(tmp_path)
    made = prepare(config(source, tmp_path / "out", duplicates="drop"))
    reasons = {
        f"{split}/{q['name']}": q["reason"]
        for split, s in made.manifest.splits.items()
        for q in s.quarantined
    }
    assert reasons == {
        "trainA/trainA-001.jpg": "duplicate of trainA/copy.jpg",
        "trainA/trainA-002.jpg": "duplicate of testA/leak.jpg",
        "trainB/trainB-003.jpg": "duplicate of trainB/near.jpg",
    }
    assert balanced(made)
    assert "trainA-001.jpg" not in names(made, "trainA")
    (source / "testA" / "leak.jpg").unlink()
    again = prepare(config(source, tmp_path / "out", duplicates="drop"))
    assert "trainA-002.jpg" in names(again, "trainA"), "it is no copy any more"
    assert files(again.uri) == files(prepare(config(source, tmp_path / "fresh", duplicates="drop")).uri)


def test_every_stage_of_preparing_works_in_object_storage(s3: S3Server, tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {**FOUR, "trainA": 20}, masks=True)
    uri = storage.join(s3.uri, "deep/prefix")
    there = prepare(config(source, uri, shard_bytes=4096))
    here = prepare(config(source, tmp_path / "out", shard_bytes=4096))
    assert files(there.uri) == files(here.uri)
    assert prepare(config(source, uri, shard_bytes=4096)).reused
    (source / "trainA" / "new.jpg").write_bytes(encoded(picture(5), "JPEG"))
    assert prepare(config(source, uri, shard_bytes=4096)).manifest.kept == 34


def test_a_server_that_dies_fails_the_run_and_the_same_call_finishes_it(
    s3_private: S3Server, tmp_path: Path
) -> None:
    settings = config(folder(tmp_path / "in", FOUR), s3_private.uri)

    def dying(event: dict[str, Any]) -> None:
        if event.get("done", 0) >= 8:
            s3_private.stop()

    with pytest.raises(RunFailed) as caught:
        prepare(settings, dying)
    assert "does not answer" in str(caught.value)
    assert "\n" not in str(caught.value)
    s3_private.start()
    made = prepare(settings)
    assert files(made.uri) == files(prepare(config(tmp_path / "in", tmp_path / "out")).uri)
    leftovers = [f for f in storage.list_(s3_private.uri, recursive=True) if not f.startswith(made.uri)]
    assert leftovers == []
    assert not any(".parts" in f for f in storage.list_(made.uri, recursive=True))


_KILLED = """
import sys, time
from tests.pipeline.data.prepare.test_stage import config, prepare
def slow(event):
    if "done" in event:
        print(event["done"], flush=True)
        time.sleep(0.05)
if __name__ == "__main__":
    prepare(config(sys.argv[1], sys.argv[2], shard_bytes=4096, workers=2), slow)
"""


def test_a_kill_in_the_middle_ends_the_same(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {**FOUR, "trainA": 300, "trainB": 300})
    script = tmp_path / "killed.py"
    script.write_text(_KILLED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(source), str(tmp_path / "killed")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 150:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = storage.list_(str(tmp_path / "killed"), recursive=True)
    notes = [f for f in left if "/.parts/train" in f]
    assert len(notes) > 3
    for note, data in zip(notes[1:], (b"", Path(notes[2]).read_bytes()[:-30], b"{" * 99), strict=False):
        Path(note).write_bytes(data)
    Path(notes[0]).with_name("owner.json").write_text("[" * 100_000)
    assert not any(f.endswith("manifest.json") for f in left)
    # where the kill may have hit
    write_and_die(Path(notes[0]).parent.parent / "trainA" / "part-00000.parquet")
    deadline = time.monotonic() + 20
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(process.pid), "its workers have ended too"
    events: list[dict[str, Any]] = []
    made = prepare(config(source, tmp_path / "killed", shard_bytes=4096), events.append)
    done = [event["done"] for event in events if "done" in event]
    assert done[0] > 0, "finished shards are not made again"
    assert files(made.uri) == files(prepare(config(source, tmp_path / "whole", shard_bytes=4096)).uri)


def _alive(group: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    with (source / "trainA" / "huge.png").open("wb") as file:
        file.truncate(200 * 2**30)  # sparse: it takes no room
    made = prepare(config(source, tmp_path / "out"))
    (refused,) = made.manifest.splits["trainA"].quarantined
    assert refused["name"] == "huge.png"
    assert refused["reason"] == "cannot be read: its size is 200 GiB, the limit 2 GiB"


def test_what_a_killed_run_left_is_swept_a_day_later(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", FOUR)
    out = tmp_path / "out"
    for key, age in (("a" * 12, 2 * 86400), ("b" * 12, 60)):
        part = out / "data" / f"toy-{key}" / ".parts"
        part.mkdir(parents=True)
        (part / "started.json").write_text(json.dumps({"time": time.time() - age}))
    (out / "data" / "toy-other-cccccccccccc").mkdir()
    damaged = out / "data" / ("toy-" + "d" * 12) / ".parts"
    damaged.mkdir(parents=True)
    (damaged / "started.json").write_text("{")
    whole = Path(prepare(config(folder(tmp_path / "first", FOUR | {"trainA": 9}), out)).uri)
    # a set whose preparation was killed between its last two acts
    (whole / ".parts").mkdir()
    (whole / ".parts" / "started.json").write_text(json.dumps({"time": time.time() - 2 * 86400}))
    made = prepare(config(source, out))
    assert sorted(p.name for p in (out / "data").iterdir()) == sorted(
        ["toy-" + "b" * 12, "toy-" + "d" * 12, "toy-other-cccccccccccc", whole.name, Path(made.uri).name]
    )
    assert (whole / "manifest.json").exists()
    assert not (whole / ".parts").exists()


def test_a_worker_that_is_killed_is_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailed, match=r"killed \(out of memory\?\), or the calling script lacks `if __name__"
    ):
        list(ordered_map(os._exit, [1] * 4, 2))
    with pytest.raises(RunFailed, match=r"was killed .* fewer data\.workers") as caught:
        list(ordered_map(_die_at_9, range(12), 2))
    assert "__name__" not in str(caught.value), "the script is right: processes came"


def _die_at_9(number: int) -> None:
    if number == 9:
        os._exit(1)


def test_a_script_that_is_not_guarded_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from pipeline.data.prepare.parallel import ordered_map\nprint(list(ordered_map(abs, range(8), 2)))\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert ended.returncode == 1
    assert "RunFailed: no preparation worker started" in ended.stderr
    assert "the calling script lacks `if __name__" in ended.stderr


def test_the_built_in_set(tmp_path: Path) -> None:
    made = prepare(config("builtin", tmp_path / "out", builtin={"train": 6, "test": 4, "size": 40}))
    assert made.manifest.domain_names() == ("plain", "striped")
    assert made.manifest.totals["masks"] == 20
    assert made.manifest.duplicates.exact_groups == 0
    mask = ShardImages(made.uri, "testA", tmp_path, 0).mask(0)
    assert mask is not None
    assert 0.05 < float((mask == 255).float().mean()) < 0.5
