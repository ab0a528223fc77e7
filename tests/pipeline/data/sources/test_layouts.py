"""Layouts of other tools, and what lies among photographs: read rightly or named, never guessed or waited for."""

from __future__ import annotations

import os
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
from pipeline.data.sources import opening
from pipeline.data.sources.listing import listing
from pipeline.data.sources.opening import open_source
from pipeline.data.sources.source import Source
from tests.pipeline.pictures import FOUR, encoded, folder, picture


def opened(source: Path | str, tmp_path: Path, **data: Any) -> Source:
    return open_source(DataConfig(source=str(source), **data), tmp_path / "downloads")


def counts(source: Source) -> dict[str, int]:
    return {split: len(entries) for split, entries in source.splits.items()}


def test_classes_below_train_and_validation_are_the_domains(tmp_path: Path) -> None:
    root = tmp_path / "set"
    folder(root / "train", {"cat": 5, "dog": 4})
    folder(root / "val", {"cat": 2, "dog": 3}, seed=1)
    with opened(root, tmp_path) as source:
        assert source.names == {"a": "cat", "b": "dog"}
        assert counts(source) == {"trainA": 5, "trainB": 4, "testA": 2, "testB": 3}
    folder(root / "train", {"owl": 1})
    with pytest.raises(BadInput, match=r"one folder for each of two classes.*cat, dog, owl"):
        opened(root, tmp_path)


def test_images_of_one_name_in_test_and_validation_are_two(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "test", "val")):
        folder(tmp_path / "set" / split, {"cat": 2, "dog": 2}, seed=number)
    with opened(tmp_path / "set", tmp_path) as source:
        names = [entry.name for entry in source.splits["testA"]]
        assert names == [f"{split}/cat/cat-00{i}.jpg" for split in ("test", "val") for i in range(2)]


def test_a_folder_may_be_named_like_a_file(tmp_path: Path) -> None:
    with opened(folder(tmp_path / "photos.zip", FOUR), tmp_path) as source:
        assert counts(source) == FOUR


def test_upper_and_lower_case_are_the_same_but_never_merged(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"TrainA": 3, "TRAINB": 3, "testa": 2, "Val_B": 2})
    with opened(root, tmp_path) as source:
        assert counts(source) == {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2}
    folder(root, {"trainA": 1})
    with pytest.raises(BadInput, match="differ in upper and lower case only"):
        opened(root, tmp_path)
    for split, name in (("Train", "Cat"), ("Train", "Dog"), ("val", "cat"), ("val", "DOG")):
        folder(tmp_path / "classes" / split, {name: 3})
    with opened(tmp_path / "classes", tmp_path) as source:
        assert source.names == {"a": "Cat", "b": "Dog"}
        assert counts(source) == dict.fromkeys(counts(source), 3)


@pytest.mark.parametrize("names", [("A", "B"), ("cats", "dogs")])
def test_splits_below_the_domains_are_kept_apart(tmp_path: Path, names: tuple[str, str]) -> None:
    root = tmp_path / "set"
    for name in names:
        folder(root / name, {"train": 4, "test": 2, "val": 1})
    (root / names[0] / "loose.jpg").write_bytes(encoded(picture(1), "JPEG"))
    for where in (root, f"{root / names[0]},{root / names[1]}"):
        with opened(where, tmp_path) as source:
            assert counts(source) == {"trainA": 4, "trainB": 4, "testA": 3, "testB": 3}
            assert [name.split("/")[-1] for name, _ in source.left_out] == ["loose.jpg"]


def test_what_lies_beside_the_splits_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {**FOUR, "trainC": 2})
    (root / "LICENSE").write_text("free")
    (root / "nothing").mkdir()
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        for path in filter(Path.is_file, root.rglob("*")):
            zipped.write(path, f"deep/set/{path.relative_to(root)}")
        zipped.writestr("README.txt", "Photographs.")
        zipped.writestr("other/x.jpg", encoded(picture(3), "JPEG"))
    named = ["LICENSE", "trainC/"]
    with opened(root, tmp_path) as source:
        assert [name for name, _ in source.left_out] == named
        assert "(2 files)" in source.left_out[1][1]
    with opened(tmp_path / "set.zip", tmp_path, masks=None) as source:
        assert sorted(name for name, _ in source.left_out) == sorted([*named, "README.txt", "other/"])


def test_text_beside_images_is_no_image_and_never_held_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"trainA": 6, "trainB": 6}, masks=True)
    for path in [*root.rglob("*.jpg"), *(root / "masks").rglob("*.png")]:
        path.with_suffix(".json").write_text(path.name)
        path.with_suffix(".txt").write_text(path.name)
    with opened(root, tmp_path) as source:
        assert counts(source) == {"trainA": 4, "trainB": 4, "testA": 2, "testB": 2}
        assert all(entry.mask and str(entry.mask).count(".png") for _, entry in source)
        assert len(source.left_out) == 4 * 12


