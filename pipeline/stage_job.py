"""A stage of a run as a job of a Ray cluster: ``python -m pipeline.stage_job SPEC_URI``.

The job's own process stands on the head, which may be small: the stage runs as a task on a node with room for it, one
with a GPU where it uses one, and on another node when that is lost. Its result is ``result.json`` of the job's folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agit_core.errors import BadInput, RunFailed
from pipeline import logs, ray_session, records, storage, train_job
from pipeline.config import Config, parse
from pipeline.launch.specs import read_spec
from pipeline.process_identity import heartbeat
from pipeline.records import Spec
from pipeline.train import lease
from pipeline.train.failures import PERMANENT

if TYPE_CHECKING:
    from pipeline.evaluate.feature_cache import Arrays
    from pipeline.evaluate.shares import Share, Spread

log = logging.getLogger("pipeline.stage_job")

Report = Callable[[Mapping[str, Any]], None]
_PROGRESS_SECONDS = 2.0
_RETRIES = 3


def run(spec_uri: str) -> dict[str, Any]:
    """Run the stage of a specification; store and return its result.

    Raises:
        BadInput, RunFailed: as the stage raises them, or its node was lost repeatedly.
    """
    spec = read_spec(spec_uri)
    logs.bind(run_id=spec.run_id)
    config = parse(spec.config, where=spec_uri)
    train_job.report(spec, "starting", message="waiting for a node", stage=None, step=None)
    with lease.alive(spec.run_uri), train_job.failure_recorded(spec):
        with ray_session.connected(config):
            result = _on_a_node(spec, config)
        records.JOB_RESULT.write(spec.run_uri, result)
    train_job.report(spec, "finished", stage=None, step=None)
    return result


def _on_a_node(spec: Spec, config: Config) -> dict[str, Any]:
    import ray

    gpu = _uses_gpu(_device(spec, config))
    task = ray.remote(_work).options(
        name=spec.run_id, num_cpus=1, num_gpus=1 if gpu else 0, max_retries=_RETRIES
    )
    try:
        result: dict[str, Any] = ray.get(task.remote(spec))
        return result
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BadInput | RunFailed | PERMANENT) else error
        raise cause from None
    except ray.exceptions.RayError as error:
        # the launcher starts this job again
        raise RuntimeError(
            f"the node of stage {spec.stage} was lost ({' '.join(str(error).split())[:200]})"
        ) from None


def _device(spec: Spec, config: Config) -> str:
    """Device of the stage's own process; the actors of a batch request GPUs themselves."""
    if spec.stage == "evaluate":
        return config.evaluate.device if config.evaluate.workers == 1 else "cpu"
    given = spec.arguments
    return "cpu" if spec.stage == "prepare" or given["batch"] else str(given["device"])


def _uses_gpu(device: str) -> bool:
    """Whether it takes one of the GPUs that the cluster has, or may have after growing."""
    if device == "cpu":
        return False
    from pipeline.train.driver import gpus

    found = gpus() > 0
    if device != "auto" and not found:
        raise BadInput(f"device is {device}, but the cluster has no GPU; set it to auto or cpu")
    return found


def _work(spec: Spec) -> dict[str, Any]:
    """The stage, on its node."""
    import ray

    logs.set_up(sys.stdout, "%(levelname)s %(message)s")
    logs.bind(run_id=spec.run_id)
    # what it starts in turn stays on this cluster, whatever else runs on the machine
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    config = parse(spec.config)
    with _reporting(spec) as report:
        return STAGES[spec.stage](config, report, **spec.arguments)


def _prepare(config: Config, report: Report) -> dict[str, Any]:
    """``{"name", "reused"}``: the folder's name below ``{storage}/data``."""
    from pipeline.data.prepare.stage import prepare

    done = prepare(config, report)
    return {"name": storage.name(done.uri), "reused": done.reused}


def _evaluate(
    config: Config, report: Report, uri: str, data_uri: str, champion: dict[str, Any] | None
) -> dict[str, Any]:
    """The evaluation; ``champion``: as the registry describes it, which the cluster does not reach."""
    from pipeline.evaluate.scoring import evaluate

    if config.evaluate.workers == 1:
        return evaluate(config, uri, data_uri, report, champion=champion).plain()
    spread = _spread(config, data_uri)
    # its workers have the GPUs; what is left to this process is arithmetic on their features and a few pictures
    here = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"device": "cpu"})})
    return evaluate(here, uri, data_uri, report, champion=champion, spread=spread).plain()


def _spread(config: Config, data_uri: str) -> Spread:
    import ray

    from pipeline.evaluate.shares import compute

    gpus = 1 if _uses_gpu(config.evaluate.device) else 0
    task = ray.remote(compute).options(num_cpus=1, num_gpus=gpus, max_retries=_RETRIES)

    def spread(shares: Sequence[Share]) -> Iterator[Arrays]:
        for pending in [task.remote(config, data_uri, share) for share in shares]:
            try:
                yield ray.get(pending)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause or error) from None

    return spread


def _translate(config: Config, report: Report, **arguments: Any) -> dict[str, Any]:
    """The result of :func:`pipeline.inference.translate.translate`, whose ``arguments`` these are."""
    from pipeline.inference.translate import translate

    return translate(**arguments, progress=report)


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": _prepare,
    "evaluate": _evaluate,
    "translate": _translate,
}


@contextlib.contextmanager
def _reporting(spec: Spec) -> Iterator[Report]:
    """Take a stage's events; write the newest to ``progress.json`` every two seconds."""
    newest: dict[str, Any] = {}

    def write() -> None:
        now = records.Progress(
            **{"message": "", **newest}, state="running", time=time.time(), attempt=spec.attempt
        )
        records.PROGRESS.write(spec.run_uri, now)

    with heartbeat(write, _PROGRESS_SECONDS, "progress", patience_s=30):
        yield newest.update


if __name__ == "__main__":
    sys.exit(train_job.main(sys.argv[1:], run, "stage"))
