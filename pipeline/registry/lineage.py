"""Lineage of a model: the record stored with it, by which it can be traced and reproduced."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Config
from pipeline.data.sources import opening
from pipeline.records import START, Data, Run

_PACKAGES = ("agit", "torch", "torchvision", "ray", "prefect", "mlflow-skinny", "pyarrow", "numpy")


def of(config: Config, data: Data, run: Run) -> dict[str, Any]:
    """Lineage of a finished run: configuration, data, code and libraries, JSON-ready.

    The configuration is recorded as typed, because the run id is derived from it. ``sources`` and ``start`` add what
    does not depend on the working directory or the time: absolute sources, and ``uri`` and ``digest`` of the model
    folder or checkpoint whose weights the training started from.
    """
    return {
        "run_id": run.run_id,
        "run_uri": run.uri,
        "checkpoint": run.result.model,
        "steps": run.result.model_step,
        "data_uri": _absolute(data.uri),
        "data_fingerprint": data.manifest.fingerprint,
        "config": config.plain(),
        "sources": _sources(config),
        "start": _start(run.uri) if config.train.start_from else None,
        "code": code_version(),
        "packages": packages(),
        "machine": machine(),
        "device": run.result.device,
        "workers": run.result.workers,
    }


def _absolute(uri: str) -> str:
    return uri if storage.is_remote(uri) else str(storage.local_path(uri))


def _sources(config: Config) -> dict[str, str]:
    """``data.source`` and ``data.masks`` as absolute paths; values that are not paths are left out."""
    absolute = {"source": opening.absolute(config.data.source)}
    if config.data.masks:
        absolute["masks"] = _absolute(config.data.masks)
    typed = {"source": config.data.source, "masks": config.data.masks}
    return {key: value for key, value in absolute.items() if value != typed[key] or value.startswith("/")}


def _start(run_uri: str) -> dict[str, str] | None:
    start = START.read(run_uri)
    return start.plain() if start else None  # earlier releases did not record it


@cache
def code_version() -> dict[str, Any]:
    """Package version, SHA-256 of the Python files of both packages and, in a git work tree, the commit."""
    digest = hashlib.sha256()
    for package in ("agit_core", "pipeline"):
        root = Path(str(resources.files(package)))
        for path in sorted(root.rglob("*.py")):
            digest.update(
                path.relative_to(root.parent).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
            )
    root = Path(str(resources.files("pipeline"))).parent
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    return {
        "version": _version("agit"),
        "source_sha256": digest.hexdigest(),
        "git_commit": commit,
        "git_dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def packages() -> dict[str, str | None]:
    """Versions of Python and of the libraries that affect results."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def machine() -> dict[str, Any]:
    """Processor and number of cores; kernels depend on both, and so do the last bits of a result."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model
        )
    return {"processor": model, "cpu_cores": os.cpu_count()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
