"""Images per second of the loader, decoding and augmenting included, beside what others use for the same.

Every measurement is a process of its own (:mod:`tests.benchmarks.loading_one`) that reads the same images from
cold: nothing cached but the operating system's pages. The loaders take turns, several times, and the best of
each counts: on a machine that does other things too, the fastest run is the one least disturbed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from infra.stack_state import free_port
from tests.benchmarks.loading_layouts import ROOT, SITE, layouts
from tests.benchmarks.result import Result, table
from tests.pipeline.s3 import S3Server

KEYS = (
    "loader_over_imagefolder_local",
    "loader_over_webdataset_s3",
    "loader_over_streaming_s3",
    "loader_over_datasets_s3",
)

_STREAMED = ("webdataset", "streaming", "datasets")
_PLACES = {
    "local": ("ours", "imagefolder", "imagefolder, fast decoder", *_STREAMED),
    "s3": ("ours", *_STREAMED),
}
_COLUMNS = ("images_per_s", "images_per_core_s", "first_batch_s", "memory_mb_per_worker")
_PEERS = Path(__file__).with_name("peers.txt")


def run(images: int = 800, repeats: int = 3, workers: int = 2) -> Result:
    """One epoch over two domains of ``images`` 286-pixel images each, on the local disk and from an S3 server.

    The ratio to ImageFolder takes the faster of its two decoders. What could not be installed or run is None,
    with the reason among the lines.
    """
    failures = _install_peers()
    found: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="agit-bench-") as folder:
        server = S3Server(root=Path(folder) / "s3", port=free_port())
        server.root.mkdir()
        server.start()
        try:
            env = _environment(server)
            specs = layouts(Path(folder), server, images, workers, env)
            for _ in range(repeats):
                for place, names in _PLACES.items():
                    for name in names:
                        measured = _measure(name, specs[place], Path(folder), env)
                        if "failed" in measured:
                            failures[f"{name}, {place}"] = measured["failed"]
                        elif measured["images"] < 2 * images:
                            failures[f"{name}, {place}"] = (
                                f"yields {measured['images']} of {2 * images} images"
                            )
                        else:
                            best = found.setdefault((place, name), measured)
                            if measured["images_per_s"] > best["images_per_s"]:
                                found[place, name] = measured
        finally:
            server.stop()

    def over(place: str, *names: str) -> float | None:
        theirs = [found[place, name]["images_per_s"] for name in names if (place, name) in found]
        ours = found.get((place, "ours"))
        return round(ours["images_per_s"] / max(theirs), 3) if ours and theirs else None

    keys: dict[str, Any] = {
        "loader_over_imagefolder_local": over("local", "imagefolder", "imagefolder, fast decoder"),
        **{f"loader_over_{name}_s3": over("s3", name) for name in _STREAMED},
        "loader": {f"{place}: {name}": measured for (place, name), measured in found.items()},
        "loader_failures": failures,
    }
    rows = [
        (f"{place}: {name}", *(found[place, name][c] for c in _COLUMNS), over(place, name))
        for place, names in _PLACES.items()
        for name in names
        if (place, name) in found
    ]
    head = ("loader", "images/s", "per core", "first batch, s", "MB per worker", "ours over it")
    about = f"{2 * images} images of 286 px, batches of 16 crops of 256 px, {workers} workers or threads"
    return Result(
        keys, [about, *table(head, rows), *(f"missing: {what}: {why}" for what, why in failures.items())]
    )


def _install_peers() -> dict[str, str]:
    """Puts the other loaders beside, not into, the environment; reasons why they cannot take part."""
    marker = SITE / _PEERS.name
    if marker.exists() and marker.read_text() == _PEERS.read_text():
        return {}
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--upgrade", "--target", str(SITE), "-r", str(_PEERS)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return {"installing them": " ".join(done.stderr.strip().splitlines()[-1:])}
    marker.write_text(_PEERS.read_text())
    return {}


def _environment(server: S3Server) -> dict[str, str]:
    return {
        **os.environ,
        **server.env,
        "S3_ENDPOINT_URL": server.endpoint,  # what mosaicml-streaming asks for
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{SITE}",
    }


def _measure(name: str, spec: dict[str, Any], folder: Path, env: dict[str, str]) -> dict[str, Any]:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.loading_one", name, str(path)],
            capture_output=True,
            text=True,
            env=env,
            cwd=ROOT,
            timeout=300,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": "not finished after five minutes"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))
