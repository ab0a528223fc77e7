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
from pipeline.config import DataConfig
from pipeline.data.sources import opening
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


def test_test_and_validation_are_both_test_data(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"trainA": 3, "trainB": 3, "testA": 2, "testB": 2, "valA": 1, "valB": 1})
    with opened(root, tmp_path) as source:
        assert counts(source) == {"trainA": 3, "trainB": 3, "testA": 3, "testB": 3}
        assert {entry.name.split("/")[0] for entry in source.splits["testA"]} == {"testA", "valA"}


def test_splits_are_never_taken_for_domains(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must hold one folder for each of two classes"):
        opened(folder(tmp_path / "set", {"train": 3, "test": 3}), tmp_path)


@pytest.mark.parametrize("place", ["", "data"])
def test_a_folder_of_parquet_with_labels(tmp_path: Path, place: str) -> None:
    target = tmp_path / "set" / place
    target.mkdir(parents=True)
    for number, name in enumerate(("train-00000-of-00001", "validation-00000-of-00001")):
        rows = [{"bytes": encoded(picture(10 * number + i)), "path": f"{i}.png"} for i in range(6)]
        pq.write_table(pa.table({"image": rows, "label": [0, 1] * 3}), target / f"{name}.parquet")
    with opened(tmp_path / "set", tmp_path) as source:
        assert counts(source) == {"trainA": 3, "trainB": 3, "testA": 3, "testB": 3}


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
