"""One training under random kills, beside the same one undisturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agit_core import checkpoint
from infra.stack_state import free_port
from pipeline import storage
from pipeline.config import Config, parse
from pipeline.records import Event
from pipeline.train import events as train_events
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.events import Furthest
from tests.chaos import processes
from tests.pipeline.s3 import S3Server
from tests.pipeline.training import TINY, differences, prepared, spec_of

KINDS = ("worker", "controller", "driver", "node", "head", "flow", "storage")
"""``flow``: the process that started the job. ``storage``: the S3 server, which comes back seconds later."""
INTERVAL = 20
_STEPS_PER_KILL = 30
_SPARE_STEPS, _STEPS_PER_NODE = 300, 500
"""Training continues while the storage is away and until a recovery is noticed; it must outlast the last kill.
The workers of a node whose Ray is dead find that out after half a minute, and train and save until then."""
_LONG, _MINUTE = 20, 60.0
"""From this many kills on, a hunt includes an outage of the storage, of this many seconds."""
_LIFE_SECONDS = 600.0
"""Nothing here takes so long, even on a busy machine; what does has not recovered."""


class NotRecovered(RuntimeError):
    """A kill was more than the run could take."""


@dataclass
class Outcome:
    """What is written to ``chaos.json``."""

    kills: int = 0
    recoveries: int = 0
    max_steps_redone: int = 0
    checkpoint_interval: int = INTERVAL
    identical: bool = False
    seed: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)
    failure: str = ""
    """Why the run did not get over the last kill."""

    def line(self) -> str:
        """The summary line."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.by_kind.items()))
        if self.failure:
            return f"chaos: {self.kills} kills ({kinds}), {self.recoveries} recoveries: {self.failure}"
        same = "identical" if self.identical else f"NOT identical ({', '.join(self.differences[:3])} ...)"
        return (
            f"chaos: {self.kills} kills ({kinds}), {self.recoveries} recoveries, at most {self.max_steps_redone} "
            f"steps redone of an interval of {self.checkpoint_interval}, {same} after {self.steps} steps, "
            f"{self.seconds:.0f} s"
        )


