from __future__ import annotations

import csv
import hashlib
import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.config import DataConfig
from pipeline.data.sources import download, public
from pipeline.data.sources.archives import is_archive
from pipeline.data.sources.listing import CIRCLE
from pipeline.data.sources.opening import open_source
from pipeline.data.sources.source import Entry, LocalFile, Source
from pipeline.data.sources.tables import is_csv, is_parquet
from tests.pipeline.data.sources.test_download import Server, server
from tests.pipeline.pictures import FOUR, encoded, folder, picture
from tests.pipeline.s3 import S3Server

__all__ = ["server"]


def opened(source: Path | str, tmp_path: Path, **data: Any) -> Source:
    return open_source(DataConfig(source=str(source), **data), tmp_path / "downloads")


def counts(source: Source) -> dict[str, int]:
    return {split: len(entries) for split, entries in source.splits.items()}


def contents(source: Source) -> dict[str, list[tuple[str, bytes, bytes | None]]]:
    def read(entry: Entry) -> tuple[str, bytes, bytes | None]:
        return Path(entry.name).name, entry.image.read(), entry.mask.read() if entry.mask else None

    return {split: sorted(map(read, entries)) for split, entries in source.splits.items()}


def zipped(root: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as file:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(root.parent))
    return target


def tarred(root: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz") as file:
        file.add(root, root.name)
    return target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return folder(tmp_path / "set", FOUR, masks=True)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "http", "s3 zip", "s3 prefix"])
