"""Images, folders, archives and Parquet; see test_translate_batch and test_translate_video for the others."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from agit_core import Translator
from agit_core.errors import BadInput
from pipeline import storage
from pipeline.data.litter import SIDECAR
from pipeline.inference.translate import JOURNAL, translate
from tests.agit_core import models
from tests.pipeline.command import agit, environment
from tests.pipeline.killed import write_and_die
from tests.pipeline.s3 import S3Server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.write_model(tmp_path_factory.mktemp("model") / "m"))


@pytest.fixture(scope="module")
def translator(model: str) -> Translator:
    return Translator.load(model, device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images and what is none, in nested folders."""
    folder = tmp_path / "photos"
    models.save(folder / "one.png", 24, 32, seed=1)
    models.save(folder / "deep" / "er" / "TWO.JPG", 33, 21, seed=2, quality=95)
    models.save(folder / "three.webp", 18, 18, seed=3)
    models.save(folder / "four.gif", 20, 30, seed=4)
    (folder / "broken.jpg").write_bytes((folder / "deep" / "er" / "TWO.JPG").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    models.save(folder / ".hidden.png")
    return folder


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_one_image(photos: Path, tmp_path: Path, model: str, translator: Translator) -> None:
    source = str(photos / "one.png")
    done = translate(source, str(tmp_path / "zebra.png"), model, masks=True)
    assert (done["translated"], done["skipped"], done["failed"]) == (1, 0, [])
    with Image.open(source) as image:
        expected = translator.translate(image)
    assert np.array_equal(pixels(tmp_path / "zebra.png"), np.asarray(expected.image))
    with Image.open(tmp_path / "zebra.png.mask.png") as mask:
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), np.asarray(expected.mask))
    # into a folder, under its name, the other way
    done = translate(source, str(tmp_path / "folder"), model, "b2a")
    assert done["output"] == str(tmp_path / "folder" / "one.png")
    assert not np.array_equal(pixels(tmp_path / "folder" / "one.png"), np.asarray(expected.image))


def test_a_folder_keeps_names_and_lists_what_it_cannot_read(
    photos: Path, tmp_path: Path, model: str, translator: Translator
) -> None:
    (photos / "film.mp4").write_bytes(b"frames")
    events: list[dict[str, Any]] = []
    done = translate(str(photos), str(tmp_path / "out"), model, progress=events.append)
    assert done["translated"] == 4
    reasons = {item["name"]: item["reason"] for item in done["failed"]}
    assert reasons.pop("broken.jpg").startswith("cannot be read: ")
    assert reasons == {
        "empty.png": "cannot be read: the file is empty",
        "film.mp4": "is a video; translate it separately",
        "notes.txt": SIDECAR,
    }
    written = ["deep/er/TWO.JPG", "four.gif.png", "one.png", "three.webp"]
    assert files(tmp_path / "out") == [JOURNAL, *written]
    for source, target in zip(("deep/er/TWO.JPG", "four.gif", "one.png", "three.webp"), written, strict=True):
        expected = translator(pixels(photos / source)).astype(int)
        given = pixels(tmp_path / "out" / target)
        assert given.shape == expected.shape
        error, change = np.abs(given - expected).mean(), np.abs(pixels(photos / source) - expected).mean()
        assert error < (0.01 if target.endswith("png") else 0.6) * change, target
    assert events[-1] | {"images_per_s": 0, "eta_s": 0, "message": ""} == {
        "done": 6,
        "total": 6,
        "unit": "images",
        "message": "",
        "images_per_s": 0,
        "eta_s": 0,
    }


def test_a_file_is_no_folder_to_write_into(photos: Path, tmp_path: Path, model: str) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    one = photos / "one.png"
    for source, target in (
        (photos, mine),
        (photos, mine / "deep"),
        (photos, mine / "out.zip"),
        (one, mine),
        (one, mine / "deep"),
        (one, mine / "zebra.png"),
    ):
        for overwrite in (False, True):
            with pytest.raises(BadInput, match=f"the output {mine} is a file; give a folder"):
                translate(str(source), str(target), model, overwrite=overwrite)
    assert mine.read_bytes() == b"mine"