def run(
    kills: int, seed: int, folder: Path, kinds: tuple[str, ...] = KINDS, say: Callable[[str], None] = print
) -> Outcome:
    """Trains twice: in peace, and with ``kills`` random kills at random steps, on a real S3 server.

    Every kind comes up before any comes up again. A kill that it does not get over ends the hunt.

    Raises:
        NotRecovered: it did not even train in peace.
    """
    began = time.monotonic()
    draw = random.Random(seed)
    order = [kind for _ in range(-(-kills // len(kinds))) for kind in draw.sample(kinds, len(kinds))][:kills]
    targets = [k * _STEPS_PER_KILL + draw.randrange(1, _STEPS_PER_KILL) for k in range(1, kills + 1)]
    steps = (kills + 2) * _STEPS_PER_KILL + _SPARE_STEPS + _STEPS_PER_NODE * order.count("node")
    data_uri = prepared(folder / "data")
    server = S3Server(root=folder / "s3", port=free_port()).start()
    outer = dict(os.environ)
    os.environ.update(server.env)
    try:
        say(f"undisturbed: {steps} steps")
        calm = _Run(_config(str(folder / "calm"), steps), data_uri, folder / "calm.json")
        calm.finish()
        say(f"with {kills} kills: {', '.join(order)}")
        hunted = _Run(_config(f"{server.uri}/hunted", steps), data_uri, folder / "hunted.json")
        outcome = Outcome(seed=seed, steps=steps)
        try:
            for kind, target in zip(order, targets, strict=True):
                hunted.reach(target)
                killed = time.monotonic()
                step = hunted.kill(kind, server, draw, _outage(kind, outcome, kills, draw))
                outcome.kills += 1
                outcome.by_kind = dict(Counter(order[: outcome.kills]))
                redone = hunted.recover(kind, step)
                outcome.recoveries += 1
                took = time.monotonic() - killed
                say(f"kill {outcome.kills}: {kind} at step {step}, {redone} redone, {took:.0f} s lost")
            hunted.finish()
        except NotRecovered as error:
            outcome.failure = str(error)
        finally:
            hunted.end()
        events = train_events.read(hunted.uri)
        outcome.max_steps_redone = max((event.redone or 0 for event in events), default=0)
        if not outcome.failure:
            outcome.differences = differences(_final(hunted, steps), _final(calm, steps))
            outcome.identical = not outcome.differences
        outcome.seconds = round(time.monotonic() - began, 1)
        return outcome
    finally:
        server.stop()
        os.environ.clear()
        os.environ.update(outer)


def _outage(kind: str, so_far: Outcome, kills: int, draw: random.Random) -> float:
    """Seconds without storage: a few, but a whole minute the first time in a long hunt."""
    first = kind == "storage" and "storage" not in so_far.by_kind
    return _MINUTE if first and kills >= _LONG else draw.uniform(1, 6)


class _Run:
    """A training and the process that follows it, which is started again when it was killed."""

    def __init__(self, config: Config, data_uri: str, file: Path) -> None:
        self.uri: str = spec_of(config, data_uri).run_uri
        self._command = [sys.executable, "-m", "tests.chaos.launcher", str(file), data_uri]
        self._log = file.with_suffix(".log").open("ab")
        file.write_text(json.dumps(config.plain()))
        self._resumed = 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=self._log)

    def reach(self, step: int) -> int:
        """Waits until this step has been done; returns the step that is reached by then."""
        self._wait(lambda: Furthest(self.uri).step >= step, f"to step {step}", pause=0.01)
        return Furthest(self.uri).step

    def kill(self, kind: str, server: S3Server, draw: random.Random, outage: float) -> int:
        """Kills a process of this kind, with SIGKILL; returns the step at which it died.

        The storage comes back after ``outage`` seconds.
        """
        self._resumed = len(self._resumptions())
        if kind == "storage":
            server.stop()
            step = Furthest(self.uri).step
            time.sleep(outage)
            server.start()
            return step
        if kind == "flow":
            self._process.kill()
            self._process.wait()
            step = Furthest(self.uri).step
            self._process = self._start()
            return step
        victims = processes.of_kind(kind, self._process.pid)
        if not victims:
            raise NotRecovered(f"there is no process of kind {kind}")
        os.kill(draw.choice(victims), signal.SIGKILL)
        return Furthest(self.uri).step

    def recover(self, kind: str, step: int) -> int:
        """Waits until the run is beyond this step again, with a checkpoint; returns how many steps it did twice."""
        if kind == "storage":
            self._wait(
                lambda: CheckpointStore(self.uri, keep=1).newest() > step, "to a checkpoint after the outage"
            )
            return 0
        self._wait(lambda: len(self._resumptions()) > self._resumed, "to going on")
        self.reach(step + 1)
        return max(event.redone or 0 for event in self._resumptions()[self._resumed :])

    def _resumptions(self) -> list[Event]:
        return [event for event in train_events.read(self.uri) if event.kind == "resumed"]

    def _wait(self, there: Callable[[], bool], where: str, pause: float = 0.25) -> None:
        until = time.monotonic() + _LIFE_SECONDS
        while not there():
            now = Furthest(self.uri).step
            if self._process.poll() is not None:
                raise NotRecovered(
                    f"the run ended at step {now} with status {self._process.returncode}; see {self._log.name}"
                )
            if time.monotonic() > until:
                raise NotRecovered(f"the run has not got from step {now} {where}; see {self._log.name}")
            time.sleep(pause)

    def finish(self) -> None:
        """Waits for the end."""
        status = self._process.wait(3 * _LIFE_SECONDS)
        if status != 0:
            raise NotRecovered(f"the run failed with status {status}; see {self._log.name}")

    def end(self) -> None:
        """Stops what is left when something went wrong."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)
        self._log.close()
        Furthest(self.uri).remove()


def _config(uri: str, steps: int) -> Config:
    train = {"max_steps": steps, "checkpoint_every": INTERVAL, "sample_every": 10**9, "max_failures": 10}
    return parse({**TINY, "storage": uri, "train": TINY["train"] | train})


def _final(run: _Run, steps: int) -> checkpoint.Snapshot:
    with tempfile.TemporaryDirectory() as folder:
        storage.download_folder(storage.join(run.uri, "checkpoints", f"step-{steps:08d}"), folder)
        return checkpoint.read(Path(folder))


def summary(outcome: Outcome) -> dict[str, Any]:
    """The JSON form."""
    return {**vars(outcome)}
