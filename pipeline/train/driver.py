"""Ray Train, started again for as long as failures are worth another try."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.train
from ray import PlacementGroupID
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.metrics import Counter
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from agit_core.errors import BadInput
from pipeline import storage
from pipeline.config import Config
from pipeline.train import events, worker
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.failures import Allowance, Preempted, root_cause, sentence
from pipeline.train.prometheus import counter
from pipeline.train.rendezvous import LocalTorchConfig

log = logging.getLogger(__name__)

AUTOSCALED_GPUS = "AGIT_AUTOSCALED_GPUS"
"""Environment variable of an autoscaled cluster's head: the most GPUs that its workers can have together."""
# A rank that waits longer for another one considers it lost. While the storage is away rank 0 may wait as long
# as train.storage_patience_s, which comes on top.
_COLLECTIVE_SECONDS = 600


class _Trainer(TorchTrainer):
    """Without helpers that this use has no need of: each is a process that takes seconds to start.

    They manage Ray datasets, of which there are none, and clean up after a lost driver, which matters only
    where Ray outlives it.
    """

    own_ray: bool = False

    def _create_default_callbacks(self) -> list[Any]:
        spared = (
            {"DatasetsCallback", "PlacementGroupCleanerCallback"} if self.own_ray else {"DatasetsCallback"}
        )
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in spared]


class WorkerFailures(ray.train.UserCallback):
    """Runs in Ray Train's controller: notes why workers failed and ends the run when trying again is pointless.

    Ray's own policy counts failures over the whole run and repeats every error, also one in the configuration.
    What this raises ends the run at once.
    """

    def __init__(self, run_uri: str, allowance: Allowance) -> None:
        self._run_uri = run_uri
        self._allowance = allowance
        self._counters: dict[str, Counter] = {}

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray Train with the exceptions of the failed ranks."""
        cause = root_cause(*worker_exceptions.values())
        ranks = sorted(worker_exceptions)
        if isinstance(cause, Preempted):
            events.record(self._run_uri, "preempted", str(cause), ranks=ranks)
            self._count("preemptions")
            return
        events.record(self._run_uri, "worker_failed", sentence(cause), ranks=ranks)
        self._count("worker_failures")
        self._allowance.spend(cause)
        # what keeps killing workers, such as a full memory, may pass
        time.sleep(self._allowance.pause)

    def _count(self, name: str) -> None:
        # made here, in the controller: this object travels there
        self._counters[name] = self._counters.get(name) or counter(name)
        self._counters[name].inc(1, {"run_id": storage.name(self._run_uri)})


def drive(
    spec: dict[str, Any],
    config: Config,
    scratch: str,
    own_ray: bool | None = None,
    alone: bool = True,
) -> dict[str, Any]:
    """Trains on the Ray that this process is connected to; returns rank 0's result.

    It trains to the end, or to the step ``spec["until"]`` of a trial, which the next call goes on from.

    Worker failures are handled by Ray Train, which starts all workers anew; the loss of its controller is
    handled here, by starting Ray Train anew. Either way the workers go on from the newest whole checkpoint.

    Args:
        scratch: a local folder for what Ray Train wants to keep, which is next to nothing.
        own_ray: this Ray ends with the job; default: unless ``RAY_ADDRESS`` names a cluster.
        alone: nobody else uses this Ray; the trials of a search share it.

    Raises:
        BadInput, RunFailed: the cause, when another try is pointless or one too many.
    """
    store = CheckpointStore(spec["run_uri"], config.train.keep_checkpoints, config.train.best_by)
    allowance = Allowance(store.newest, config.train.max_failures)
    own_ray = not os.environ.get("RAY_ADDRESS") if own_ray is None else own_ray
    use_gpu = needs_gpu(config)
    while True:
        trainer = _Trainer(
            worker.train,
            train_loop_config={"spec": spec, "watch_preemption": not own_ray},
            torch_config=_torch_config(config, use_gpu, scratch if own_ray else None),
            scaling_config=ray.train.ScalingConfig(
                num_workers=_workers(config),
                use_gpu=use_gpu,
                elastic_resize_monitor_interval_s=config.train.grow_after_s,
            ),
            run_config=ray.train.RunConfig(
                name=spec["run_id"],
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[WorkerFailures(spec["run_uri"], allowance)],
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )
        trainer.own_ray = own_ray
        try:
            result: dict[str, Any] = trainer.fit().return_value
            return result
        except Exception as error:
            cause = root_cause(error)
            log.warning("Ray Train ended: %s", sentence(cause))
            allowance.spend(cause)
            events.record(spec["run_uri"], "controller_lost", sentence(cause))
            if own_ray and alone:
                _free_workers_places()
            time.sleep(max(1.0, allowance.pause))


def _torch_config(config: Config, use_gpu: bool, folder: str | None) -> TorchConfig:
    """How the ranks find each other: through a folder of this machine, or on a cluster through a port."""
    backend = "nccl" if use_gpu else "gloo"
    seconds = _COLLECTIVE_SECONDS + round(config.train.storage_patience_s)
    if folder is None:
        return TorchConfig(backend=backend, timeout_s=seconds)
    return LocalTorchConfig(backend=backend, timeout_s=seconds, folder=folder)


def _free_workers_places() -> None:
    """What a lost controller had reserved; on a cluster, Ray Train's own cleaner does it."""
    for entry in placement_group_table().values():
        if entry["state"] != "REMOVED":
            remove_placement_group(
                PlacementGroup(PlacementGroupID(bytes.fromhex(entry["placement_group_id"])))
            )


def _workers(config: Config) -> int | tuple[int, int]:
    least, most = config.train.minimum_workers, config.train.workers
    return most if least is None or least == most else (least, most)


def needs_gpu(config: Config) -> bool:
    """Whether each worker takes a GPU of the Ray that this process is connected to.

    A cluster that grows on demand shows no GPU before one is asked for; its head's :data:`AUTOSCALED_GPUS` says
    how many there can be.
    """
    found = gpus()
    wanted = config.train.minimum_workers or config.train.workers
    if config.train.device == "cuda" and found < wanted:
        raise BadInput(
            f"train.device is cuda and {wanted} worker(s) need a GPU each, but Ray sees {found}; "
            "set train.device=cpu or train.workers lower, or add GPU nodes"
        )
    return config.train.device == "cuda" or (config.train.device == "auto" and found >= wanted)


def gpus() -> int:
    """The GPUs of the Ray that this process is connected to, now or once it has grown."""
    return max(int(ray.cluster_resources().get("GPU", 0)), int(os.environ.get(AUTOSCALED_GPUS) or 0))