def test_nothing_is_overwritten_unless_asked_for(photos: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    mine = out / "one.png"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    for source, target in ((photos, out), (photos / "one.png", mine), (photos / "one.png", out)):
        with pytest.raises(BadInput, match=r"one\.png exists"):
            translate(str(source), str(target), model)
    assert mine.read_bytes() == b"mine"
    assert files(out) == ["one.png"]
    translate(str(photos), str(out), model, overwrite=True)
    assert pixels(mine).shape == (24, 32, 3)
    (out / "zebra.png.mask.png").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"mask\.png exists"):
        translate(str(photos / "one.png"), str(out / "zebra.png"), model, masks=True)
    with pytest.raises(
        BadInput, match=r"x\.mp4 is the name of a video, and .*one\.png is an image; end it with"
    ):
        translate(str(photos / "one.png"), str(out / "x.mp4"), model)
    with pytest.raises(BadInput, match="is the input itself"):
        translate(str(photos / "one.png"), str(photos / "one.png"), model, overwrite=True)
    with pytest.raises(BadInput, match="is inside the input"):
        translate(str(photos), str(photos / "out"), model)


def test_a_second_call_does_what_is_missing(photos: Path, tmp_path: Path, model: str) -> None:
    out = tmp_path / "out"
    translate(str(photos), str(out), model)
    before = {path: (out / path).stat().st_mtime_ns for path in files(out) if path != JOURNAL}
    (out / "one.png").unlink()
    models.save(photos / "broken.jpg", seed=5)
    again = translate(f"{photos}/", str(out), model)  # a closing slash, as shells complete it
    assert (again["translated"], again["skipped"], len(again["failed"])) == (2, 3, 2)
    assert {p: (out / p).stat().st_mtime_ns for p in before if p != "one.png"} == {
        p: t for p, t in before.items() if p != "one.png"
    }
    with_masks = translate(str(photos), str(out), model, masks=True)
    assert with_masks["translated"] == 5
    # another model, direction or input: these are not its files
    other = models.write_model(tmp_path / "other", seed=2)
    with pytest.raises(BadInput, match="comes from another model, direction, option or input"):
        translate(str(photos), str(out), str(other))
    with pytest.raises(BadInput, match="comes from another model, direction, option or input"):
        translate(str(photos), str(out), model, "b2a")
    assert translate(str(photos), str(out), str(other), overwrite=True)["translated"] == 5


def test_an_interrupted_call_that_overwrites_goes_on_as_well(
    photos: Path, tmp_path: Path, model: str
) -> None:
    out = tmp_path / "out"
    translate(str(photos), str(out), model)
    assert translate(str(photos), str(out), model, overwrite=True)["translated"] == 4
    journal = json.loads((out / JOURNAL).read_text())
    del journal["failed"]  # as it stands until the last image is done
    (out / JOURNAL).write_text(json.dumps(journal))
    (out / "one.png").unlink()
    again = translate(str(photos), str(out), model, overwrite=True)
    assert (again["translated"], again["skipped"]) == (1, 3)


def test_one_image_in_tiles_says_how_far_it_is(tmp_path: Path, model: str) -> None:
    models.save(tmp_path / "tall.png", 900, 300)
    events: list[dict[str, Any]] = []
    translate(
        str(tmp_path / "tall.png"), str(tmp_path / "out"), model, tile_pixels=384**2, progress=events.append
    )
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    assert len(events) >= 3
    assert (events[-1]["done"], events[-1]["total"], events[-1]["unit"]) == (900, 900, "rows")


def test_a_zip_in_and_out(photos: Path, tmp_path: Path, model: str) -> None:
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("one.png", "deep/er/TWO.JPG", "broken.jpg", "notes.txt"):
            file.write(photos / name, name)
        file.writestr("../evil.png", (photos / "one.png").read_bytes())
        file.writestr("__MACOSX/._one.png", b"resource fork")
    out = tmp_path / "out.zip"
    done = translate(str(archive), str(out), model, masks=True)
    assert done["translated"] == 2
    assert {item["name"] for item in done["failed"]} == {"broken.jpg", "../evil.png", "notes.txt"}
    folder = tmp_path / "folder"
    translate(str(archive), str(folder), model, masks=True)
    with zipfile.ZipFile(out) as file:
        assert sorted(file.namelist()) == [name for name in files(folder) if name != JOURNAL]
        assert all(file.read(name) == (folder / name).read_bytes() for name in file.namelist())
    assert not (tmp_path / "out.zip.parts").exists()
    assert not (tmp_path / "evil.png").exists()
    with pytest.raises(BadInput, match=r"out\.zip exists"):
        translate(str(archive), str(out), model)
    # one image can go into a zip as well
    translate(str(photos / "one.png"), str(tmp_path / "one.zip"), model)
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist() == ["one.png"]


