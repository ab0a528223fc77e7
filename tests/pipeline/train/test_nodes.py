"""Several nodes: training across them, losing one, getting it back, being asked to leave it; the same course."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agit_core.loader import Loader
from agit_core.sampling import SamplePlan
from agit_core.trainer import Trainer
from agit_core.world import World
from pipeline import storage
from pipeline.config import Config
from pipeline.data.read.sample_order import total_steps
from pipeline.launch import specs
from pipeline.records import Owner, Spec
from pipeline.train import events as train_events
from pipeline.train.events import Furthest
from pipeline.train.reading import open_split
from tests.pipeline.training import prepared, spec_of, starts, tiny, wait_for
from tests.ray_environment import without_token

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
COMPARED = 60
"""Steps whose figures are compared with those of a plain loop."""


class Nodes:
    """A Ray cluster on this machine: a head that computes nothing and nodes with a place for one worker each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args=self._arguments(0))

    def add(self) -> Any:
        return self.cluster.add_node(**self._arguments(1))

    def lose(self, node: Any) -> None:
        """As when the power fails: nothing on the node is notified."""
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any) -> None:
        """As a cloud that takes a pre-emptible machine back announces it."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        arguments = ["--node-id", node.node_id, *reason, "--deadline-remaining-seconds", "600"]
        ray = str(Path(sys.executable).parent / "ray")
        subprocess.run([ray, "drain-node", "--address", self.cluster.address, *arguments], check=True)

    def _arguments(self, cpus: int) -> dict[str, Any]:
        return {
            "num_cpus": cpus,
            "object_store_memory": 80 * 2**20,
            "dashboard_agent_listen_port": 0,
            "include_dashboard": False,
        }


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    without_token(monkeypatch)
    # a node that is slow on a busy machine is not lost; one that is lost closes its connections
    monkeypatch.setenv("RAY_health_check_timeout_ms", "60000")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


def plain_loop(config: Config, spec: Spec) -> list[dict[str, Any]]:
    """What one process without Ray logs in the first steps."""
    sources: dict[Any, Any] = {d: open_split(spec, config, f"train{d.upper()}") for d in "ab"}
    plan = SamplePlan(config.seed, len(sources["a"]), len(sources["b"]), config.train.batch_size)
    size, total = config.data.image_size, total_steps(config, plan)
    trainer = Trainer(config.method, plan, size, total, seed=config.seed, world=World())
    rows = []
    for result in trainer.run(Loader(sources, plan, size, config.method.flip), COMPARED):
        if result.step % config.train.log_every == 0:
            losses = trainer.window().losses
            rows.append({"step": result.step, "learning_rate": trainer.learning_rate, "losses": losses})
    return rows


def test_nodes_come_and_go_and_the_course_stays_the_same(nodes: Nodes, tmp_path: Path) -> None:
    data = prepared(tmp_path / "data")
    config = tiny(tmp_path, max_steps=100_000, minimum_workers=1, grow_after_s=1, keep_checkpoints=2)
    spec = spec_of(config, data)
    spec_uri = specs.write_spec(spec, 1, Owner())
    told = spec.run_uri

    def step() -> int:
        return Furthest(told).step

    def kinds() -> list[str]:
        return [event.kind for event in train_events.read(told)]

    lost, kept = nodes.add(), nodes.add()
    job = subprocess.Popen(
        [sys.executable, "-m", "pipeline.train_job", spec_uri],
        env=os.environ | {"RAY_ADDRESS": nodes.cluster.address, "OMP_NUM_THREADS": "1"},
        stdout=(tmp_path / "job.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: job.poll() is not None or step() >= 12, "step 12")
        assert starts(told) == [(2, 2)], (tmp_path / "job.log").read_text()
        nodes.lose(lost)
        wait_for(lambda: starts(told)[-1] == (1, 1) and step() > COMPARED, "going on with one worker")
        nodes.add()
        # where the new node takes long, training continues with one worker once more before it counts again
        wait_for(lambda: starts(told)[-1] == (2, 2), "going on with both again")
        nodes.drain(kept)
        wait_for(lambda: "preempted" in kinds(), "leaving the node that will be taken away")
        nodes.lose(kept)
        wait_for(lambda: starts(told)[-1] == (1, 1), "going on with the other one")
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(300)
        Furthest(told).remove()

    events = [e for e in train_events.read(told) if e.kind not in {"started", "switched"}]
    failures = [e.kind for e in events if e.kind != "resumed"]
    # ranks that leave at different polls of the controller are reported one after the other
    assert [kind for kind, _ in itertools.groupby(failures)] == ["worker_failed", "preempted"]
    resumed = [e for e in events if e.kind == "resumed"]
    assert all(0 <= e.redone <= config.train.checkpoint_every for e in resumed)
    assert resumed[-1].redone == 0, "an announced loss costs nothing"

    files = sorted(storage.list_(storage.join(told, "metrics")))
    rows = [json.loads(line) for uri in files for line in storage.read_text(uri).splitlines()]
    steps = [row["step"] for row in rows]
    assert len(steps) == len(set(steps))
    for row, plain in zip(rows, plain_loop(config, spec), strict=False):
        assert row["step"] == plain["step"]
        # the global batch is the same at every world size, so the learning rate is not touched
        assert row["learning_rate"] == plain["learning_rate"]
        # rounding differs with the world size and grows from step to step; another order would differ at once
        if row["step"] <= COMPARED // 2:
            assert row["losses"] == pytest.approx(plain["losses"], rel=2e-2, abs=2e-3)
