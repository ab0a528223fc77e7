"""Every heavy stage as a job of a real Ray cluster: the same results as here, through killed flows and lost nodes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agit_core.errors import BadInput
from agit_core.scores import distances
from pipeline import tasks
from pipeline.config import Config, parse
from pipeline.evaluate import counting
from pipeline.launch import cluster, stages
from pipeline.records import PROGRESS
from tests.pipeline.command import environment
from tests.pipeline.training import TINY, untrained, wait_for
from tests.ray_environment import head_node

pytestmark = pytest.mark.timeout(1800)

_FLOW = """\
import json, sys
from pipeline import tasks
from pipeline.config import parse
config = parse(json.load(open(sys.argv[1])))
data = tasks.prepare(config)
tasks.check_scorable(config, data)
run = tasks.train(config, data)
evaluation = tasks.evaluate(config, data, run)
registration = tasks.register(config, data, run, evaluation)
report = tasks.report(config, data, run.uri)
tasks.summarize(config, run, evaluation, registration, report)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
told = {"data": data.uri, "run": run.uri, "metrics": evaluation.metrics, "loaded": list(sys.modules)}
json.dump(told | {"kib": int(peak)}, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[tuple[Any, str]]:
    with head_node(2) as found:
        yield found


def configured(root: Path, address: str | None, name: str = "tiny", **sections: dict[str, Any]) -> Config:
    tree = {**TINY, "storage": str(root), "evaluate": {"subset_size": 4, "bootstrap": 20, "device": "cpu"}}
    tree["train"] = TINY["train"] | {"workers": 1, "max_steps": 10}
    tree["cluster"] = {"address": address, "env": {"OMP_NUM_THREADS": "1"}}
    changed = {section: tree.get(section, {}) | settings for section, settings in sections.items()}
    return parse({**tree, **changed, "name": name})


def jobs(address: str) -> dict[str, str]:
    """Status of the cluster's jobs by the stage and number of the attempt."""
    client = cluster._Client(address)
    return {str(job.submission_id): str(job.status.value) for job in client.list_jobs()}


def contents(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}


@pytest.mark.long
def test_every_stage_is_a_job_of_the_cluster_and_the_flow_imports_no_torch(
    head: tuple[Any, str], tmp_path: Path
) -> None:
    address = head[1]
    # the environment's interpreter is found although no PATH leads there
    config = configured(
        tmp_path / "there",
        address,
        cluster={"env": {"PATH": "/usr/bin:/bin"}},
        evaluate={"workers": 2, "batch_size": 2},
    )
    (tmp_path / "config.json").write_text(json.dumps(config.plain()))
    flow = [sys.executable, "-c", _FLOW, str(tmp_path / "config.json"), str(tmp_path / "told.json")]
    done = subprocess.run(flow, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert not {"torch", "torchvision"} & set(told["loaded"])
    assert told["kib"] < 400_000
    ran = {name.split("-")[0]: status for name, status in jobs(address).items()}
    assert ran == {"prepare": "SUCCEEDED", "tiny": "SUCCEEDED", "evaluate": "SUCCEEDED"}
    # the same as in one process
    here = configured(tmp_path / "here", None, evaluate={"batch_size": 2})
    data = tasks.prepare(here)
    assert contents(told["data"]) == contents(data.uri) != {}
    scored = tasks.evaluate_model(here, data, told["run"]).metrics
    assert told["metrics"] == pytest.approx(scored, rel=1e-6, nan_ok=True)
    # and once more: prepared data is found, scores are not asked for again
    assert tasks.prepare(config).reused
    assert len(jobs(address)) == 4


@pytest.mark.long
def test_a_stage_is_found_again_after_its_flow_was_killed_and_cancelled_with_the_next(
    head: tuple[Any, str], tmp_path: Path
) -> None:
    address = head[1]
    config = configured(
        tmp_path, address, name="killed", data={"builtin": {"train": 12, "test": 300, "size": 36}}
    )
    data = tasks.prepare(config)
    run = untrained(config, data)
    spec = json.dumps({"config": config.plain(), "data": data.uri, "run": run.uri})
    (tmp_path / "call.json").write_text(spec)
    script = (
        "import json, logging, sys; logging.basicConfig(level=logging.INFO)\n"
        "from pipeline import tasks; from pipeline.config import parse\n"
        "from pipeline.records import RESULT, Data, Run\n"
        "call = json.load(open(sys.argv[1])); from pipeline.data.format import manifest\n"
        "data = Data(call['data'], manifest.read(call['data']), True)\n"
        "run = Run('x', call['run'], RESULT.read(call['run']))\n"
        "tasks.evaluate(parse(call['config']), data, run)\n"
    )

    log = tmp_path / "flow.log"

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", script, str(tmp_path / "call.json")]
        return subprocess.Popen(command, env=environment(), stderr=log.open("ab"))

    def mine() -> dict[str, str]:
        return {name: status for name, status in jobs(address).items() if name.startswith("evaluate-killed")}

    def state() -> str | None:
        folders = list((tmp_path / "jobs").glob("evaluate-killed-*"))
        progress = PROGRESS.peek(str(folders[0])) if folders else None
        return progress and progress.state

    first = start()
    wait_for(lambda: state() == "running" or first.poll() is not None, "the job to be at work")
    assert first.poll() is None, log.read_text()
    first.kill()
    first.wait()
    second = start()
    wait_for(
        lambda: "attached to the running job" in log.read_text() or second.poll() is not None, "the second"
    )
    assert list(mine().values()) == ["RUNNING"]
    second.send_signal(signal.SIGTERM)
    assert second.wait(300) == 128 + signal.SIGTERM
    assert list(mine().values()) == ["STOPPED"]
    assert state() == "interrupted"


@pytest.mark.long
def test_nodes_without_the_package_are_one_sentence_at_once(
    head: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = head[1]
    assert cluster.probe(configured(tmp_path, address).cluster).startswith("agit 0.")
    empty = tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(empty)], check=True)
    monkeypatch.setattr(cluster, "PYTHON", str(empty / "bin/python"))
    config = configured(tmp_path, address, name="nowhere")
    before = len(jobs(address))
    with pytest.raises(BadInput, match="the Python of the cluster's nodes has no package '"):
        tasks.prepare(config)
    assert len(jobs(address)) == before + 1, "another try would end like this again"
    with pytest.raises(BadInput, match="has no package"):
        cluster.probe(config.cluster)


@pytest.mark.parametrize(
    ("lines", "status", "sentence"),
    [
        (["/venv/bin/python: No module named pipeline"], 1, "has no package 'pipeline'"),
        (["Traceback", "ModuleNotFoundError: No module named 'pyarrow.lib'"], 1, "no package 'pyarrow.lib'"),
        (["/bin/sh: 1: python: not found"], 127, "no `python` on its PATH"),
        (["usage: x", "x: error: one argument, please", ""], 2, "a wrong call: x: error: one argument"),
    ],
)
def test_what_would_happen_again_is_final(lines: list[str], status: int, sentence: str) -> None:
    verdict = cluster.hopeless(lines, status)
    assert verdict is not None
    assert verdict["kind"] == "BadInput"
    assert sentence in verdict["message"]


def test_what_may_pass_is_not() -> None:
    assert cluster.hopeless(["ValueError: x", "Killed"], 1) is None
    assert cluster.hopeless([], None) is None


def test_the_least_number_of_images_is_the_scores_own() -> None:
    assert counting.MINIMUM == distances.MINIMUM


@pytest.mark.long
def test_a_stage_goes_on_where_its_node_was_lost(tmp_path: Path) -> None:
    """The head computes nothing, as in Kubernetes."""
    with head_node(0) as (nodes, address):
        first = nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20, dashboard_agent_listen_port=0)
        config = configured(
            tmp_path, address, name="lost", data={"builtin": {"train": 12, "test": 60, "size": 36}}
        )
        data = tasks.prepare(config)
        run = untrained(config, data)
        lost = threading.Event()

        def lose(event: dict[str, Any]) -> None:
            if event.get("done") and not lost.is_set():
                lost.set()
                nodes.remove_node(first, allow_graceful=False)
                nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20, dashboard_agent_listen_port=0)

        arguments = {"uri": run.uri, "data_uri": data.uri, "champion": None}
        told = stages.submit(config, "evaluate", lose, **arguments)
        assert lost.is_set()
        assert told["counts"]["test_a"] == 60
        assert [status for name, status in jobs(address).items() if "evaluate" in name] == ["SUCCEEDED"]