def test_test_and_validation_are_both_test_data(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2, "valA": 1, "valB": 1})
    with opened(root, tmp_path) as source:
        assert counts(source) == {"trainA": 3, "trainB": 3, "testA": 3, "testB": 3}
        assert {entry.name.split("/")[0] for entry in source.splits["testA"]} == {"testA", "valA"}


def test_splits_are_never_taken_for_domains(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must hold one folder for each of two classes"):
        opened(folder(tmp_path / "set", {"train": 3, "test": 3}), tmp_path)


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": encoded(picture(start + i)), "path": f"{i}.png"} for i in range(count)]


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
    ],
)
def test_a_folder_of_parquet_with_labels(tmp_path: Path, names: tuple[str, str]) -> None:
    for number, name in enumerate(names):
        target = tmp_path / "set" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": rows(6, 10 * number), "label": [0, 1] * 3}), target)
    (target.parent / "dataset_info.json").write_text("{}")
    with opened(tmp_path / "set", tmp_path) as source:
        assert counts(source) == {"trainA": 3, "trainB": 3, "testA": 3, "testB": 3}
        assert [Path(name).name for name, _ in source.left_out] == ["dataset_info.json"]


def test_one_damaged_file_of_parquet_does_not_stop_the_others(tmp_path: Path) -> None:
    for number in range(3):
        table = pa.table({"image": rows(6, 10 * number), "label": [0, 1] * 3})
        pq.write_table(table, tmp_path / f"{number}.parquet", compression="gzip")
    data = bytearray((tmp_path / "1.parquet").read_bytes())
    data[200:900] = bytes(700)
    (tmp_path / "1.parquet").write_bytes(data)
    (tmp_path / "2.parquet").write_bytes(b"PAR1 no")
    with opened(tmp_path, tmp_path) as source:
        assert sum(counts(source).values()) == 6
        assert [name for name, _ in source.left_out] == ["1.parquet", "2.parquet"]
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(BadInput, match=r"1\.parquet is damaged"):
        opened(tmp_path, tmp_path)


def test_a_text_that_is_not_utf8_is_its_rows_alone(tmp_path: Path) -> None:
    images = rows(8)
    names = pa.array([b"caf\xe9.png", *(b"%d.png" % i for i in range(7))]).view(pa.string())
    column = pa.StructArray.from_arrays(
        [pa.array([row["bytes"] for row in images]), names], ["bytes", "path"]
    )
    pq.write_table(pa.table({"image": column, "domain": ["x", "y"] * 4}), tmp_path / "t.parquet")
    with opened(tmp_path / "t.parquet", tmp_path) as source:
        entries = {entry.name: entry for _, entry in source}
        assert len(entries) == 8
        assert entries[r"caf\xe9.png"].image.read() == images[0]["bytes"]