def test_a_killed_call_leaves_nothing_in_the_zip(photos: Path, tmp_path: Path, model: str) -> None:
    write_and_die(tmp_path / "out.zip.parts" / "deep" / "er" / "TWO.JPG")
    translate(str(photos), str(tmp_path / "out.zip"), model)
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert sorted(name for name in file.namelist() if ".part" in name) == []
        assert len(file.namelist()) == 4


def test_names_of_an_older_encoding(photos: Path, tmp_path: Path, model: str) -> None:
    """A disk's names are bytes; a zip's are text."""
    source = tmp_path / "source"
    source.mkdir()
    Path(os.fsdecode(bytes(source) + b"/gr\xfcn.png")).write_bytes((photos / "one.png").read_bytes())
    assert translate(str(source), str(tmp_path / "out.zip"), model)["translated"] == 1
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert file.namelist() == [r"gr\xfcn.png"]


def test_a_zip_whose_packing_was_interrupted(photos: Path, tmp_path: Path, model: str) -> None:
    """Between packing and clearing up: the zip is whole, and stays as it is."""
    out, parts = tmp_path / "out.zip", tmp_path / "out.zip.parts"
    translate(str(photos), str(parts), model)
    out.write_bytes(b"packed")
    done = translate(str(photos), str(out), model)
    assert (done["translated"], done["skipped"], len(done["failed"])) == (0, 4, 3)
    assert out.read_bytes() == b"packed"
    assert not parts.exists()


