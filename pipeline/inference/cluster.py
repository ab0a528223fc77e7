"""``agit translate --batch``: the images spread over a Ray cluster, each actor with its own model."""

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
    """One process with the model loaded once."""

    def __init__(self, settings: Settings, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.settings = settings
        self.translator = settings.translator()

    def translate(self, todo: list[tuple[Item, str]]) -> list[Outcome]:
        """What became of each item."""
        return list(translate_items(self.translator, todo, self.settings.direction, self.settings.masks))


def run(todo: list[tuple[Item, str]], settings: Settings, workers: int | None) -> Iterator[Outcome]:
    """Yields what became of items as they are finished. What a lost machine had is done again by another.

    The images travel from the storage to the actors directly; what passes through Ray are their names.

    Raises:
        BadInput: more workers than the cluster has GPUs or, without them, CPUs.
        RunFailed: the workers died again and again.
    """
    with _session() as ray:
        from ray.util.actor_pool import ActorPool

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes) if settings.device != "cpu" else 0
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        count = min(workers or gpus or max(1, sum(cpus) // 2), len(todo))
        if count > (gpus or sum(cpus)):
            kind = f"GPUs and the cluster has {gpus}" if gpus else f"CPUs and the cluster has {sum(cpus)}"
            raise BadInput(f"{count} workers need as many {kind}; ask for fewer workers")
        each = _share(cpus, count)
        actor = ray.remote(_Worker).options(
            num_cpus=each,
            num_gpus=1 if gpus else 0,
            # a translation can be repeated without harm: it is written whole, under the same name
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
            # of an actor that could not start, Ray tells the whole traceback: its last line is the cause
            cause = str(error).strip().splitlines()[-1].strip()
            raise RunFailed(f"the Ray workers were lost ({type(error).__name__}: {cause})") from None


def _share(cpus: list[int], count: int) -> int:
    """The most CPUs that each of ``count`` workers can have when none spreads over two machines."""
    each = sum(cpus) // count
    while each > 1 and sum(machine // each for machine in cpus) < count:
        each -= 1
    return each


def _misplaced(target: str) -> str | None:
    """On a cluster a local path may be another machine's."""
    if storage.is_remote(target) or storage.exists(target):
        return None
    return "was written on another machine; give a shared folder or an s3:// output"


@contextlib.contextmanager
def _session() -> Iterator[Any]:
    """Ray, connected: as this process is already, to what ``RAY_ADDRESS`` names, or one of its own."""
    own = not os.environ.get("RAY_ADDRESS")
    if own and "ray" not in sys.modules:
        ray_session.keep_private()
    import ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    # sockets live in it: a path longer than 107 bytes would not do
    folder = tempfile.mkdtemp(prefix="agit-", dir="/tmp" if os.path.isdir("/tmp") else None)
    if own:
        options |= ray_session.options(folder, _OBJECT_STORE_BYTES)
    try:
        ray.init(**options)
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
