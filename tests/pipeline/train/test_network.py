"""Machines that share nothing but a network: training across it, a cable that is pulled, and plugged in again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack_state import free_port
from pipeline import storage
from pipeline.launch import specs
from pipeline.records import Owner
from pipeline.train import events
from pipeline.train.events import Furthest
from tests.pipeline.network import INTERFACE, Machine, Network, network
from tests.pipeline.s3 import S3Server
from tests.pipeline.training import prepared, spec_of, starts, tiny, wait_for
from tests.ray_environment import without_token

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
RAY = str(Path(sys.executable).parent / "ray")


class Cluster:
    """A head on this side of the bridge, which computes nothing, and a node per machine."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.address = f"{net.address}:{free_port()}"
        self.env = os.environ | {
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "OMP_NUM_THREADS": "1",
            # what looks for its cluster by itself would also see those of other tests
            "RAY_ADDRESS": self.address,
            # a node that does not answer for half a minute is lost
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "10000",
            "RAY_health_check_failure_threshold": "3",
        }
        self._folder = tempfile.TemporaryDirectory(prefix="agit-net-", dir="/tmp", ignore_cleanup_errors=True)
        self._head = subprocess.Popen(
            [
                *self._start(net.address, 0),
                "--head",
                f"--port={self.address.rpartition(':')[2]}",
                f"--temp-dir={self._folder.name}",
                "--include-dashboard=false",
            ],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._sockets, "Ray's head", 120)

    def join(self, machine: Machine) -> None:
        known = self._sockets()
        machine.start([*self._start(machine.address, 1), f"--address={self.address}"], self.env)
        # two that start at the same moment choose the same names
        wait_for(lambda: self._sockets() > known, f"Ray on {machine.name}", 120)

    def _sockets(self) -> set[Path]:
        return set(Path(self._folder.name).glob("session_2*/sockets/raylet*"))

    def close(self) -> None:
        os.killpg(self._head.pid, signal.SIGTERM)
        self._head.wait()
        self._folder.cleanup()

    def _start(self, address: str, cpus: int) -> list[str]:
        return [
            RAY,
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={address}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={80 * 2**20}",
            "--dashboard-agent-listen-port=0",
        ]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Cluster]:
    without_token(monkeypatch)
    with network(2) as net:
        port = free_port()
        server = S3Server(tmp_path / "s3", port, arguments=("--addr", f"{net.address}:{port}"))
        server.root.mkdir()
        server.start()
        for key, value in server.env.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{net.address}:{port}")
        found = Cluster(net)
        try:
            yield found
        finally:
            found.close()
            server.stop()


def test_a_pulled_cable_costs_one_worker_and_nothing_else(cluster: Cluster, tmp_path: Path) -> None:
    store = "s3://agit/net"
    data = prepared(store)
    config = tiny(
        store, max_steps=100_000, minimum_workers=1, grow_after_s=1, keep_checkpoints=2, checkpoint_every=10
    )
    spec = spec_of(config, data)
    run = spec.run_uri

    def step() -> int:
        return Furthest(run).step

    for machine in cluster.net.machines:
        cluster.join(machine)
    log = tmp_path / "job.log"
    job = subprocess.Popen(
        [sys.executable, "-m", "pipeline.train_job", specs.write_spec(spec, 1, Owner())],
        env=cluster.env,
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(lambda: job.poll() is not None or step() >= 15, "step 15")
        assert starts(run) == [(2, 2)], log.read_text()
        cut = cluster.net.machines[1]
        cut.pull_cable()
        wait_for(lambda: job.poll() is not None or len(starts(run)) == 2, "going on with the other machine")
        assert starts(run)[1] == (1, 1), log.read_text()
        before = step()
        wait_for(lambda: step() > before + 10, "ten more steps")
        cut.plug_in()
        # what was started before the cut has been given up on, by the cluster and by itself
        wait_for(lambda: not cut.pids(), "the cut machine to end what it ran")
        cluster.join(cut)
        wait_for(lambda: job.poll() is not None or len(starts(run)) == 3, "going on with both")
        assert starts(run)[2] == (2, 2), log.read_text()
        before = step()
        wait_for(lambda: step() > before, "another step")
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(300)
        Furthest(run).remove()
    resumed = [e for e in events.read(run) if e.kind == "resumed"]
    assert all(0 <= event.redone <= config.train.checkpoint_every for event in resumed)
    names = [storage.name(uri) for uri in storage.list_(storage.join(run, "checkpoints"))]
    assert not [name for name in names if name.endswith(".part")]