def test_rows_of_no_domain_or_split_are_left_out(tmp_path: Path) -> None:
    table = {"image": rows(10), "domain": ["x", "y"] * 4 + [None, "x"], "split": [None] * 9 + ["holdout"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with opened(tmp_path / "t.parquet", tmp_path) as source:
        assert sum(counts(source).values()) == 8
        assert source.left_out == [
            ("8.png", "names no domain"),
            ("9.png", "its split 'holdout' is neither train nor test"),
        ]


def test_metadata_in_parquet_hides_no_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", FOUR)
    pq.write_table(pa.table({"file_name": ["x"]}), root / "metadata.parquet")
    with opened(root, tmp_path) as source:
        assert counts(source)["trainA"] == FOUR["trainA"]


@pytest.mark.parametrize(
    "type_",
    [
        pa.struct([("bytes", pa.float64()), ("path", pa.string())]),
        pa.struct([("bytes", pa.binary()), ("path", pa.int32())]),
        pa.list_(pa.uint8()),
    ],
)
def test_an_ill_typed_image_column_is_one_sentence(tmp_path: Path, type_: pa.DataType) -> None:
    column = pa.array([None] * 4, type_)
    pq.write_table(pa.table({"image": column, "domain": ["x", "y"] * 2}), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match="no column 'image' of struct"):
        opened(tmp_path / "t.parquet", tmp_path)


def test_litter_of_storages_is_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", FOUR)
    for place in ("@eaDir/x.jpg", "#recycle", ".AppleDouble", "$RECYCLE.BIN", "@Recycle"):
        (root / "trainA" / place).mkdir(parents=True)
        (root / "trainA" / place / "SYNOPHOTO_THUMB_M.jpg").write_bytes(encoded(picture(99), "JPEG"))
    with opened(root, tmp_path) as source:
        assert counts(source)["trainA"] == FOUR["trainA"]


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", FOUR)
    os.mkfifo(root / "trainA" / "pipe.png")
    (root / "trainA" / "endless.png").symlink_to("/dev/zero")
    (root / "trainA" / "circle.png").symlink_to("circle.png")
    with opened(root, tmp_path) as source:
        by_name = {entry.name: entry for entry in source.splits["trainA"]}
        assert len(by_name) == FOUR["trainA"] + 3
        for name in ("pipe.png", "endless.png", "circle.png"):
            with pytest.raises(OSError, match=r"pipe, socket or device|symbolic links"):
                by_name[name].image.read()


def test_folders_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, who may read everything: the system's refusal is made here."""
    root = folder(tmp_path / "set", {**FOUR, "extra": 1}, masks=True)
    folder(root / "trainA", {"locked": 1})
    closed: set[str] = {str(root / "trainA" / "locked")}
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path) in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with opened(root, tmp_path) as source:
        locked = next(entry for _, entry in source if entry.name == "locked")
        with pytest.raises(OSError, match=r"Permission denied \(a folder\)"):
            locked.image.read()
    for name in ("testB", "masks", "trainA"):
        closed = {str(root / name)}
        with pytest.raises(BadInput, match=f"the folder .*{name} cannot be read: Permission denied; correct"):
            opened(root, tmp_path)
    closed = {str(root)}
    with pytest.raises(BadInput, match=r"cannot list .*Permission denied"):
        opened(root, tmp_path)


def test_a_mask_that_fits_no_image_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", FOUR, masks=True)
    (root / "masks" / "trainB" / "other.png").write_bytes(encoded(picture(1, mode="L")))
    with opened(root, tmp_path) as source:
        assert source.left_out == [("masks/trainB/other.png", "the mask belongs to no image")]


def test_odd_lines_of_a_list_are_quarantined(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"a": 4, "b": 4})
    lines = [f"{path},{path.parent.name}" for path in sorted(root.rglob("*.jpg"))]
    lines[0] = f"file://{lines[0]}"
    table = tmp_path / "list.csv"
    table.write_text("image,domain\n" + "\n".join([*lines, "ftp://host/x.png,a", "/dev/zero,b"]) + "\n")
    with opened(table, tmp_path) as source:
        entries = {entry.name: entry for _, entry in source}
        assert len(entries) == 10
        for name, reason in (("ftp://host/x.png", "'ftp://' is not read"), ("/dev/zero", "device")):
            with pytest.raises(OSError, match=reason):
                entries[name].image.read()
        assert sum(bool(entry.digest.startswith(("empty", "unreadable"))) for entry in entries.values()) == 2


def test_a_list_from_windows_and_a_line_with_a_comma_too_many(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"a": 4, "b": 4})
    lines = [f"{path.parent.name}\\{path.name},{path.parent.name}" for path in sorted(root.rglob("*.jpg"))]
    (root / "list.csv").write_text("\n".join(["image,domain", *lines, "a\\x,y.jpg,a"]) + "\n")
    with opened(root / "list.csv", tmp_path) as source:
        assert sum(counts(source).values()) == 8
        assert all(entry.image.read() for _, entry in source)
        assert [(name, reason.split(";")[0]) for name, reason in source.left_out] == [
            ("line 10", "has more fields than the header")
        ]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_as_spreadsheets_write_it(tmp_path: Path, mark: str, encoding: str) -> None:
    root = folder(tmp_path / "set", {"a": 4, "b": 4})
    lines = [f"{path.relative_to(root)}{mark} {path.parent.name} " for path in sorted(root.rglob("*.jpg"))]
    table = root / "list.csv"
    table.write_bytes(f"\r\nImage {mark}Domain\r\n{chr(10).join(lines)}{mark}\r\n\r\n".encode(encoding))
    with opened(table, tmp_path) as source:
        assert sum(counts(source).values()) == 8
        assert all(entry.image.read() for _, entry in source)


