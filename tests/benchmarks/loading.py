"""Images per second of the loader and of preparation, beside what others use for the same.

Every measurement is a process of its own (:mod:`tests.benchmarks.loading_one`) that reads the same images from
cold: nothing cached but the operating system's pages. The loaders take turns, several times, and the best of
each counts: on a machine that does other things too, the fastest run is the one least disturbed.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline import storage
from pipeline.config import parse
from pipeline.data import builtin, manifest
from pipeline.data.prepare import prepare
from pipeline.data.reader import ShardImages
from tests.pipeline.s3 import S3Server, free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE = ROOT / ".agit" / "bench" / "site"

_LOCAL = ("ours", "imagefolder", "webdataset", "streaming", "datasets")
_REMOTE = ("ours", "webdataset", "streaming", "datasets")


def loading(images: int = 800, repeats: int = 3, workers: int = 2) -> dict[str, Any]:
    """Images per second of one epoch over two domains of so many 286-pixel images each.

    Returns:
        ``loader_over_imagefolder_local``, ``loader_over_webdataset_s3``, ``loader_over_streaming_s3`` and
        ``loader_over_datasets_s3`` (ours over theirs; None where theirs could not be installed or run, with the
        reason under ``loader_failures``), and ``loader_table``: the measured values per place and loader.
    """
    failures = _install_peers()
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as folder:
        root = Path(folder)
        server = S3Server(root=root / "s3", port=free_port())
        server.root.mkdir()
        server.start()
        try:
            specs = _layouts(root, server, images, workers)
            table: dict[str, dict[str, Any]] = {"local": {}, "s3": {}}
            for _ in range(repeats):
                for place, names in (("local", _LOCAL), ("s3", _REMOTE)):
                    for name in names:
                        if name in failures:
                            continue
                        measured = _measure(name, specs[place], root, server)
                        if "failed" in measured:
                            failures[name if place == "local" else f"{name} from S3"] = measured["failed"]
                            continue
                        best = table[place].setdefault(name, measured)
                        if measured["images_per_s"] > best["images_per_s"]:
                            table[place][name] = measured
        finally:
            server.stop()

    def over(place: str, name: str) -> float | None:
        ours, theirs = table[place].get("ours"), table[place].get(name)
        return round(ours["images_per_s"] / theirs["images_per_s"], 3) if ours and theirs else None

    return {
        "loader_over_imagefolder_local": over("local", "imagefolder"),
        "loader_over_webdataset_s3": over("s3", "webdataset"),
        "loader_over_streaming_s3": over("s3", "streaming"),
        "loader_over_datasets_s3": over("s3", "datasets"),
        "loader_table": table,
        "loader_failures": failures,
    }


def preparing(images: int = 400, repeats: int = 3) -> dict[str, Any]:
    """Preparation against the loop that people write: open, convert, resize, save.

    Returns:
        ``prepare_over_pillow_loop`` (images per second and core), ``prepare_two_over_one`` (two workers over
        one) and both rates.
    """
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as folder:
        root = Path(folder)
        source = _photographs(root / "in", images)
        rates: dict[str, float] = {"pillow": 0.0, "one": 0.0, "two": 0.0}
        for repeat in range(repeats):
            rates["pillow"] = max(rates["pillow"], _pillow_loop(source, root / f"pillow-{repeat}"))
            for name, workers in (("one", 1), ("two", 2)):
                rate = _prepare(source, root / f"{name}-{repeat}", workers)
                rates[name] = max(rates[name], rate)
    return {
        "prepare_over_pillow_loop": round(rates["one"] / rates["pillow"], 3),
        "prepare_two_over_one": round(rates["two"] / rates["one"], 3),
        "prepare_images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
    }


def _install_peers() -> dict[str, str]:
    """Reasons why other loaders cannot take part."""
    marker = SITE / "peers.txt"
    wanted = (HERE / "peers.txt").read_text()
    if marker.exists() and marker.read_text() == wanted:
        return {}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--upgrade", "--target", str(SITE), "-r", str(HERE / "peers.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = f"could not be installed: {done.stderr.strip().splitlines()[-1:]}"
        return dict.fromkeys(("webdataset", "streaming"), reason)
    marker.write_text(wanted)
    return {}


def _measure(name: str, spec: dict[str, Any], root: Path, server: S3Server) -> dict[str, Any]:
    path = root / "spec.json"
    path.write_text(json.dumps(spec))
    env = {
        **os.environ,
        **server.env,
        "S3_ENDPOINT_URL": server.endpoint,  # what mosaicml-streaming asks for
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Rclone",
        "RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": server.env["AWS_ACCESS_KEY_ID"],
        "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": server.env["AWS_SECRET_ACCESS_KEY"],
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{SITE}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.loading_one", name, str(path)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=600,
        check=False,
    )
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _layouts(root: Path, server: S3Server, images: int, workers: int) -> dict[str, dict[str, Any]]:
    """The same encoded images as our shards, a folder, tars, MDS and (our) Parquet, here and on the server."""
    sizes = {"train": images, "test": 2, "size": 286}
    tree: dict[str, Any] = {
        "name": "bench",
        "storage": str(root / "prepared"),
        "data": {"source": "builtin", "builtin": sizes, "shard_bytes": 8 << 20},
    }
    made = prepare(parse(tree))
    encoded = []
    for domain in "AB":
        reader = ShardImages(made.uri, f"train{domain}", root, 0)
        for i in range(len(reader)):
            encoded.append((domain, i, reader.encoded(i)))
            path = root / "folder" / domain / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded[-1][2])
    shards = [
        shard["path"]
        for split in ("trainA", "trainB")
        for shard in manifest.read(made.uri)["splits"][split]["shards"]
    ]
    _tars(root / "tars", encoded, len(shards))
    _mds(root / "mds", root)
    os.environ.update(server.env)
    storage.upload_folder(made.uri, f"{server.uri}/prepared")
    storage.upload_folder(root / "tars", f"{server.uri}/tars")
    if (root / "mds").exists():
        storage.upload_folder(root / "mds", f"{server.uri}/mds")
    rclone = Path(sys.executable).parent / "rclone"
    tars = sorted(path.name for path in (root / "tars").iterdir())
    common = {"image_size": 256, "batch": 16, "workers": workers}
    return {
        "local": {
            **common,
            "prepared": made.uri,
            "folder": str(root / "folder"),
            "tars": [str(root / "tars" / name) for name in tars],
            "mds": str(root / "mds"),
            "parquet": [f"{made.uri}/{path}" for path in shards],
        },
        "s3": {
            **common,
            "prepared": f"{server.uri}/prepared",
            "tars": [f"pipe:{rclone} cat bench:{server.bucket}/tars/{name}" for name in tars],
            "mds": f"{server.uri}/mds",
            "parquet": [f"{server.uri}/prepared/{path}" for path in shards],
        },
    }


def _tars(folder: Path, encoded: list[tuple[str, int, bytes]], count: int) -> None:
    folder.mkdir()
    for number in range(count):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as file:
            for domain, i, data in encoded[number::count]:
                info = tarfile.TarInfo(f"{domain}{i:05d}.jpg")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


_WRITE_MDS = """
import sys
from pathlib import Path
from tests.benchmarks.loading_one import _Transformers
sys.meta_path.append(_Transformers())
from streaming import MDSWriter
with MDSWriter(out=sys.argv[2], columns={"image": "bytes"}, size_limit=8 << 20) as out:
    for path in sorted(Path(sys.argv[1]).rglob("*.jpg")):
        out.write({"image": path.read_bytes()})
