"""A node that will be taken away: what the preStop hook of Kubernetes' spot nodes does to a training on real Ray."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.stack_state import free_port
from pipeline.config import parse
from pipeline.launch import follow
from pipeline.records import Event
from pipeline.train import events as train_events
from tests.pipeline.training import TINY, prepared, spec_of, wait_for
from tests.ray_environment import head_node

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
HOOK = Path("infra/docker/leave-node.sh").absolute()
ENDLESS = 10**6


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Any, str]]:
    """A head that computes nothing, as in Kubernetes."""
    with head_node(0) as found:
        yield found


def add_node(cluster: Any) -> Any:
    # any port for its agent: by default every Ray of this machine takes the same one
    return cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, dashboard_agent_listen_port=0)


def leave(node: Any, address: str, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Runs the hook as in the pod of one node. Here all nodes are one machine, so `ray` needs the node's id."""
    real = Path(sys.executable).parent / "ray"
    told = folder / "ray"
    told.write_text(f'#!/bin/sh\nexec {real} "$@" --node-id {node.node_id}\n')
    told.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "RAY_ADDRESS": address}
    return subprocess.run(
        [HOOK, str(seconds)], env=environment, capture_output=True, text=True, timeout=seconds + 240
    )


def test_training_saves_leaves_and_goes_on_elsewhere(cluster: tuple[Any, str], tmp_path: Path) -> None:
    nodes, address = cluster
    first = add_node(nodes)
    # without the hook it would save nothing
    train = TINY["train"] | {"workers": 1, "max_steps": ENDLESS, "checkpoint_every": ENDLESS}
    tree = {**TINY, "storage": str(tmp_path), "train": train}
    config = parse(tree | {"cluster": {"address": address, "env": {"OMP_NUM_THREADS": "1"}}})
    data = prepared(tmp_path / "data")
    run_uri = spec_of(config, data).run_uri
    enough = threading.Event()
    seen: list[dict[str, Any]] = []

    def watch(state: dict[str, Any]) -> None:
        seen.append(state)
        if enough.is_set():
            raise KeyboardInterrupt

    def train_until_enough() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            follow.train(config, data, watch)

    def events(kind: str) -> list[Event]:
        return [event for event in train_events.read(run_uri) if event.kind == kind]

    training = threading.Thread(target=train_until_enough)
    training.start()
    try:
        wait_for(lambda: seen and seen[-1]["step"] >= 20, "some steps")
        before = seen[-1]["step"]
        hook = leave(first, nodes.address, tmp_path, 90)
        assert hook.returncode == 0, hook.stderr
        wait_for(lambda: events("preempted"), "the training to have left")
        nodes.remove_node(first)
        add_node(nodes)
        resumed = wait_for(lambda: events("resumed"), "the training to go on")
    finally:
        enough.set()
        training.join(600)
    assert [event.step >= before for event in resumed] == [True], "from what it saved on leaving"
    assert events("worker_failed") == []


def test_hook_on_a_node_where_nothing_trains_is_quick(cluster: tuple[Any, str], tmp_path: Path) -> None:
    nodes, _ = cluster
    hook = leave(add_node(nodes), nodes.address, tmp_path, 600)
    assert hook.returncode == 0, hook.stderr


def test_hook_does_not_wait_for_a_head_that_is_gone(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_port()}", "RAY_AUTH_MODE": "disabled"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hook = subprocess.run([HOOK, "600"], env=environment, capture_output=True, text=True, timeout=50)
    assert hook.returncode == 0, hook.stderr
    assert "does not answer" in hook.stderr
