"""The training job: ``python -m pipeline.train_job SPEC_URI``, locally and on a cluster the same.

It drives Ray Train until the run is finished, whatever fails underneath, and writes ``result.json`` last.
Without ``RAY_ADDRESS`` it starts a Ray of its own on this machine, which ends with it. Exit status: 0 done,
2 a wrong configuration, 1 a failed run; the last line of its output then says why, for people and for
:mod:`pipeline.launch.follow`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from agit_core.errors import BadInput, RunFailed
from pipeline import logs, ray_session, storage
from pipeline.config import Config, parse
from pipeline.launch.specs import VERDICT, read_spec
from pipeline.train import events, lease
from pipeline.train.failures import PERMANENT, sentence

log = logging.getLogger("pipeline.train_job")


# Read by Ray Train in the driver and handed on to its controller and workers.
_RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_PLACES_SECONDS, _ELASTIC_PLACES_SECONDS = "600", "30"
"""How long Ray Train waits for the workers' places: a cluster may have to grow first; but an elastic run, which may
have counted a node that is gone, had better count again."""
# Only where Ray runs on this machine alone, ends with the job, and is started again with it when it is lost.
_OWN_RAY = {
    # nobody could read them; a cluster's nodes export Ray Train's and ours (see pipeline.train.prometheus)
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # clusters announce that a node will be drained; here the watcher would only be one more process
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # who is slow on a busy machine is not dead; who died closes its connections, which is noticed at once
    "RAY_health_check_timeout_ms": "60000",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    # Ray would end the workers when others fill the machine's memory; the kernel prefers them too, but when it is full
    "RAY_memory_monitor_refresh_ms": "0",
    # Ray's own default, 15, would hand the processor to every other process of the machine
    "RAY_worker_niceness": "0",
    # nobody starts its control service again
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
_OBJECT_STORE_BYTES = 96 * 2**20
_WATCH_SECONDS = 2.0


def main(arguments: list[str], job: Callable[[str], Any] | None = None) -> int:
    """Runs the job (``run``, or a search's) and says in the last line how it ended."""
    # as the command does (pipeline.cli.start): a job on a cluster is not started by it
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logs.set_up(sys.stdout, "%(levelname)s %(message)s")
    logging.getLogger().setLevel(logging.INFO)
    if len(arguments) != 1:
        return _verdict(BadInput("call it with one argument, as in: python -m pipeline.train_job SPEC_URI"))
    signal.signal(signal.SIGTERM, _on_sigterm)
    _end_with_launcher()
    _end_with_ray()
    try:
        (job or run)(arguments[0])
    except (BadInput, RunFailed) as error:
        return _verdict(error)
    except FileNotFoundError as error:
        return _verdict(BadInput(f"{error}; prepare the data and start the run again"))
    except PERMANENT as error:
        log.exception("the driver failed")
        return _verdict(RunFailed(f"the training stopped with an error of the program: {sentence(error)}"))
    return 0


def run(spec_uri: str) -> dict[str, Any]:
    """Trains what the specification says, or returns the result that is there already.

    Raises:
        BadInput: the specification does not fit the data or the cluster.
        RunFailed: with the cause in one sentence; the same call goes on from the last checkpoint.
    """
    spec = read_spec(spec_uri)
    logs.bind(run_id=spec["run_id"])
    config = parse(spec["config"], where=spec_uri)
    result_uri = storage.join(spec["run_uri"], "result.json")
    with contextlib.suppress(FileNotFoundError):
        result: dict[str, Any] = storage.read_json(result_uri)
        return result
    check(config, storage.read_json(storage.join(spec["data_uri"], "manifest.json")))
    tell(spec, "starting", message="starting the workers")
    with lease.alive(spec["run_uri"]), failure_told(spec):
        with connected_ray(config) as scratch:
            from pipeline.train.driver import drive

            result = drive(spec, config, scratch)
        finish(spec, result)
    return result


@contextlib.contextmanager
def failure_told(spec: dict[str, Any]) -> Iterator[None]:
    """Notes in the run what ends its job; not that another one trains it now, whose state it then is."""
    try:
        yield
    except lease.TakenOver:
        raise
    except (BadInput, RunFailed) as error:
        events.record(spec["run_uri"], "failed", str(error))
        tell(spec, "failed", message=str(error))
        raise
    except SystemExit:  # told to stop; nobody should have to wait for its silence
        with contextlib.suppress(BadInput, RunFailed, OSError):  # another's by now, or the storage is away
            lease.check(spec)
            tell(spec, "interrupted", message="stopped; the same command goes on from the last checkpoint")
        raise


def finish(spec: dict[str, Any], result: dict[str, Any]) -> None:
    """Writes ``result.json``, which makes a training finished."""
    storage.write_json(storage.join(spec["run_uri"], "result.json"), result)
    events.record(spec["run_uri"], "finished", step=result["steps"])
    tell(spec, "finished", step=result["steps"], total_steps=result["steps"], eta_s=0)


def check(config: Config, manifest: dict[str, Any]) -> None:
    """Refuses what cannot work before anything is started.

    Raises:
        BadInput: an empty domain, more workers than items in a batch, another image size.
    """
    for split in ("trainA", "trainB"):
        if int(manifest["splits"][split]["rows"]) < 1:
            raise BadInput(f"the data has no training images in {split}; prepare it from another source")
    workers, batch = config.train.workers, config.train.batch_size
    if workers > batch:
        raise BadInput(
            f"a global batch of {batch} cannot be split over {workers} workers; "
            f"set train.batch_size to at least {workers}"
        )
    if (least := config.train.minimum_workers) is not None and least > config.train.workers:
        raise BadInput(
            f"train.minimum_workers ({least}) must not be larger than train.workers ({config.train.workers})"
        )
    if manifest["image_size"] != config.data.image_size:
        raise BadInput(
            f"the data was prepared for {manifest['image_size']} pixels but data.image_size is "
            f"{config.data.image_size}; prepare it again"
        )


@contextlib.contextmanager
def connected_ray(config: Config, cpus: int | None = None) -> Iterator[str]:
    """The cluster that ``RAY_ADDRESS`` names, or a Ray of this process's own; yields a scratch folder.

    The own one listens on loopback only, keeps its token out of the home directory, shows no dashboard and lives in
    a folder that only this user can enter.

    Args:
        cpus: slots of the own one; default: one per worker.
    """
    foreign = os.environ.get("RAY_ADDRESS")
    elastic = config.train.minimum_workers not in {None, config.train.workers}
    places = _ELASTIC_PLACES_SECONDS if elastic else _PLACES_SECONDS
    settings = _RAY_TRAIN | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": places} | ({} if foreign else _OWN_RAY)
    added = {key: value for key, value in settings.items() if key not in os.environ}
    os.environ.update(added)
    # loads while the processes of Ray start; the driver needs it next
    threading.Thread(target=lambda: importlib.import_module("torch"), daemon=True).start()
    if not foreign:
        ray_session.keep_private()
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    own: dict[str, Any] = {}
    # the launcher's folder, where there is one: it also removes it when this process is killed
    folder = os.environ.get("AGIT_RAY_FOLDER") or tempfile.mkdtemp(prefix="agit-", dir=_short_folder())
    try:
        if not foreign:
            own = ray_session.options(folder, _OBJECT_STORE_BYTES)
            own["num_cpus"] = cpus or config.train.workers
        ray.init(**quiet, **own)
        # ray.init installs its own, which does not end a driver that waits
        signal.signal(signal.SIGTERM, _on_sigterm)
        scratch = os.path.join(folder, "train")
        os.makedirs(scratch, exist_ok=True)
        yield scratch
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for key in added:
            os.environ.pop(key, None)


def _short_folder() -> str:
    return "/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()


def tell(spec: dict[str, Any], state: str, **changes: Any) -> None:
    """Rewrites ``progress.json`` where no worker does: before the first step and after the last."""
    uri = storage.join(spec["run_uri"], "progress.json")
    before: dict[str, Any] = {"step": 0, "total_steps": None, "epoch": 0, "stage": None, "losses": {}}
    with contextlib.suppress(FileNotFoundError, ValueError, RunFailed):
        before |= storage.read_json(uri)
    now = {"state": state, "time": time.time(), "attempt": spec["attempt"], "message": ""}
    with contextlib.suppress(RunFailed):
        storage.write_json(uri, before | now | changes)


def _verdict(error: BadInput | RunFailed) -> int:
    kind = "BadInput" if isinstance(error, BadInput) else "RunFailed"
    message = " ".join(str(error).split())
    sys.stdout.flush()
    print(VERDICT + json.dumps({"kind": kind, "message": message}), flush=True)
    return 2 if kind == "BadInput" else 1


def _on_sigterm(signum: int, frame: Any) -> None:
    # whatever the main thread does, also inside Ray: leave through the finally blocks
    raise SystemExit(128 + signum)


def _end_with_launcher() -> None:
    """Ends this process when the one that started it is gone, so that nothing trains on unseen."""
    launcher = os.environ.get("AGIT_LAUNCHER_PID")
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        _leave()

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def _end_with_ray() -> None:
    """Ends this process when the node of its own Ray is gone, for which Ray would wait for ever.

    Without a verdict: the launcher takes the job for lost and starts it, with a Ray, anew.
    """
    if os.environ.get("RAY_ADDRESS"):
        return

    def watch() -> None:
        began = False
        while True:
            time.sleep(_WATCH_SECONDS)
            ray = sys.modules.get("ray")
            with contextlib.suppress(Exception):  # Ray is being started, or ended
                alive = [node["Alive"] for node in ray.nodes()] if ray and ray.is_initialized() else []
                began = began or any(alive)
                if began and alive and not any(alive):
                    log.error("the Ray of this job was lost")
                    _leave()

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()


def _leave() -> None:
    """Through the finally blocks of the main thread; at once when that hangs."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
