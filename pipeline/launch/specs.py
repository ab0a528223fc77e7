"""What a training job is told: its specification in the storage, and the name that finds the run again.

A run's identity is its configuration and data: the same call finds the same run, finished, running or killed.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
from typing import Any

from agit_core import saved_method
from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.config import Config, fingerprint
from pipeline.data.format import manifest
from pipeline.redact import redact
from pipeline.train import lease

# What only says where and how the same training runs.
_EXECUTION_ONLY = {
    "workers",
    "minimum_workers",
    "grow_after_s",
    "device",
    "threads_per_worker",
    "prefetch_threads",
    "log_every",
    "sample_every",
    "samples",
    "checkpoint_every",
    "keep_checkpoints",
    "best_by",
    "storage_patience_s",
    "max_failures",
    "stop_on_collapse",
    # a run that never diverges is the same either way, and one that has can go on with another limit
    "rollbacks",
}
VERDICT = "AGIT-VERDICT "
"""The last line of a job that failed starts with it; JSON follows: ``{"kind": ..., "message": ...}``."""


def run_id(config: Config, data_manifest: dict[str, Any]) -> str:
    """The name of a training: the same method, schedule, seed and data give the same name."""
    identity = {
        "method": saved_method.identity(config.method),
        "train": config.train.model_dump(mode="json", exclude=_EXECUTION_ONLY),
        "seed": config.seed,
        "data": data_manifest["fingerprint"],
    }
    if config.data.shuffle == "windowed":
        # another order of the images, and so other weights
        identity["shuffle_bytes"] = config.data.shuffle_bytes
    return f"{config.name}-{fingerprint(identity, 8)}"


def spec_of(config: Config, data_uri: str, name: str, start: str | None = None) -> dict[str, Any]:
    """What the job of a run is told; ``job`` may name another module than :mod:`pipeline.train_job`.

    Args:
        start: the folder of the weights to start from, when ``train.start_from`` no longer leads there.
    """
    run_uri = records.run_uri(absolute(config.storage), name)
    return {
        "run_id": name,
        "run_uri": run_uri,
        "data_uri": data_uri,
        "config": _absolute_config(config, start),
    }


def specify(config: Config, prepared_uri: str) -> str:
    """Stores what the job of a run is told, for something else to start it (a RayJob); returns its URI.

    Raises:
        RunFailed: somebody trains this run.
    """
    data_uri = absolute(prepared_uri)
    name = run_id(config, manifest.read(data_uri))
    spec = spec_of(config, data_uri, name)
    before = lease.refuse_second(spec["run_uri"])
    attempt = 1 if before is None else int(before["attempt"]) + 1
    return write_spec(spec, attempt, {"token": secrets.token_hex(16)})


def absolute(uri: str) -> str:
    """The same place for a process with another working directory."""
    return uri.rstrip("/") if storage.is_remote(uri) else str(storage.local_path(uri))


def write_spec(spec: dict[str, Any], attempt: int, owner: dict[str, Any]) -> str:
    """Stores what the job is to do and who asked for it; returns its URI."""
    records.SPEC.write(spec["run_uri"], {**spec, "attempt": attempt, "owner": owner})
    return records.SPEC.uri(spec["run_uri"])


def read_spec(spec_uri: str) -> dict[str, Any]:
    """What the job is to do, for the job itself.

    Raises:
        BadInput: it is not there: who started the job wrote it to a storage that this node does not share.
        TakenOver: another launcher has written its own since.
    """
    spec = records.SPEC.at(spec_uri)
    if spec is None:
        raise BadInput(
            f"there is no {spec_uri} on {socket.gethostname()}; give storage that every node of the cluster "
            "reaches under the same name, such as s3://bucket/prefix or a shared folder"
        )
    lease.confirm(spec)
    return spec


def parse_verdict(line: str) -> dict[str, str] | None:
    """The verdict in a line of a job's output, if it is one."""
    _, mark, text = line.partition(VERDICT)
    with contextlib.suppress(ValueError):
        verdict = json.loads(text) if mark else None
        return verdict if isinstance(verdict, dict) and {"kind", "message"} <= verdict.keys() else None
    return None


def _absolute_config(config: Config, start: str | None) -> dict[str, Any]:
    # the job reads prepared data: where it came from, and the servers that it does not ask, are for people
    tree: dict[str, Any] = redact(config.plain())
    tree["storage"] = absolute(config.storage)
    tree["train"]["start_from"] = start or start_of(config)
    return tree


def start_of(config: Config) -> str | None:
    """``train.start_from`` as the job is told it: a folder that any machine finds.

    The registry is asked here, as workers do not know where it is. A run's name holds ``models:/h2z@champion`` as it
    stands: the same command finds the same run, also when that run has become the champion since.

    Raises:
        BadInput: there is no such model, version or alias.
    """
    start = config.train.start_from
    if start is None or not start.startswith("models:"):
        return start if start is None or ":" in start else absolute(start)
    from pipeline.registry import models

    return models.resolve(start, config)
