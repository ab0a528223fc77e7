"""The training job: ``python -m pipeline.train_job SPEC_URI``, locally and on a cluster the same.

It drives Ray Train until the run is finished, whatever fails underneath, and writes ``result.json`` last.
Without ``RAY_ADDRESS`` it starts a Ray of its own on this machine, which ends with it. Exit status: 0 done,
2 a wrong configuration, 1 a failed run; the last line of its output then says why, for people and for
:mod:`pipeline.launch.follow`.
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
from pipeline.process_identity import when_orphaned
from pipeline.train import events, lease
from pipeline.train.failures import PERMANENT, sentence

log = logging.getLogger("pipeline.train_job")


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
    if (done := records.RESULT.peek(spec["run_uri"])) is not None:
        return done.plain()
    check(config, manifest.read(spec["data_uri"]))
    storage.sweep(spec["run_uri"])
    tell(spec, "starting", message="starting the workers")
    with lease.alive(spec["run_uri"]), failure_told(spec):
        with ray_session.connected(config) as scratch:
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
    """Writes the result, which makes a training finished."""
    records.RESULT.write(spec["run_uri"], records.Result.model_validate(result))
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


def tell(spec: dict[str, Any], state: str, **changes: Any) -> None:
    """Rewrites ``progress.json`` where no worker does: before the first step and after the last."""
    before: dict[str, Any] = {"step": 0, "total_steps": None, "epoch": 0, "stage": None, "losses": {}}
    with contextlib.suppress(RunFailed):
        if (last := records.PROGRESS.peek(spec["run_uri"])) is not None:
            before |= last.plain()
    now = {"state": state, "time": time.time(), "attempt": spec["attempt"], "message": ""}
    with contextlib.suppress(RunFailed):
        records.PROGRESS.write(spec["run_uri"], records.Progress(**before | now | changes))


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
    if launcher := os.environ.get("AGIT_LAUNCHER_PID"):
        when_orphaned(int(launcher), _leave)


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