def test_every_way_to_the_same_images(
    kind: str, root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with opened(root, tmp_path) as plain:
        want, digest = contents(plain), plain.digest()
    pack = tarred if kind == "tar.gz" else zipped
    where = str(pack(root, tmp_path / ("x.tar.gz" if kind == "tar.gz" else "x.zip")))
    if kind == "http":
        web: Server = request.getfixturevalue("server")
        web.body = Path(where).read_bytes()
        where = web.url
    if kind.startswith("s3"):
        bucket: S3Server = request.getfixturevalue("s3")
        storage.upload_file(where, storage.join(bucket.uri, "x.zip"))
        storage.upload_folder(root, storage.join(bucket.uri, "raw"))
        where = storage.join(bucket.uri, "x.zip" if kind == "s3 zip" else "raw")
    with opened(where, tmp_path) as source:
        assert contents(source) == want
        assert source.description == where
        assert (source.digest() == digest) == (kind != "s3 prefix")
        assert source.remote == (kind == "s3 prefix")
    left = list((tmp_path / "downloads").glob("*.zip"))
    assert len(left) == (kind == "http")


def test_an_archive_leaves_no_folder_behind(root: Path, tmp_path: Path) -> None:
    with opened(zipped(root, tmp_path / "x.zip"), tmp_path) as source:
        readable: Any = source.splits["trainA"][0].image
        assert Path(readable.path).exists()
    assert not Path(readable.path).exists()


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "set/../../evil.jpg", "/abs/evil.jpg", "C:/evil.jpg", "..\\evil.jpg"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "inside" / f"evil.{kind}"
    target.parent.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as file:
            file.writestr(name, b"x")
    else:
        with tarfile.open(target, "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(BadInput, match="outside its folder") as caught:
        opened(target, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize("suffix", ["tar", "tgz", "tbz2", "txz"])
def test_a_damaged_tar_is_read_up_to_the_damage_and_the_rest_named(
    root: Path, tmp_path: Path, suffix: str
) -> None:
    whole = tmp_path / f"whole.{suffix}"
    packed = {"tar": "", "tgz": "gz", "tbz2": "bz2", "txz": "xz"}[suffix]
    with tarfile.open(whole, f"w:{packed}") as file:
        for split in ("trainB", "testB", "testA", "trainA"):  # what comes first survives
            file.add(root / split, f"images/{split}")
    with tarfile.open(whole) as file:
        headers = [member.offset for member in file if member.isfile()]
    with opened(whole, tmp_path) as source:
        assert counts(source) == FOUR
        assert source.left_out == []
    data = whole.read_bytes()
    cases = [(data[: len(data) * 9 // 10], "the rest of the archive"), (data[:-1], "archive")]
    if suffix == "tbz2":
        cases = []  # its one block is lost as a whole
    if suffix == "tar":
        cases = [
            (data[: headers[-1]], "the end of the archive"),
            (data[: headers[-1] + 3 * 512 + 200], "the rest of the archive"),
            (data[: headers[-1]] + bytes(512) + data[headers[-1] + 512 :], "a part of the archive"),
            (data[: headers[-2] + 100] + b"?" * 64 + data[headers[-2] + 164 :], "a part of the archive"),
        ]
    for number, (wrong, named) in enumerate(cases):
        target = tmp_path / f"cut{number}.{suffix}"
        target.write_bytes(wrong)
        with opened(target, tmp_path) as source:
            found = counts(source)
            assert FOUR["trainA"] - 3 <= found["trainA"] <= FOUR["trainA"]
            assert {split: n for split, n in found.items() if split != "trainA"} == {
                split: n for split, n in FOUR.items() if split != "trainA"
            }
            assert any(named in name for name, _ in source.left_out), source.left_out
    target = tmp_path / f"quarter.{suffix}"
    target.write_bytes(data[: len(data) // 4] if suffix != "tar" else data[: headers[3]])
    with pytest.raises(BadInput, match=r"is damaged .*is no data set: .*has no folder|cannot be unpacked"):
        opened(target, tmp_path)


def test_tars_that_were_appended_are_read_whole(root: Path, tmp_path: Path) -> None:
    parts = []
    for split in FOUR:
        with tarfile.open(tmp_path / f"{split}.tar", "w") as file:
            file.add(root / split, split)
        parts.append((tmp_path / f"{split}.tar").read_bytes())
    (tmp_path / "all.tar").write_bytes(b"".join(parts))
    with opened(tmp_path / "all.tar", tmp_path) as source:
        assert counts(source) == FOUR
        assert source.left_out == []


def test_a_tars_endless_name_is_refused(tmp_path: Path) -> None:
    """``tarfile`` would read it into memory as it is, however well it is packed."""
    target = tmp_path / "bomb.tar.gz"
    with tarfile.open(target, "w:gz", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("trainA/" + "x" * (3 << 20)))
    with pytest.raises(BadInput, match="a name or header of"):
        opened(target, tmp_path)


def test_a_damaged_zip_is_told_as_such(tmp_path: Path) -> None:
    target = tmp_path / "x.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("trainA/x.bmp", bytes(range(256)) * 100)
    data = target.read_bytes()
    target.write_bytes(data[:60] + b"\xff" * 20 + data[80:])
    with pytest.raises(BadInput, match=r"x\.zip cannot be unpacked"):
        opened(target, tmp_path)


def test_links_in_archives_are_left_out(root: Path, tmp_path: Path) -> None:
    (root / "trainA" / "passwd.jpg").symlink_to("/etc/passwd")
    with opened(tarred(root, tmp_path / "x.tar.gz"), tmp_path) as source:
        assert "passwd.jpg" not in [entry.name for entry in source.splits["trainA"]]


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.sources.archives._MAX_EXPANSION_FROM", 1 << 20)
    for suffix in ("zip", "tar.gz"):
        big = folder(tmp_path / suffix / "set", {"trainA": 1})
        (big / "trainA" / "zeros").write_bytes(bytes(20 << 20))
        target = tmp_path / f"bomb.{suffix}"
        if suffix == "zip":
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
                file.write(big / "trainA" / "zeros", "trainA/zeros")
        else:
            tarred(big, target)
        with pytest.raises(BadInput, match="100 times"):
            opened(target, tmp_path)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda p: p / "nowhere", "there is no folder"),
        (lambda p: "horse2zebr", "did you mean the public set 'horse2zebra'"),
        (lambda p: Path(__file__), "is no folder, nor by its name a zip"),
        (lambda p: p / "nowhere.zip", "there is no file"),
        (lambda p: p / "nowhere.csv", "there is no file"),
        (lambda p: p / "nowhere.parquet", "there is no file"),
        (lambda p: f"{p}/a,{p}/b", "there is no folder"),
        (lambda p: f"{p}/a,{p}/b,{p}/c", "must name two"),
        (lambda p: "http://127.0.0.1:9/page.html", "not the address of a zip"),
        (lambda p: (p / "bad.zip", (p / "bad.zip").write_bytes(b"PK no"))[0], "cannot be unpacked"),
        (lambda p: (p / "bad.parquet", (p / "bad.parquet").write_bytes(b"no"))[0], "not a Parquet file"),
        (lambda p: (p / "bad.csv", (p / "bad.csv").write_text("a,b\n1,2\n"))[0], "'image' and 'domain'"),
        (lambda p: folder(p / "x", {"trainA": 2}), "no folder trainB"),
        (lambda p: folder(p / "x", {"trainA": 2, "trainB": 0}), "no training images of domain B"),
        (lambda p: folder(p / "x", {"pics": 2}), "no folder trainA and trainB"),
        (lambda p: folder(p / "x", {"one": 2, "two": 2, "three": 2}), "no folder trainA and trainB"),
        (
            lambda p: (p / "nul.csv", (p / "nul.csv").write_text('image,domain\n"a\0' + "x" * 200_000))[0],
            "line 2",
        ),
        (lambda p: folder(p / "x.csv", {"trainA": 1}), "no folder trainB"),
        (lambda p: folder(p / "x", {"testA": 2, "testB": 2}), "no folder trainA and trainB"),
        (lambda p: f"{folder(p / 'x', {'a': 3})}/a,{p}/x/a", "images of both domains lie in"),
        (lambda p: f"{folder(p / 'x', {'a': 3})},{p}/x/a", "images of both domains lie in"),
        (lambda p: _cut(p), "damaged"),
        (lambda p: _bare_masks(p), r"column 'mask' of binary; it must be struct"),
        (lambda p: _with_column(p, "domain", ["x"] * 8), "two columns 'domain'"),
        (lambda p: _with_column(p, "split", [0] * 8), "column 'split' of int64; each row must hold the text"),
        (lambda p: _with_column(p, "label", [[0]] * 8, without="domain"), "column 'label' of list"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(make: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=match) as caught:
        opened(make(tmp_path), tmp_path)
    assert "\n" not in str(caught.value)


def _bare_masks(folder: Path) -> Path:
    rows = [row(i, domain="AB"[i % 2]) for i in range(8)]
    table = hf_table(rows).append_column("mask", pa.array([b"x"] * 8, pa.binary()))
    pq.write_table(table, folder / "bare.parquet")
    return folder / "bare.parquet"


def _with_column(folder: Path, name: str, values: list[Any], without: str | None = None) -> Path:
    table = hf_table([row(i, domain="AB"[i % 2]) for i in range(8)])
    table = table.drop_columns([without]) if without else table
    pq.write_table(table.append_column(name, pa.array(values)), folder / "odd.parquet")
    return folder / "odd.parquet"


def _cut(folder: Path) -> Path:
    """Parquet whose footer is whole and whose pages are not."""
    path = folder / "cut.parquet"
    rows = [row(i, domain="AB"[i % 2]) for i in range(8)]
    pq.write_table(hf_table(rows), path, compression="gzip")
    data = bytearray(path.read_bytes())
    data[200:600] = bytes(400)
    path.write_bytes(data)
    return path


def test_missing_things_in_object_storage(s3: S3Server, tmp_path: Path) -> None:
    for name, match in (("none", "nothing at"), ("none.zip", "no file"), ("n.csv", "no file")):
        with pytest.raises(BadInput, match=match):
            opened(storage.join(s3.uri, name), tmp_path)


def test_two_folders_are_split_by_contents(tmp_path: Path) -> None:
    made = folder(tmp_path, {"horses": 60, "zebras": 50})
    pair = f"{made}/horses,{made}/zebras"
    first = opened(pair, tmp_path, test_fraction=0.2)
    assert first.names == {"a": "horses", "b": "zebras"}
    total = counts(first)
    assert total["trainA"] + total["testA"] == 60
    assert 4 <= total["testA"] <= 22
    test = {entry.image.read() for entry in first.splits["testA"]}
    for i, path in enumerate(sorted((made / "horses").iterdir())):
        path.rename(path.with_name(f"renamed-{97 * i % 60}.jpg"))
    for i in range(10):
        (made / "horses" / f"new-{i}.jpg").write_bytes(encoded(picture(500 + i), "JPEG"))
    kept = next(iter((made / "horses").glob("renamed*")))
    shutil.copy(kept, made / "horses" / "copy.jpg")
    second = opened(pair, tmp_path, test_fraction=0.2)
    now = {entry.image.read() for entry in second.splits["testA"]}
    assert test <= now, "what was held out stays held out"
    train = {entry.image.read() for entry in second.splits["trainA"]}
    assert not train & now, "a copy falls on the same side"


def test_the_split_is_the_same_on_a_disk_and_in_object_storage(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder(tmp_path / "set", {"horses": 30, "zebras": 30})
    storage.upload_folder(made, storage.join(s3.uri, "set"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("hashlib.md5", _counted := _Counted(hashlib.md5))
    here = opened("~/set/horses,~/set/zebras", tmp_path, test_fraction=0.3)
    assert _counted.calls == 60
    there = opened(storage.join(s3.uri, "set"), tmp_path, test_fraction=0.3)
    assert _counted.calls == 60, "object storage says the MD5 without a download"
    assert contents(here) == contents(there)
    assert here.names == there.names == {"a": "horses", "b": "zebras"}
    assert min(counts(here).values()) > 1
    # an object that was uploaded in parts has no such sum: it is read
    monkeypatch.setattr("pipeline.data.sources.listing._md5", lambda info: None)
    parts = opened(storage.join(s3.uri, "set"), tmp_path, test_fraction=0.3)
    assert _counted.calls == 120
    assert contents(parts) == contents(here)


class _Counted:
    def __init__(self, function: Any) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        return self._function(*args, **options)


def test_two_folders_in_one_or_in_a_zip(tmp_path: Path) -> None:
    made = folder(tmp_path / "set", {"zebras": 12, "horses": 10})
    (made / "LICENSE").write_text("free")
    for where in (made, zipped(made, tmp_path / "x.zip")):
        with opened(where, tmp_path) as source:
            assert source.names == {"a": "horses", "b": "zebras"}
            assert source.description == str(where)
            total = counts(source)
            assert (total["trainA"] + total["testA"], total["trainB"] + total["testB"]) == (10, 12)


def test_other_layouts(tmp_path: Path) -> None:
    made = folder(tmp_path / "x", {"A": 12, "B": 12}, masks=False)
    source = opened(made, tmp_path)
    assert {s[:5] for s in counts(source)} == {"train", "testA", "testB"}
    assert sum(counts(source).values()) == 24
    deep = folder(tmp_path / "y" / "trainA", {"one": 3, "two": 3}).parent
    folder(deep, {"trainB": 4})
    assert counts(opened(deep, tmp_path))["testB"] == 2, "as many as can be scored"
    names = [e.name for s in ("trainA", "testA") for e in opened(deep, tmp_path).splits[s]]
    assert "one/one-000.jpg" in names


@pytest.mark.parametrize("called", ["train_{}", "Train{}", "horses{}"])
def test_masks_in_folders_called_as_those_of_the_images(called: str, tmp_path: Path) -> None:
    names = {d: called.format(d) for d in "AB"}
    folder(tmp_path / "set", dict.fromkeys(names.values(), 6))
    for name in names.values():
        folder(tmp_path / "set" / "masks", {name: 6})
    found = opened(tmp_path / "set", tmp_path).splits
    assert all(entry.mask is not None for entries in found.values() for entry in entries)


def test_masks_that_belong_to_nothing_are_not_passed_over(tmp_path: Path) -> None:
    folder(tmp_path / "set", FOUR)
    folder(tmp_path / "set" / "masks", {"trainX": 6})
    with pytest.raises(BadInput, match=r"no mask in .*masks belongs to an image"):
        opened(tmp_path / "set", tmp_path)


def test_masks_of_equally_called_folders_are_not_mixed(tmp_path: Path) -> None:
    for side in ("first", "second"):
        folder(tmp_path / side, {"images": 6})
    folder(tmp_path / "masks", {"images": 6, "A": 6})
    for name in list((tmp_path / "masks" / "A").iterdir()):
        name.rename(name.with_name(name.name.replace("A-", "images-")))
    source = opened(
        f"{tmp_path / 'first/images'},{tmp_path / 'second/images'}", tmp_path, masks=str(tmp_path / "masks")
    )
    assert all(
        (entry.mask is not None) == (split[-1] == "A") for split, es in source.splits.items() for entry in es
    )


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", FOUR)
    pool = folder(tmp_path / "pool", {"more": 3}) / "more"
    (root / "trainA" / "pool").symlink_to(pool)
    (root / "trainA" / "latest").symlink_to(".")
    (pool / "back").symlink_to(root / "trainA")
    (root / "trainA" / "all").symlink_to("..")
    with opened(root, tmp_path) as source:
        assert counts(source)["trainA"] == FOUR["trainA"] + 3
        circles = [name for name, reason in source.left_out if reason == CIRCLE]
        assert circles == ["trainA/all", "trainA/latest", "trainA/pool/back"]


def test_masks_may_lie_elsewhere(tmp_path: Path) -> None:
    made = folder(tmp_path / "x", FOUR, masks=True)
    (made / "masks").rename(tmp_path / "elsewhere")
    assert not any(e.mask for _, e in opened(made, tmp_path))
    source = opened(made, tmp_path, masks=str(tmp_path / "elsewhere"))
    assert sum(e.mask is not None for _, e in source) == FOUR["trainA"] + FOUR["trainB"]
    with pytest.raises(BadInput, match=r"data\.masks"):
        opened(made, tmp_path, masks=str(tmp_path / "misspelt"))


@pytest.mark.parametrize("ending", ["", "?download=true", "#sha256=" + "0" * 64])
def test_an_address_is_known_by_the_name_of_its_file(ending: str) -> None:
    assert is_parquet(f"https://host/train.parquet{ending}")
    assert is_csv(f"https://host/list.tsv{ending}")
    assert is_archive(f"https://host/set.tar.gz{ending}")
    assert not is_parquet(f"https://host/get{ending or '?file=x.parquet'}")


def hf_table(rows: list[dict[str, Any]]) -> pa.Table:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": image, "mask": image}
    names = list(rows[0])
    return pa.table({n: pa.array([r[n] for r in rows], types.get(n)) for n in names})


def row(seed: int, **more: Any) -> dict[str, Any]:
    return {"image": {"bytes": encoded(picture(seed)), "path": f"{seed}.png"}, **more}


def test_one_parquet_file_with_domains_and_splits(tmp_path: Path) -> None:
    rows = [
        row(
            i,
            domain=("cat", "dog")[i % 2],
            split="test" if i >= 12 else "train",
            mask=None if i % 3 else row(i)["image"],
        )
        for i in range(20)
    ]
    pq.write_table(hf_table(rows), tmp_path / "x.parquet")
    with opened(tmp_path / "x.parquet", tmp_path) as source:
        assert counts(source) == {"trainA": 6, "trainB": 6, "testA": 4, "testB": 4}
        assert source.names == {"a": "cat", "b": "dog"}
        assert source.splits["testB"][0].name == "13.png"
        assert source.splits["testB"][0].image.read() == rows[13]["image"]["bytes"]
        assert sum(e.mask is not None for _, e in source) == 7


def test_two_parquet_files_and_paths_without_bytes(tmp_path: Path, s3: S3Server) -> None:
    made = folder(tmp_path / "pics", {"trainA": 6})
    paths = [{"image": {"bytes": None, "path": f"pics/trainA/trainA-{i:03d}.jpg"}} for i in range(6)]
    pq.write_table(hf_table(paths), tmp_path / "a.parquet")
    pq.write_table(hf_table([row(i) for i in range(5)] + [{"image": None}]), tmp_path / "b.parquet")
    storage.upload_file(tmp_path / "b.parquet", storage.join(s3.uri, "b.parquet"))
    pair = f"{tmp_path}/a.parquet,{s3.uri}/b.parquet"
    with opened(pair, tmp_path) as source:
        total = counts(source)
        assert total["trainA"] + total["testA"] == 6
        assert total["trainB"] + total["testB"] == 6
        one = next(e for _, e in source if e.name.endswith("trainA-003.jpg"))
        assert one.image.read() == (made / "trainA" / "trainA-003.jpg").read_bytes()
        with pytest.raises(OSError, match="neither bytes nor a path"):
            next(e for _, e in source if e.name == "row-000000006").image.read()


def test_a_csv_list_of_paths_addresses_and_objects(tmp_path: Path, s3: S3Server, server: Server) -> None:
    made = folder(tmp_path / "pics", {"trainA": 6, "trainB": 6}, masks=True)
    server.body = encoded(picture(77))
    storage.write_bytes(storage.join(s3.uri, "far.png"), encoded(picture(78)))
    odd = ("http://host:abc/x.jpg", "http://[bad/x.jpg", f"http://127.0.0.1:9/{'x' * 300}.jpg")
    with (tmp_path / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "domain", "split", "mask"])
        for domain in "AB":
            for i in range(6):
                name = f"train{domain}/train{domain}-{i:03d}"
                table.writerow(
                    [f"pics/{name}.jpg", domain, "val" if i == 5 else "", f"{made}/masks/{name}.png"]
                )
        table.writerow([server.url, "A", "train", ""])
        table.writerow([f"{s3.uri}/far.png", "B", "train", ""])
        table.writerow([server.url.replace("some", "lost"), "B", "train", ""])
        for address in odd:
            table.writerow([address, "A", "train", ""])
    source = opened(tmp_path / "list.csv", tmp_path)
    assert counts(source) == {"trainA": 9, "trainB": 7, "testA": 1, "testB": 1}
    by_name = {e.name: e for _, e in source}
    assert by_name[server.url].image.read() == server.body
    assert by_name[f"{s3.uri}/far.png"].image.read() == encoded(picture(78))
    assert sum(e.mask is not None for e in by_name.values()) == 12
    for address in odd:
        with pytest.raises(OSError, match=r"leads nowhere|is no address|cannot be reached"):
            by_name[address].image.read()
    with pytest.raises(OSError, match="404"):
        by_name[server.url.replace("some", "lost")].image.read()


def test_what_a_csv_list_may_look_like(tmp_path: Path) -> None:
    made = folder(tmp_path / "pics", {"trainA": 4, "trainB": 4})
    lines = [
        f"pics/{path.parent.name}/{path.name},{'aB'[path.parent.name[-1] == 'B']}"
        for path in made.rglob("*.jpg")
    ]
    lines += ["pics/\0.jpg,a", "http://127.0.0.1:9/x.jpg?X-Amz-Signature=TOPSECRET,a"]
    (tmp_path / "list.csv").write_text("\n".join(["image,domain", *lines]))
    source = opened(f"file://{tmp_path}/list.csv", tmp_path)
    assert "TOPSECRET" not in repr(source.splits)
    readable = {
        split: [e.name for e in entries if isinstance(e.image, LocalFile)]
        for split, entries in source.splits.items()
    }
    assert all(e.image.read() for _, e in source if isinstance(e.image, LocalFile))
    assert sum(map(len, readable.values())) == 8
    assert all(f"/train{split[-1]}/" in name for split, names in readable.items() for name in names)


def test_a_list_full_of_dead_addresses_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = folder(tmp_path / "pics", {"trainA": 4, "trainB": 4})
    monkeypatch.setattr("pipeline.data.sources.tables._FETCHES", 1)
    tried: list[int] = []
    fetch = download.fetch

    def counted(url: str, folder: Path, attempts: int) -> Path:
        tried.append(attempts)
        return fetch(url, folder, lambda seconds: None, attempts)

    monkeypatch.setattr("pipeline.data.sources.download.fetch", counted)
    lines = [f"{path},{path.parent.name[-1]},train" for path in sorted(made.rglob("*.jpg"))]
    lines += [f"http://127.0.0.1:9/{i}.jpg,A,train" for i in range(20)]
    (tmp_path / "list.csv").write_text("\n".join(["image,domain,split", *lines]))
    events: list[dict[str, Any]] = []
    config = DataConfig(source=str(tmp_path / "list.csv"))
    source = open_source(config, tmp_path / "downloads", events.append)
    assert tried == [2] + [1] * 19
    assert len(source.splits["trainA"]) + len(source.splits["testA"]) == 24
    assert (events[-1]["done"], events[-1]["total"]) == (28, 28)


def test_public_sets_by_name(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    assert public.canonical("summer2winter") == "summer2winter_yosemite"
    assert public.canonical("something") is None
    assert public.url("horse2zebra").endswith("/horse2zebra.zip")
    server.body = zipped(root, tmp_path / "x.zip").read_bytes()
    monkeypatch.setattr(public, "ADDRESS", server.url.replace("some%20set", "some-{name}"))
    with opened("horse2zebra", tmp_path) as source:
        assert counts(source) == FOUR
        assert source.names == {"a": "horse", "b": "zebra"}
    monkeypatch.setattr(public, "ADDRESS", server.url.replace("some%20set", "lost-{name}"))
    with pytest.raises(BadInput, match=r"public set 'maps'.*404.*data.source") as caught:
        opened("maps", tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "here").mkdir()
    folder(tmp_path / "here" / "maps", FOUR)
    monkeypatch.chdir(tmp_path / "here")
    assert counts(opened("maps", tmp_path)) == FOUR, "a folder of that name comes first"


def test_the_built_in_set_is_always_the_same(tmp_path: Path) -> None:
    builtin = {"train": 3, "test": 2, "size": 40}
    one, two = (opened("builtin", tmp_path, builtin=builtin) for _ in range(2))
    assert one.digest() == two.digest()
    assert contents(one) == contents(two)
    assert opened("builtin", tmp_path, builtin={**builtin, "seed": 1}).digest() != one.digest()
    images = [e.image.read() for _, e in one]
    assert len(set(images)) == 10