def damaged(archive: Path, member: str, how: str) -> None:
    """Changes one member: a byte of its data, or what its headers say about it."""
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        start = file.getinfo(member).header_offset
        listed = data.index(member.encode(), file.start_dir) - 46
    if how == "damaged":
        data[start + 30 + len(member) + 100] ^= 0xFF
    elif how == "encrypted":
        data[start + 6] |= 1
        data[listed + 8] |= 1
    else:  # packed as only other programs can
        data[start + 8] = data[listed + 10] = 9
    archive.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "why"), [("damaged", "Bad CRC"), ("encrypted", "encrypted"), ("deflate64", "not supported")]
)
def test_one_bad_member_of_a_zip_is_quarantined_alone(tmp_path: Path, how: str, why: str) -> None:
    root = folder(tmp_path / "set", FOUR)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        for path in sorted(root.rglob("*.jpg")):
            zipped.write(path, path.relative_to(root))
        zipped.writestr("LICENSE", "free")
        zipped.writestr("trainB/" + "deep/" * 1000 + "x.jpg", encoded(picture(1), "JPEG"))
        zipped.writestr("trainB/trainB-000.jpg/x.jpg", encoded(picture(1), "JPEG"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            zipped.writestr("trainB/trainB-000.jpg", encoded(picture(1), "JPEG"))
    for member in ("trainA/trainA-001.jpg", "LICENSE"):
        damaged(tmp_path / "set.zip", member, how if member != "LICENSE" or how != "damaged" else "encrypted")
    with opened(tmp_path / "set.zip", tmp_path) as source:
        assert counts(source) == {**FOUR, "trainB": FOUR["trainB"] + 2}
        bad = {}
        for _, entry in source:
            try:
                entry.image.read()
            except OSError as error:
                bad[entry.name.split("/")[-2:][0]] = str(error)
        assert bad.keys() == {"trainA-001.jpg", "deep", "trainB-000.jpg"}
        assert why in bad["trainA-001.jpg"]
        assert bad["deep"] == "File name too long"
        assert {name for name, _ in source.left_out} == {"LICENSE", "trainB/trainB-000.jpg"}


def test_folders_marked_by_the_console_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3's console writes an empty object ``folder/``, Hadoop one called ``folder``; no test server keeps such keys."""
    found = {
        "bucket/set/trainA/": {"size": 0, "ETag": "0"},
        "bucket/set/trainA": {"size": 0, "ETag": "0"},
        "bucket/set/trainA/1.jpg": {"size": 9, "ETag": "1"},
        "bucket/set/trainA/empty.jpg": {"size": 0, "ETag": "0"},
        "bucket/set/trainA/.DS_Store": {"size": 9, "ETag": "2"},
    }

    class Bucket:
        def find(self, path: str, detail: bool) -> dict[str, Any]:
            assert detail
            return {name: info for name, info in found.items() if name.startswith(f"{path}")}

    monkeypatch.setattr(storage, "filesystem", lambda uri: (Bucket(), uri.removeprefix("s3://")))
    assert [file.relative for file in listing("s3://bucket/set")] == ["trainA/1.jpg", "trainA/empty.jpg"]


def test_archives_keep_links_long_names_colons_and_their_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", FOUR)
    os.link(root / "trainA" / "trainA-000.jpg", root / "trainB" / "again 12:30.jpg")
    (root / "trainB" / "gone.jpg").symlink_to("nowhere.jpg")
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        file.add(root, arcname="set")
    with opened(tmp_path / "set.tar", tmp_path) as source:
        names = {entry.name for entry in source.splits["trainB"]}
        assert len(names) == FOUR["trainB"] + 1
        assert "again 12:30.jpg" in names
        assert [name for name, _ in source.left_out] == ["set/trainB/gone.jpg"]
    long = "é" * 160 + ".jpg"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as zipped:
        for path in sorted(root.rglob("*.jpg")):
            if not path.is_symlink():
                zipped.write(path, f"set/{path.relative_to(root)}")
        zipped.writestr(f"set/trainA/{long}", encoded(picture(3), "JPEG"))
        zipped.writestr("README.txt", "Photographs.")
    with opened(tmp_path / "set.zip", tmp_path) as source:
        assert counts(source)["trainA"] == FOUR["trainA"] + 1
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        zipped.writestr("stuff/x.jpg", encoded(picture(3), "JPEG"))
    with pytest.raises(BadInput, match=r"bad\.zip has no folder trainA") as refused:
        opened(tmp_path / "bad.zip", tmp_path)
    assert "agit-unpack" not in str(refused.value)


def test_every_kind_says_where_it_is_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert opening.absolute("x,y") == f"{tmp_path}/x,{tmp_path}/y"
    assert opening.absolute("a.parquet,s3://b/c.parquet") == f"{tmp_path}/a.parquet,s3://b/c.parquet"
    assert opening.absolute("photos") == f"{tmp_path}/photos"
    for text in ("builtin", "horse2zebra", "https://host/set.zip", "s3://bucket/set"):
        assert opening.absolute(text) == text