"""


def _mds(folder: Path, root: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", _WRITE_MDS, str(root / "folder"), str(folder)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{SITE}"},
        cwd=ROOT,
        capture_output=True,
        check=False,
    )


def _photographs(root: Path, images: int) -> Path:
    """JPEG files of 400 x 300 pixels, as cameras and crawlers leave them."""
    for split, count in (("trainA", images), ("trainB", images), ("testA", 2), ("testB", 2)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            drawn = builtin.draw(0, split[:-1], split[-1].lower(), i, 300).image
            Image.fromarray(drawn).resize((400, 300)).save(root / split / f"{i:05d}.jpg", quality=90)
    return root


def _pillow_loop(source: Path, target: Path) -> float:
    paths = sorted(source.rglob("*.jpg"))
    start = time.perf_counter()
    for path in paths:
        there = target / path.relative_to(source)
        there.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGB").resize((286, 286), Image.Resampling.BICUBIC)
        image.save(there, quality=95, subsampling=0)
    return len(paths) / (time.perf_counter() - start)


def _prepare(source: Path, target: Path, workers: int) -> float:
    tree: dict[str, Any] = {"name": "bench", "storage": str(target)}
    tree["data"] = {"source": str(source), "workers": workers}
    start = time.perf_counter()
    made = prepare(parse(tree))
    return int(made.manifest["totals"]["images"]) / (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps({**loading(), **preparing()}, indent=1))
