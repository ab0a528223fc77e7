"""Jobs on a real Ray cluster through its Job Submission API: attach, cancel (also by Prefect), next attempt."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from agit_core.errors import BadInput, RunFailed
from infra.stack_state import free_port
from pipeline import storage
from pipeline.config import Config, parse
from pipeline.launch import cluster, follow
from pipeline.train import events, prometheus
from tests.chaos import processes
from tests.pipeline.command import environment
from tests.pipeline.launch.test_local import start_follower
from tests.pipeline.prefect_api import ask
from tests.pipeline.s3 import DelayedConnection
from tests.pipeline.training import TINY, prepared, spec_of, wait_for
from tests.ray_environment import head_node

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[Any, str]]:
    """A cluster of one node with a dashboard, which runs the jobs."""
    with head_node(2) as found:
        yield found


@pytest.fixture(scope="module")
def address(head: tuple[Any, str]) -> str:
    return head[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tmp_path_factory.mktemp("data"))


def on_cluster(address: str, root: Path, **train: Any) -> Config:
    return parse(
        {
            **TINY,
            "storage": str(root),
            "train": TINY["train"] | {"workers": 1} | train,
            "cluster": {"address": address, "env": {"OMP_NUM_THREADS": "1"}},
        }
    )


@pytest.mark.long
def test_one_job_through_killed_and_cancelled_flows(
    address: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    config = on_cluster(address, tmp_path, max_steps=1500, checkpoint_every=20)
    spec = spec_of(config, data)
    client = JobSubmissionClient(address)

    def step() -> int:
        try:
            return int(storage.read_json(storage.join(spec.run_uri, "progress.json"))["step"])
        except FileNotFoundError:
            return 0

    def job(attempt: int) -> JobStatus:
        return client.get_job_status(f"{spec.run_id}-{attempt}")

    first = start_follower(config, data, tmp_path / "config.json")
    wait_for(lambda: step() > 0 or first.poll() is not None, "the first step")
    assert first.poll() is None, (tmp_path / "config.log").read_text()
    first.kill()
    first.wait()
    assert job(1) == JobStatus.RUNNING

    # the flow is run again: it follows the job that is there, and being cancelled stops that
    second = start_follower(config, data, tmp_path / "config.json")
    log = tmp_path / "config.log"
    wait_for(
        lambda: f"attached to the running job {spec.run_id}-1" in log.read_text(), "the second to attach"
    )
    assert [info.submission_id for info in client.list_jobs()] == [f"{spec.run_id}-1"]
    wait_for(lambda: step() > 40, "some steps")
    second.send_signal(signal.SIGTERM)
    assert second.wait(300) == 128 + signal.SIGTERM
    assert job(1) == JobStatus.STOPPED
    everything = " ".join(map(processes.command, processes.descendants(os.getpid())))
    assert "pipeline.train_job" not in everything
    wait_for(lambda: not processes.of_kind("worker", os.getpid()), "the workers to be gone")
    stopped_at = step()
    assert stopped_at < 1500

    # and again: the next attempt of the same run resumes from its checkpoint
    seen: list[dict[str, Any]] = []
    reached = threading.Event()

    def watch(state: dict[str, Any]) -> None:
        seen.append(state)
        if state["state"] == "running" and state["attempt"] == 2:
            reached.set()
            raise KeyboardInterrupt

    with caplog.at_level(logging.INFO, "pipeline"), pytest.raises(KeyboardInterrupt):
        follow.train(config, data, watch)
    assert reached.is_set()
    assert job(2) == JobStatus.STOPPED
    resumed = [event for event in events.read(spec.run_uri) if event.kind == "resumed"]
    assert resumed[-1].step >= 20


@pytest.mark.long
def test_prometheus_sees_a_training(head: tuple[Any, str], data: str, tmp_path: Path) -> None:
    """Under the names that the alerts and the dashboard ask for."""
    exporter = f"http://127.0.0.1:{head[0].head_node.metrics_export_port}/metrics"
    config = on_cluster(head[1], tmp_path, max_steps=100_000, checkpoint_every=20)
    name = spec_of(config, data).run_id
    wanted = {f"ray_agit_{figure}" for figure in (*prometheus.GAUGES, *prometheus.LABELLED)}
    seen: dict[str, str] = {}

    def watch(state: dict[str, Any]) -> None:
        for line in httpx.get(exporter, timeout=60).text.splitlines():
            if f'run_id="{name}"' in line or f'run_name="{name}"' in line:
                seen[line.partition("{")[0]] = line.rpartition(" ")[2]
        if wanted <= seen.keys() and float(seen["ray_agit_last_checkpoint_step"]) > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow.train(config, data, watch)
    age = time.time() - float(seen["ray_agit_last_checkpoint_time_seconds"])
    assert 0 < age < 600
    assert float(seen["ray_agit_total_steps"]) == 6000, "a thousand epochs of twelve images in batches of two"


@pytest.mark.long
def test_finishes_and_streams_the_output(
    address: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = on_cluster(address, tmp_path, max_steps=40)
    with caplog.at_level(logging.INFO, "pipeline"):
        result = follow.train(config, data)
    assert (result.result.steps, result.reused) == (40, False)
    lines = [record.getMessage() for record in caplog.records if record.name == "pipeline.train.output"]
    assert any("stage masked" in line for line in lines)
    # the training's own lines: what Ray says about other clusters of this machine may come again and again
    steps = [line for line in lines if re.search(r"step \d+ of 40$", line)]
    assert len(steps) == len(set(steps)) == 8
    assert follow.train(config, data).reused


@pytest.mark.long
def test_a_head_that_is_away_for_a_while(address: str, data: str, tmp_path: Path) -> None:
    port = int(address.rpartition(":")[2])
    line = DelayedConnection(port, 0)
    config = on_cluster(line.endpoint, tmp_path, max_steps=300)
    cut = threading.Event()
    again: list[DelayedConnection] = []

    def watch(state: dict[str, Any]) -> None:
        if state["state"] == "running" and not cut.is_set():
            cut.set()
            line.close()
            threading.Timer(5, lambda: again.append(DelayedConnection(port, 0, line.port))).start()

    try:
        assert follow.train(config, data, watch).result.steps == 300
        assert cut.is_set()
        assert again
    finally:
        for connection in again:
            connection.close()
    asked = config.model_copy(update={"train": config.train.model_copy(update={"storage_patience_s": 1.0})})
    with pytest.raises(BadInput, match="does not answer"):
        follow.train(asked.model_copy(update={"name": "other"}), data)


@pytest.mark.long
def test_a_head_without_an_agent_takes_jobs_as_soon_as_it_has_one(
    data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._raylet import GcsClient
    from ray.dashboard.consts import DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX as PREFIX

    with head_node(1) as (nodes, url):
        gcs = GcsClient(nodes.gcs_address)
        key = f"{PREFIX}{nodes.head_node.node_id}".encode()
        agent = wait_for(lambda: gcs.internal_kv_get(key, b"dashboard"), "the agent")
        # as while it starts, and as for ever after where somebody else has its port
        gcs.internal_kv_del(key, False, b"dashboard")
        hasty = on_cluster(url, tmp_path, max_steps=4, storage_patience_s=0.1)
        with pytest.raises(RunFailed, match="takes no jobs: the agent on its head node did not start"):
            follow.train(hasty, data)
        with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING, "pipeline"):
            trained = pool.submit(follow.train, on_cluster(url, tmp_path, max_steps=4), data)
            wait_for(lambda: "takes no jobs yet" in caplog.text or trained.done(), "the refusal")
            assert not trained.done()
            gcs.internal_kv_put(key, agent, True, b"dashboard")
            assert trained.result(600).result.steps == 4


@pytest.mark.long
def test_a_refused_job_is_told_as_such(address: str, data: str, tmp_path: Path) -> None:
    config = on_cluster(address, tmp_path)
    elsewhere = config.cluster.model_copy(update={"working_dir": str(tmp_path / "nowhere")})
    with pytest.raises(BadInput, match=r"refuses the job .*cluster\.working_dir"):
        follow.train(config.model_copy(update={"cluster": elsewhere}), data)


def test_a_head_that_never_answers_is_told_as_such(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(BadInput, match=rf"the Ray cluster at cluster\.address {address} does not answer"):
            follow.train(on_cluster(address, tmp_path), data)


@pytest.mark.long
def test_a_wrong_setting_is_told_as_such(address: str, data: str, tmp_path: Path) -> None:
    config = on_cluster(address, tmp_path, workers=3)
    with pytest.raises(BadInput, match="batch of 2 cannot be split over 3 workers"):
        follow.train(config, data)


class Served:
    """A Prefect server, and the flow served from a process that runs what the server schedules."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.api = f"http://127.0.0.1:{port}/api"
        self._folder = folder
        self._env = environment(
            PREFECT_HOME=str(folder / "prefect"),
            PREFECT_API_URL=self.api,
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
            PYTHONPATH=str(Path(__file__).parents[3]),
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        self._run("-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
        wait_for(lambda: self._answers("/health"), "the Prefect server")
        self._run("-c", "from pipeline.flows.train import agit; agit.serve('cancelled')")
        wait_for(lambda: self._answers("/deployments/name/agit/cancelled"), "the served flow")

    def _run(self, *arguments: str) -> None:
        log = (self._folder / f"prefect-{len(self._processes)}.log").open("wb")
        command = [sys.executable, *arguments]
        self._processes.append(
            subprocess.Popen(command, cwd=self._folder, env=self._env, stdout=log, stderr=subprocess.STDOUT)
        )

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(self.api + path).is_success
        except httpx.TransportError:
            return False

    def post(self, path: str, **tree: Any) -> Any:
        return ask("POST", self.api + path, json=tree)

    def get(self, path: str) -> Any:
        return ask("GET", self.api + path)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.stop()


@pytest.mark.long
def test_a_cancelled_prefect_run_takes_its_job_with_it(
    address: str, data: str, tmp_path: Path, served: Served
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    config = on_cluster(address, tmp_path, max_steps=100_000, checkpoint_every=20)
    (tmp_path / "tiny.yaml").write_text(json.dumps(config.plain()))
    deployment = served.get("/deployments/name/agit/cancelled")["id"]
    run = served.post(
        f"/deployments/{deployment}/create_flow_run", parameters={"config": str(tmp_path / "tiny.yaml")}
    )["id"]
    client = JobSubmissionClient(address)
    name = spec_of(config, data).run_id
    uri = storage.join(str(tmp_path), "runs", name, "progress.json")

    def logged(text: str) -> bool:
        found = served.post("/logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return any(text in line["message"] for line in found)

    def trained() -> bool:
        try:
            return bool(storage.read_json(uri)["step"])
        except FileNotFoundError:
            return False

    def state() -> str:
        return str(served.get(f"/flow_runs/{run}")["state"]["type"])

    try:
        wait_for(
            lambda: logged("train: step") or state() in {"FAILED", "CRASHED"}, "progress in the run's log"
        )
        assert state() == "RUNNING"
        assert client.get_job_status(f"{name}-1") == JobStatus.RUNNING
    finally:
        served.post(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    wait_for(lambda: client.get_job_status(f"{name}-1").is_terminal(), "the job to end")
    assert client.get_job_status(f"{name}-1") == JobStatus.STOPPED
    wait_for(lambda: state() == "CANCELLED", "the run to be cancelled")
    wait_for(lambda: not processes.of_kind("worker", os.getpid()), "the workers to be gone")
    assert storage.read_json(uri)["step"] < 100_000


@pytest.mark.long
def test_of_two_submissions_at_the_same_instant_one_is_joined_by_the_other(
    address: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_cluster(address, tmp_path, max_steps=4)
    spec, both = spec_of(config, data), threading.Barrier(2, timeout=60)
    session = cluster._Client.session

    def wait_for_the_other(client: cluster._Client) -> str:
        name = session(client)
        both.wait()
        return name

    # neither has found a job when both submit theirs
    monkeypatch.setattr(cluster._Client, "session", wait_for_the_other)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: follow.train(config, data), range(2)))
    assert [run.result.steps for run in results] == [4, 4]
    submitted = [job.submission_id for job in cluster._Client(address).list_jobs()]
    assert [name for name in submitted if name.startswith(spec.run_id)] == [f"{spec.run_id}-1"]
