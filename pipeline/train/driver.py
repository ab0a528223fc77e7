"""Driver of Ray Train, with restarts within the retry budget."""

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
from pipeline.records import Result, Spec
from pipeline.train import events, worker
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.failures import Allowance, Preempted, root_cause, sentence
from pipeline.train.prometheus import counter
from pipeline.train.rendezvous import LocalTorchConfig

log = logging.getLogger(__name__)

AUTOSCALED_GPUS = "AGIT_AUTOSCALED_GPUS"
"""Environment variable of an autoscaled cluster's head: the most GPUs that its workers can have together."""
# Timeout of collectives; train.storage_patience_s is added, because rank 0 may wait that long for the storage.
_COLLECTIVE_SECONDS = 600


class _Trainer(TorchTrainer):
    """TorchTrainer without unused helper processes, each of which takes seconds to start.

    These manage Ray datasets (not used here) and clean up after a lost driver (needed only if Ray outlives it).
    """

    own_ray: bool = False

    def _create_default_callbacks(self) -> list[Any]:
        unused = (
            {"DatasetsCallback", "PlacementGroupCleanerCallback"} if self.own_ray else {"DatasetsCallback"}
        )
        return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unused]


class WorkerFailures(ray.train.UserCallback):
    """Callback in Ray Train's controller: records worker failures and ends the run if a retry is pointless.

    It replaces Ray's policy, which counts failures over the whole run and retries every error, even one in the
    configuration. An exception raised here ends the run at once.
    """

    def __init__(self, run_uri: str, allowance: Allowance) -> None:
        self._run_uri = run_uri
        self._allowance = allowance
        self._counters: dict[str, Counter] = {}

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Handle the exceptions of the failed ranks (called by Ray Train)."""
        cause = root_cause(*worker_exceptions.values())
        ranks = sorted(worker_exceptions)
        if isinstance(cause, Preempted):
            events.record(self._run_uri, "preempted", str(cause), ranks=ranks)
            self._count("preemptions")
            return
        events.record(self._run_uri, "worker_failed", sentence(cause), ranks=ranks)
        self._count("worker_failures")
        self._allowance.spend(cause)
        # back off: what kills workers, such as memory pressure, may be temporary
        time.sleep(self._allowance.pause)

    def _count(self, name: str) -> None:
        # made here, in the controller: this object travels there
        self._counters[name] = self._counters.get(name) or counter(name)
        self._counters[name].inc(1, {"run_id": storage.name(self._run_uri)})


def drive(
    spec: Spec,
    config: Config,
    scratch: str,
    own_ray: bool | None = None,
    alone: bool = True,
) -> Result:
    """Train on the connected Ray, to the end or to step ``spec.until`` of a trial; return rank 0's result.

    Worker failures are handled by Ray Train, which restarts all workers; the loss of its controller is handled here by
    restarting Ray Train. In both cases the workers resume from the newest complete checkpoint.

    Args:
        scratch: local folder for Ray Train's few files.
        own_ray: whether this is a private Ray instance, which ends with the job; default: if ``RAY_ADDRESS`` is unset.
        alone: whether this job is the only user of the Ray instance; the trials of a search share one.

    Raises:
        BadInput, RunFailed: a retry is pointless, or the retry budget is exhausted; the message names the cause.
    """
    store = CheckpointStore.of(spec.run_uri, config)
    allowance = Allowance(store.newest, config.train.max_failures)
    own_ray = not os.environ.get("RAY_ADDRESS") if own_ray is None else own_ray
    use_gpu = needs_gpu(config)
    while True:
        trainer = _Trainer(
            worker.train,
            train_loop_config={"spec": spec, "on_cluster": not own_ray},
            torch_config=_torch_config(config, use_gpu, scratch if own_ray else None),
            scaling_config=ray.train.ScalingConfig(
                num_workers=_workers(config),
                use_gpu=use_gpu,
                elastic_resize_monitor_interval_s=config.train.grow_after_s,
            ),
            run_config=ray.train.RunConfig(
                name=spec.run_id,
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=-1),
                callbacks=[WorkerFailures(spec.run_uri, allowance)],
                logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            ),
        )
        trainer.own_ray = own_ray
        try:
            result: Result = trainer.fit().return_value
            return result
        except Exception as error:
            cause = root_cause(error)
            log.warning("Ray Train ended: %s", sentence(cause))
            allowance.spend(cause)
            events.record(spec.run_uri, "controller_lost", sentence(cause))
            if own_ray and alone:
                _free_workers_places()
            time.sleep(max(1.0, allowance.pause))


def _torch_config(config: Config, use_gpu: bool, folder: str | None) -> TorchConfig:
    """Rendezvous of the ranks: through a local folder on a private Ray instance, through a port on a cluster."""
    backend = "nccl" if use_gpu else "gloo"
    seconds = _COLLECTIVE_SECONDS + round(config.train.storage_patience_s)
    if folder is None:
        return TorchConfig(backend=backend, timeout_s=seconds)
    return LocalTorchConfig(backend=backend, timeout_s=seconds, folder=folder)


def _free_workers_places() -> None:
    """Release placement groups of a lost controller; on a cluster, Ray Train's own clean-up does this."""
    for entry in placement_group_table().values():
        if entry["state"] != "REMOVED":
            remove_placement_group(
                PlacementGroup(PlacementGroupID(bytes.fromhex(entry["placement_group_id"])))
            )


def _workers(config: Config) -> int | tuple[int, int]:
    least, most = config.train.minimum_workers, config.train.workers
    return most if least is None or least == most else (least, most)


def needs_gpu(config: Config) -> bool:
    """Whether each worker takes a GPU of the connected Ray.

    An autoscaled cluster reports no GPU before one is requested; :data:`AUTOSCALED_GPUS` on its head gives the maximum.
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