def test_parquet_in_the_hugging_face_convention(photos: Path, tmp_path: Path, model: str) -> None:
    def row(name: str | None, file: str) -> dict[str, Any]:
        return {"path": name, "bytes": (photos / file).read_bytes()}

    rows = [
        row("a/one.png", "one.png"),
        row("a/one.png", "three.webp"),
        row("/home/somebody/two.jpg", "deep/er/TWO.JPG"),
        row(None, "one.png"),
        row("broken.jpg", "broken.jpg"),
        None,
    ]
    table = pa.table({"label": list(range(6)), "image": pa.array(rows, _image_type())})
    pq.write_table(table, tmp_path / "shard.parquet", row_group_size=4)
    done = translate(str(tmp_path / "shard.parquet"), str(tmp_path / "out"), model)
    assert done["translated"] == 4
    assert files(tmp_path / "out") == [
        JOURNAL,
        "a/one.png",
        "a/shard-0000-00001-one.png",
        "shard-0000-00003.png",
        "two.jpg",
    ]
    assert pixels(tmp_path / "out" / "a/shard-0000-00001-one.png").shape == (18, 18, 3)
    assert len(done["failed"]) == 2

    # a folder of shards, one of them damaged
    (tmp_path / "shards").mkdir()
    pq.write_table(table, tmp_path / "shards" / "0.parquet")
    (tmp_path / "shards" / "1.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "shards" / "README.md").write_text("shards")
    done = translate(str(tmp_path / "shards"), str(tmp_path / "more"), model)
    assert done["translated"] == 4
    assert {"1.parquet", "README.md"} <= {item["name"] for item in done["failed"]}
    # images without names
    nameless = pa.array([{"bytes": (photos / "one.png").read_bytes()}] * 2)
    pq.write_table(pa.table({"image": nameless}), tmp_path / "nameless.parquet")
    assert translate(str(tmp_path / "nameless.parquet"), str(tmp_path / "third"), model)["translated"] == 2
    pq.write_table(pa.table({"x": [1]}), tmp_path / "plain.parquet")
    with pytest.raises(BadInput, match="no image column"):
        translate(str(tmp_path / "plain.parquet"), str(tmp_path / "x"), model)


def _image_type() -> pa.DataType:
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_translations_that_would_share_a_name_are_told(tmp_path: Path, model: str) -> None:
    models.save(tmp_path / "in" / "a.gif", 20, 20, seed=1)
    models.save(tmp_path / "in" / "a.gif.png", 30, 30, seed=2)
    done = translate(str(tmp_path / "in"), str(tmp_path / "out"), model)
    assert done["translated"] == 1
    assert done["failed"] == [
        {"name": "a.gif.png", "reason": "its translation would overwrite another image's"},
    ]


def test_colours_and_channels_that_photographs_come_in(
    tmp_path: Path, model: str, translator: Translator
) -> None:
    photo = models.photograph(22, 26)
    colour, alpha = Image.fromarray(photo), Image.fromarray(models.photograph(22, 26, seed=9)[..., 0])
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.png", exif=exif)
    transparent = colour.copy()
    transparent.putalpha(alpha)
    transparent.save(folder / "alpha.png")
    transparent.save(folder / "alpha.webp", lossless=True)
    grey = np.asarray(colour.convert("L"))
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(grey.astype(np.float32) / 255).save(folder / "float.tif")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    colour.convert("CMYK").save(folder / "print.tif")
    colour.convert("1").save(folder / "fax.png")
    colour.save(folder / "profile.png", icc_profile=_profile())
    done = translate(str(folder), str(tmp_path / "out"), model)
    assert done["failed"] == []
    out = tmp_path / "out"
    expected = translator(photo)
    assert np.array_equal(pixels(out / "turned.png"), translator(np.ascontiguousarray(np.rot90(photo, -1))))
    with Image.open(out / "alpha.png") as image:
        assert image.mode == "RGBA"
        assert np.array_equal(np.asarray(image)[..., 3], np.asarray(alpha))
        assert np.array_equal(np.asarray(image)[..., :3], expected)
    with Image.open(out / "alpha.webp") as image:
        assert image.mode == "RGBA"
    from_grey = translator(grey)
    for name in ("grey.png", "deep.png", "float.tif"):
        assert np.array_equal(pixels(out / name), from_grey), name
    assert np.abs(pixels(out / "print.tif").astype(int) - expected).mean() < 12
    with Image.open(out / "profile.png") as image:
        assert "icc_profile" not in image.info
        assert np.array_equal(np.asarray(image), expected)
    with pytest.raises(BadInput, match="transparency"):
        translate(str(folder / "alpha.png"), str(tmp_path / "x.jpg"), model)
    with pytest.raises(BadInput, match="cannot write"):
        translate(str(folder / "alpha.png"), str(tmp_path / "x.gif"), model)


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input": "nowhere"}, "there is nothing at"),
        ({"input": "photos/notes.txt"}, "cannot be read: not an image"),
        ({"input": "photos/broken.jpg"}, "broken.jpg cannot be read"),
        ({"direction": "sideways"}, "use a2b or b2a"),
        ({"model": "nowhere"}, "no model at"),
        ({"smooth": 0.5}, "--smooth applies only to videos"),
        ({"workers": 2}, "--workers needs --batch"),
        ({"device": "abacus"}, "there is no device 'abacus'"),
        ({"device": "cuda:99"}, "GPUs are visible"),
        ({"tile_pixels": 4}, "tile_pixels must be at least"),
        ({"work_side": 4}, "work_side must be at least"),
    ],
)
def test_wrong_calls(
    photos: Path, tmp_path: Path, model: str, arguments: dict[str, Any], message: str
) -> None:
    call = {"input": "photos", "output": str(tmp_path / "out"), "model": model} | arguments
    call["input"] = str(tmp_path / call["input"])
    with pytest.raises(BadInput, match=message):
        translate(**call)
    assert not (tmp_path / "out").exists()


