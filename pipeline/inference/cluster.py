"""``agit translate --batch``: translation on a Ray cluster, with one copy of the model per actor."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agit_core.errors import BadInput, RunFailed
from pipeline import ray_session, storage
from pipeline.inference.image_items import Outcome, translate_items
from pipeline.inference.inputs import Item
from pipeline.inference.settings import Settings

_IMAGES_PER_TASK = 8
_ATTEMPTS = 3
_OBJECT_STORE_BYTES = 100 * 2**20


class _Worker:
    """Actor that loads the model once."""

    def __init__(self, settings: Settings, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.settings = settings
        self.translator = settings.translator()

    def translate(self, todo: list[tuple[Item, str]]) -> list[Outcome]:
        """Translate items; return the outcome of each."""
        return list(translate_items(self.translator, todo, self.settings.direction, self.settings.masks))


def run(todo: list[tuple[Item, str]], settings: Settings, workers: int | None) -> Iterator[Outcome]:
    """Translate on a Ray cluster and yield outcomes as items finish; the work of a lost machine is repeated by another.

    Actors read images directly from the storage; only names pass through Ray.

    Raises:
        BadInput: more workers than the cluster has GPUs or, without GPUs, CPUs.
        RunFailed: the workers died repeatedly.
    """
    with _session() as ray:
        from ray.util.actor_pool import ActorPool

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes) if settings.device != "cpu" else 0
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        count = min(workers or gpus or max(1, sum(cpus) // 2), len(todo))
        if count > (gpus or sum(cpus)):
            kind = f"GPUs and the cluster has {gpus}" if gpus else f"CPUs and the cluster has {sum(cpus)}"
            raise BadInput(f"{count} workers need as many {kind}; lower --workers")
        each = _share(cpus, count)
        actor = ray.remote(_Worker).options(
            num_cpus=each,
            num_gpus=1 if gpus else 0,
            # safe to retry: a translation is written atomically, under the same name
            max_restarts=_ATTEMPTS,
            max_task_retries=_ATTEMPTS,
        )
        pool = ActorPool([actor.remote(settings, each) for _ in range(count)])
        chunks = [todo[i : i + _IMAGES_PER_TASK] for i in range(0, len(todo), _IMAGES_PER_TASK)]
        targets = {item.name: target for item, target in todo}
        try:
            for outcomes in pool.map_unordered(lambda worker, chunk: worker.translate.remote(chunk), chunks):
                for outcome in outcomes:
                    misplaced = None if outcome.failed else _misplaced(targets[outcome.item.name])
                    yield replace(outcome, failed=misplaced) if misplaced else outcome
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            raise (
                cause
                if isinstance(cause, BadInput | RunFailed)
                else RunFailed(f"a worker failed: {error.cause}")
            ) from None
        except ray.exceptions.RayError as error:
            # for an actor that could not start, Ray's message is a whole traceback; its last line is the cause
            cause = str(error).strip().splitlines()[-1].strip()
            raise RunFailed(f"the Ray workers were lost ({type(error).__name__}: {cause})") from None


def _share(cpus: list[int], count: int) -> int:
    """Largest number of CPUs per worker such that ``count`` workers fit, each on a single machine."""
    each = sum(cpus) // count
    while each > 1 and sum(machine // each for machine in cpus) < count:
        each -= 1
    return each


def _misplaced(target: str) -> str | None:
    """Error for an output that is not here: a local path of another machine; None if it is here."""
    if storage.is_remote(target) or storage.exists(target):
        return None
    return "was written on another machine; give a shared folder or an s3:// output"


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """Connected Ray: an existing connection, the cluster at ``RAY_ADDRESS``, or a private instance."""
    private = not os.environ.get("RAY_ADDRESS")
    if private and "ray" not in sys.modules:
        ray_session.keep_private()
    import ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    # a short path, because it holds sockets, whose paths are limited to 107 bytes
    folder = tempfile.mkdtemp(prefix="agit-", dir="/tmp" if os.path.isdir("/tmp") else None)
    if private:
        options |= ray_session.options(folder, _OBJECT_STORE_BYTES)
    try:
        ray.init(**options)
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
