"""The same encoded images in the layout of every loader, on the local disk and on an S3 server."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from botocore.config import Config
from botocore.session import get_session
from PIL import Image

from pipeline import storage
from pipeline.config import parse
from pipeline.data.prepare.stage import prepare
from pipeline.data.sources import builtin
from tests.pipeline.s3 import S3Server

ROOT = Path(__file__).parents[2]
SITE = ROOT / ".agit" / "bench" / "site"
SHARD = 8 << 20
"""Bytes of a shard, a tar and an MDS file alike."""


def layouts(
    root: Path, server: S3Server, images: int, workers: int, env: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """What :mod:`tests.benchmarks.loading_one` needs to know, per place (``local``, ``s3``)."""
    folder = _images(root / "set", root / "folder", images)
    data = {"source": str(root / "set"), "shard_bytes": SHARD}
    made = prepare(parse({"name": "bench", "storage": str(root / "prepared"), "data": data}))
    encoded = sorted(folder.glob("*/*.jpg"))
    shards = [s.path for split in ("trainA", "trainB") for s in made.manifest.splits[split].shards]
    tars = _tars(root / "tars", encoded, len(shards))
    _mds(folder, root / "mds", env)
    os.environ.update(server.env)
    storage.upload_folder(made.uri, f"{server.uri}/prepared")
    for name in ("tars", "mds"):
        storage.upload_folder(root / name, f"{server.uri}/{name}")
    common = {"image_size": 256, "batch": 16, "workers": workers, "images": len(encoded)}
    local = {
        "prepared": made.uri,
        "folder": str(folder),
        "tars": [str(root / "tars" / name) for name in tars],
        "mds": str(root / "mds"),
        "parquet": [f"{made.uri}/{path}" for path in shards],
    }
    remote = {
        "prepared": f"{server.uri}/prepared",
        # by curl, as webdataset does with any address: a client per shard that starts faster than Amazon's
        "tars": [_signed(server, f"tars/{name}") for name in tars],
        "mds": f"{server.uri}/mds",
        "parquet": [f"{server.uri}/prepared/{path}" for path in shards],
    }
    return {"local": common | local, "s3": common | remote}


def _signed(server: S3Server, key: str) -> str:
    options = Config(signature_version="s3v4", s3={"addressing_style": "path"})
    client = get_session().create_client("s3", endpoint_url=server.endpoint, config=options)
    asked = {"Bucket": server.bucket, "Key": key}
    return f"pipe:curl -s -f -L '{client.generate_presigned_url('get_object', asked, 3600)}'"


def _images(source: Path, folder: Path, images: int) -> Path:
    """JPEG files as preparing stores them; ``folder`` shows the training images alone, in ``A`` and ``B``."""
    folder.mkdir()
    for split, count in (("trainA", images), ("trainB", images), ("testA", 1), ("testB", 1)):
        (source / split).mkdir(parents=True)
        for i in range(count):
            drawn = builtin.draw(0, split[:-1], split[-1].lower(), i, 286).image
            Image.fromarray(drawn).save(source / split / f"{i:05d}.jpg", quality=95, subsampling=0)
    for domain in "AB":
        (folder / domain).symlink_to(source / f"train{domain}")
    return folder


def _tars(folder: Path, encoded: list[Path], count: int) -> list[str]:
    folder.mkdir()
    for number in range(count):
        with tarfile.open(folder / f"{number:03d}.tar", "w") as file:
            for path in encoded[number::count]:
                file.add(path, path.parent.name + path.name)
    return sorted(path.name for path in folder.iterdir())


def _mds(source: Path, target: Path, env: dict[str, str]) -> None:
    """In a separate process; if that fails, the loader reports it."""
    target.mkdir()
    code = "import sys; from tests.benchmarks.loading_peers import write_mds; write_mds(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, source, target], env=env, cwd=ROOT, check=False)
