"""The training job: ``python -m pipeline.train_job SPEC_URI``, the same locally and on a cluster.

It drives Ray Train through failures until the run is finished, and writes ``result.json`` last. Without
``RAY_ADDRESS`` it starts a private Ray instance, which ends with it. Exit status: 0 done, 2 a wrong configuration, 1 a
failed run; the last line of the output then names the cause, for people and for :mod:`pipeline.launch.follow`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from agit_core.errors import BadInput, RunFailed
from pipeline import logs, ray_session, records, storage
from pipeline.config import Config, parse
from pipeline.data.format import manifest
from pipeline.launch.specs import VERDICT, read_spec
from pipeline.metrics import catalog
from pipeline.process_identity import when_orphaned
from pipeline.records import Manifest, Result, Spec
from pipeline.train import events, lease
from pipeline.train.failures import PERMANENT, sentence

log = logging.getLogger("pipeline.train_job")


_WATCH_SECONDS = 2.0


def main(arguments: list[str], job: Callable[[str], Any] | None = None, what: str = "training") -> int:
    """Run the job (default: :func:`run`), print the cause of a failure as the last line, return the exit status."""
    # as in pipeline.cli.start, which does not start jobs on a cluster
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
        return _verdict(RunFailed(f"the {what} stopped with an error of the program: {sentence(error)}"))
    return 0


def run(spec_uri: str) -> Result:
    """Train as specified, or return the stored result of a finished run.

    Raises:
        BadInput: the specification does not fit the data or the cluster.
        RunFailed: the run failed; the message names the cause, and the same call resumes from the last checkpoint.
    """
    spec = read_spec(spec_uri)
    logs.bind(run_id=spec.run_id)
    config = parse(spec.config, where=spec_uri)
    if (done := records.RESULT.peek(spec.run_uri)) is not None:
        return done
    check(config, manifest.read(spec.data_uri))
    storage.sweep(spec.run_uri)
    report(spec, "starting", message="starting the workers")
    with lease.alive(spec.run_uri), failure_recorded(spec):
        with ray_session.connected(config) as scratch:
            from pipeline.evaluate import validation
            from pipeline.train.driver import drive

            with validation.beside(spec, config) as scorer:
                result = drive(spec, config, scratch)
                if scorer is not None:
                    result = scorer.finish(result, lambda text: report(spec, "running", message=text))
        finish(spec, result)
    return result


@contextlib.contextmanager
def failure_recorded(spec: Spec) -> Iterator[None]:
    """Record the failure that ends a job in its run, unless another job has taken over the run."""
    try:
        yield
    except lease.TakenOver:
        raise
    except (BadInput, RunFailed) as error:
        events.record(spec.run_uri, "failed", str(error))
        report(spec, "failed", message=str(error))
        raise
    except SystemExit:  # stopped: record it, so that nobody waits for the heartbeat timeout
        with contextlib.suppress(BadInput, RunFailed, OSError):  # taken over, or the storage does not respond
            lease.check(spec)
            report(spec, "interrupted", message="stopped; the same command resumes from the last checkpoint")
        raise


def finish(spec: Spec, result: Result) -> None:
    """Write the result, which marks the run as finished."""
    records.RESULT.write(spec.run_uri, result)
    events.record(spec.run_uri, "finished", step=result.steps)
    report(spec, "finished", step=result.steps, total_steps=result.steps, eta_s=0)


def check(config: Config, manifest: Manifest) -> None:
    """Check a configuration against the data before anything is started.

    Raises:
        BadInput: an empty domain, more workers than items in a batch, or another image size.
    """
    for split in ("trainA", "trainB"):
        if manifest.splits[split].rows < 1:
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
    if config.deciding_score is not None:
        catalog.check_deciding("train.best_by", config.deciding_score)
    if manifest.image_size != config.data.image_size:
        raise BadInput(
            f"the data was prepared for {manifest.image_size} pixels but data.image_size is "
            f"{config.data.image_size}; prepare it again"
        )


def report(spec: Spec, state: str, **changes: Any) -> None:
    """Update ``progress.json`` while no worker does: before the first step and after the last."""
    before: dict[str, Any] = {"step": 0, "total_steps": None, "epoch": 0, "stage": None, "losses": {}}
    with contextlib.suppress(RunFailed):
        if (last := records.PROGRESS.peek(spec.run_uri)) is not None:
            before |= last.plain()
    now = {"state": state, "time": time.time(), "attempt": spec.attempt, "message": ""}
    with contextlib.suppress(RunFailed):
        records.PROGRESS.write(spec.run_uri, records.Progress(**before | now | changes))


def _verdict(error: BadInput | RunFailed) -> int:
    kind = "BadInput" if isinstance(error, BadInput) else "RunFailed"
    message = " ".join(str(error).split())
    sys.stdout.flush()
    print(VERDICT + json.dumps({"kind": kind, "message": message}), flush=True)
    return 2 if kind == "BadInput" else 1


def _on_sigterm(signum: int, frame: Any) -> None:
    # run the finally blocks of the main thread, whatever it is doing
    raise SystemExit(128 + signum)


def _end_with_launcher() -> None:
    """End this process when its launcher has died, so that no training continues unattended."""
    if launcher := os.environ.get("AGIT_LAUNCHER_PID"):
        when_orphaned(int(launcher), _leave)


def _end_with_ray() -> None:
    """End this process when the node of its private Ray instance is lost, for which Ray would wait forever.

    No verdict is printed, so the launcher considers the job lost and restarts it with a new Ray instance.
    """
    if os.environ.get("RAY_ADDRESS"):
        return

    def watch() -> None:
        began = False
        while True:
            time.sleep(_WATCH_SECONDS)
            ray = sys.modules.get("ray")
            with contextlib.suppress(Exception):  # Ray is starting or shutting down
                alive = [node["Alive"] for node in ray.nodes()] if ray and ray.is_initialized() else []
                began = began or any(alive)
                if began and alive and not any(alive):
                    log.error("the Ray of this job was lost")
                    _leave()

    threading.Thread(target=watch, name="ray-watch", daemon=True).start()


def _leave() -> None:
    """Exit through the finally blocks of the main thread, or forcibly if that hangs."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