def test_empty_folders_and_damaged_archives(tmp_path: Path, model: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is an empty folder"):
        translate(str(tmp_path / "empty"), str(tmp_path / "out"), model)
    (tmp_path / "bad.zip").write_bytes(b"PK no")
    with pytest.raises(BadInput, match="damaged"):
        translate(str(tmp_path / "bad.zip"), str(tmp_path / "out"), model)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.png").write_bytes(b"no")
    (tmp_path / "none" / "y.png").write_bytes(b"no")
    with pytest.raises(BadInput, match="any of the 2 files"):
        translate(str(tmp_path / "none"), str(tmp_path / "out"), model)


def test_object_storage_in_and_out(photos: Path, tmp_path: Path, model: str, s3: S3Server) -> None:
    storage.upload_folder(photos, f"{s3.uri}/photos")
    storage.upload_folder(model, f"{s3.uri}/model")
    done = translate(f"{s3.uri}/photos", f"{s3.uri}/out", f"{s3.uri}/model", masks=True)
    assert done["translated"] == 4
    translate(str(photos), str(tmp_path / "out"), model, masks=True)
    for name in files(tmp_path / "out"):
        if name != JOURNAL:
            assert storage.read_bytes(f"{s3.uri}/out/{name}") == (tmp_path / "out" / name).read_bytes()
    translate(f"{s3.uri}/photos", f"{s3.uri}/out.zip", f"{s3.uri}/model")
    packed = zipfile.ZipFile(io.BytesIO(storage.read_bytes(f"{s3.uri}/out.zip")))
    assert len(packed.namelist()) == 4
    single = translate(f"{s3.uri}/photos/one.png", f"{s3.uri}/single.png", model)
    assert single["output"] == f"{s3.uri}/single.png"
    again = translate(f"{s3.uri}/photos", f"{s3.uri}/out", f"{s3.uri}/model", masks=True)
    assert (again["translated"], again["skipped"]) == (0, 4)


@pytest.mark.long
def test_a_killed_call_goes_on_where_it_was(tmp_path: Path, model: str) -> None:
    for i in range(60):
        models.save(tmp_path / "in" / f"{i:02d}.png", 160, 160, seed=i)
    call = ["translate", "in", "out.zip", "--model", model, "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *call],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "out.zip.parts"
    deadline = time.monotonic() + 240
    while len(list(parts.glob("*.png"))) < 3:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.png")}
    assert 3 <= len(kept) < 60
    assert not (tmp_path / "out.zip").exists()

    again = agit(*call, "--json", cwd=tmp_path)
    assert again.status == 0, again.err
    assert again.answer["skipped"] == len(kept)
    assert again.answer["translated"] == 60 - len(kept)
    with zipfile.ZipFile(tmp_path / "out.zip") as file:
        assert len(file.namelist()) == 60
        for name in file.namelist():
            Image.open(io.BytesIO(file.read(name))).load()


def test_the_command(photos: Path, tmp_path: Path, model: str) -> None:
    done = agit("translate", photos, "out", "--model", model, "--masks", "--json", cwd=tmp_path)
    assert done.status == 0, done.err
    assert done.answer["translated"] == 4
    assert done.answer["model"] == {"name": "tiny", "version": None, "aliases": [], "uri": model}
    assert {key: done.answer[key] for key in ("run_id", "storage", "steps", "metrics", "report")} == {
        "run_id": "tiny-1",
        "storage": "./.agit",
        "steps": None,
        "metrics": None,
        "report": None,
    }
    assert "translate: 4 images, 3 not translated" in done.err
    shown = agit("translate", photos, "out", "--model", model, "--masks", cwd=tmp_path)
    assert "skipped broken.jpg: cannot be read" in shown.out
    assert "4 done before" in shown.out
    refused = agit("translate", photos, "out", "--model", model, "--direction", "b2a", cwd=tmp_path)
    assert refused.status == 2
    assert "--overwrite" in refused.last_line
    assert agit("translate", photos, "out", cwd=tmp_path).status == 2
    hard = agit("translate", photos, "hard", "--model", model, "--threshold", "0.6", "--masks", cwd=tmp_path)
    assert hard.status == 0, hard.err
    soft_mask, hard_mask = (pixels(tmp_path / out / "one.png.mask.png") for out in ("out", "hard"))
    assert np.array_equal(hard_mask, np.where(soft_mask >= 153, soft_mask, 0))
    assert not np.array_equal(hard_mask, soft_mask)
    refused = agit(
        "translate", photos, "out", "--model", model, "--threshold", "0.6", "--masks", cwd=tmp_path
    )
    assert (refused.status, "--overwrite" in refused.last_line) == (2, True)
    assert agit("translate", photos, "x", "--model", model, "--threshold", "2", cwd=tmp_path).status == 2
    nobody = agit("translate", photos, "out2", "--model", "models:/nobody@champion", cwd=tmp_path)
    assert nobody.status == 2
    assert "nobody" in nobody.last_line
    assert json.loads((tmp_path / "out" / JOURNAL).read_text())["failed"] != []
    run = tmp_path / "run"
    run.mkdir()
    (run / "spec.json").write_text("{}")
    early = agit("translate", photos, "of-run", "--model", run, cwd=tmp_path)
    assert (early.status, "is not finished" in early.last_line) == (2, True)
    (run / "result.json").write_text(json.dumps({"checkpoint": model, "steps": 4}))
    done = agit("translate", photos, "of-run", "--model", run, "--json", cwd=tmp_path)
    assert (done.status, done.answer["translated"]) == (0, 4)


def test_every_file_is_translated_or_named(tmp_path: Path, model: str) -> None:
    photo = models.save(tmp_path / "photo.png").read_bytes()
    source = tmp_path / "in"
    (source / "d.jpg").mkdir(parents=True)
    done = ("x.jfif", "nosuffix", "x.unknown", "2009:12:01 06:58.png", "d.jpg/in.png", "n" * 200 + ".png")
    for name in done:
        (source / name).write_bytes(photo)
    refused = {
        "zero.png": b"",
        "page.html.png": b"<html>",
        "i.heic": b"\0\0\0\x18ftypheic" + bytes(99),
        "clip.mts": b"video",
        "a.xml": b"<a/>",
        "archive.zip": b"PK\3\4",
        "n" * 252 + ".gi": photo,  # .png is added to it
    }
    for name, data in refused.items():
        (source / name).write_bytes(data)
    os.mkfifo(source / "pipe.png")
    (source / "gone.png").symlink_to("nowhere")
    (source / "self.png").symlink_to("self.png")
    values = np.full((20, 20), -5, np.float32)
    Image.fromarray(values).save(source / "negative.tif")
    told = translate(str(source), str(tmp_path / "out"), model)
    assert told["translated"] == len(done)
    named = {item["name"] for item in told["failed"]}
    assert named == {*refused, "pipe.png", "gone.png", "self.png", "negative.tif"}
    for name, data in (("photos.tar", b""), ("list.csv", b"image,domain")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadInput, match="is a list or tar, which is not translated"):
            translate(str(tmp_path / name), str(tmp_path / "more"), model)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    with pytest.raises(BadInput, match=r"a\.txt is text"):
        translate(str(tmp_path / "texts"), str(tmp_path / "more"), model)


def test_members_that_no_folder_can_hold_are_named(tmp_path: Path, model: str) -> None:
    photo = models.save(tmp_path / "photo.png").read_bytes()
    refused = ["a.png/b.png", "x/" * 3000 + "y.png", "y" * 300 + ".png", "/abs.png"]
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for name in ["a.png", "of\\windows.png", "12:30.png", *refused]:
            file.writestr(name, photo)
    done = translate(str(tmp_path / "in.zip"), str(tmp_path / "out"), model)
    assert files(tmp_path / "out") == [JOURNAL, "12:30.png", "a.png", "of/windows.png"]
    assert sorted(item["name"] for item in done["failed"]) == sorted(refused)


def test_animations_keep_their_frames_and_times(tmp_path: Path, model: str, translator: Translator) -> None:
    frames = [Image.fromarray(models.photograph(20, 24, seed)) for seed in range(3)]
    times = [40, 80, 200]
    source = tmp_path / "in"
    source.mkdir()
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    for name in ("a.png", "a.webp", "a.gif"):
        frames[0].save(
            source / name, **options, duration=times, **({"lossless": True} if "webp" in name else {})
        )
    frames[0].save(source / "pages.tif", **options)
    frames[0].save(source / "stereo.mpo", "MPO", **options)
    deep = np.linspace(0, 4095, 400).reshape(20, 20).astype(np.uint16)
    Image.fromarray(deep).save(source / "xray.png")
    done = translate(str(source), str(tmp_path / "out"), model)
    assert (done["translated"], done["failed"]) == (6, [])
    assert sorted(done["notes"]) == [
        "stereo.mpo: only the first of its 3 frames is used",
        "xray.png: largest value 4095: read as 12 bits",
    ]
    for name in ("a.png", "a.webp", "a.gif.png", "pages.tif"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.n_frames == 3
            for number, (frame, time_) in enumerate(zip(frames, times, strict=True)):
                image.seek(number)
                image.load()
                if name != "pages.tif":
                    assert image.info["duration"] == time_
                if name in ("a.png", "pages.tif"):
                    expected = np.asarray(translator(frame))
                    assert np.array_equal(np.asarray(image.convert("RGB")), expected)
    with pytest.raises(BadInput, match=r"would lose 2 frames; name the output \.png"):
        translate(str(source / "a.gif"), str(tmp_path / "one.jpg"), model)
