"""The development stack as users call it: up, a training, a scheduled run, down with nothing left."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.stack_state import MARK, USER
from tests import doors
from tests.pipeline.command import environment, tiny_config
from tests.pipeline.prefect_api import ask
from tests.pipeline.training import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
DEPLOYMENTS = {"agit/train-h2z", "agit/retrain-h2z", "agit/train-demo", "agit-tune/tune-h2z"}


@dataclass
class Running:
    """A running stack in a separate folder."""

    root: Path
    told: dict[str, Any]
    env: dict[str, str]

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.root / ".agit/stack/stack.json").read_text())
        return state

    @property
    def keys(self) -> dict[str, str]:
        keys: dict[str, str] = json.loads((self.root / ".agit/stack/keys.json").read_text())
        return keys

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.root, env=self.env, capture_output=True, text=True
        )

    def api(self, method: str, path: str, **options: Any) -> Any:
        user, _, key = self.keys["prefect"].partition(":")
        return ask(method, f"{self.state['prefect_api_url']}{path}", auth=(user, key), **options)

    def deployments(self) -> dict[str, dict[str, Any]]:
        """By full name."""
        flows = {flow["id"]: flow["name"] for flow in self.api("POST", "/flows/filter", json={})}
        found = self.api("POST", "/deployments/filter", json={})
        return {f"{flows[one['flow_id']]}/{one['name']}": one for one in found}

    def wait_for_end(self, run_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api("GET", f"/flow_runs/{run_id}")
            return run if run["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

        found: dict[str, Any] = wait_for(ended, f"flow run {run_id}", 900)
        return found


def carriers(token: str) -> list[int]:
    """Processes that carry the stack's mark, found without the code under test."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={token}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The entry points of pyproject.toml as if this checkout were the one that is installed."""
    folder = tmp_path_factory.mktemp("installed")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    about = folder / "agit-0.1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: agit\nVersion: 0.1.0\n")
    lines = [
        line
        for name, group in groups.items()
        for line in (f"[{name}]", *(f"{k} = {v}" for k, v in group.items()))
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, entry_points: Path) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("stack")
    tiny_config(root)
    (root / "prefect.toml").write_text((ROOT / "prefect.toml").read_text())
    path = os.pathsep.join([str(entry_points), str(ROOT), os.environ.get("PYTHONPATH", "")])
    running = Running(root, {}, environment(PYTHONPATH=path, HOME=str(root)))
    up = running.call("infra.stack", "up", "--free-ports", "--json")
    try:
        assert up.returncode == 0, up.stderr
        running.told = json.loads(up.stdout)
        yield running
    finally:
        running.call("infra.stack", "down")


def test_everything_answers_on_loopback_alone_and_tells_no_key(stack: Running) -> None:
    status = stack.call("infra.stack", "status", "--json")
    assert status.returncode == 0, status.stderr
    told = json.loads(status.stdout)
    assert [item["name"] for item in told["programs"]] == ["s3", "ray", "prefect", "mlflow", "worker"]
    assert all(item["answers"] and item["state"] == "RUNNING" for item in told["programs"])
    pids = carriers(stack.state["token"])
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    assert not [command for command in commands if b"mlflow.server.jobs" in command], "nobody gives them jobs"
    assert [port for port in doors.listening(pids) if port.address not in doors.LOOPBACK] == []
    folder = stack.root / ".agit/stack"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keyless = httpx.post(f"{stack.state['prefect_api_url']}/flow_runs/filter", json={}, timeout=60)
    assert keyless.status_code == httpx.codes.UNAUTHORIZED
    mlflow = next(item["url"] for item in told["programs"] if item["name"] == "mlflow")
    unknown = httpx.get(f"{mlflow}/api/2.0/mlflow/registered-models/search", timeout=60)
    assert unknown.status_code == httpx.codes.UNAUTHORIZED
    secrets = [stack.keys[name].encode() for name in ("s3_secret", "ray_token", "prefect", "mlflow")]
    private = ("keys.json", "env", "mlflow-users.ini")
    for name in private:
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in private]
    told_in = [str(p) for p in files if any(secret in p.read_bytes() for secret in secrets)]
    told_in += [str(p) for p in pids if any(s in Path(f"/proc/{p}/cmdline").read_bytes() for s in secrets)]
    assert told_in == []
    again = stack.call("infra.stack", "up")
    assert again.returncode == 0, again.stderr
    assert set(pids) <= set(carriers(stack.state["token"])), "what runs already is left alone"


def test_deployments_with_their_forms_and_work_pools(stack: Running) -> None:
    found = stack.deployments()
    assert set(found) == DEPLOYMENTS
    for name, one in found.items():
        fields = one["parameter_openapi_schema"]["properties"]
        assert all(field.get("description") for field in fields.values()), name
        assert one["enforce_parameter_schema"]
        assert one["work_pool_name"] == "agit"
        assert one["parameters"]["storage"] == "s3://agit/storage"
        assert one["parameters"]["cluster"].startswith("http://127.0.0.1:")
    retrain = found["agit/retrain-h2z"]
    assert (
        retrain["parameters"] | {"config": "h2z", "only_when_changed": True, "start_from": "champion"}
        == (retrain["parameters"])
    )
    assert [s["schedule"]["cron"] for s in retrain["schedules"] if s["active"]] == ["0 3 * * *"]
    # what the form refuses
    demo = found["agit/train-demo"]["id"]
    for wrong in ({"max_steps": 0}, {"overrides": ["train.max_steps"]}, {"start_from": "best"}):
        with pytest.raises(httpx.HTTPStatusError, match=r"409|422"):
            stack.api("POST", f"/deployments/{demo}/create_flow_run", json={"parameters": wrong})
    for kind in ("docker", "kubernetes"):
        template = json.loads((ROOT / f"infra/pools/{kind}.json").read_text())
        pool = {"name": f"test-{kind}", "type": kind, "base_job_template": template}
        assert stack.api("POST", "/work_pools/", json=pool)["type"] == kind
    automations = stack.api("POST", "/automations/filter", json={})
    assert [a["name"] for a in automations if a["enabled"]] == ["agit: flow runs whose process is gone"]


def test_the_bare_name_of_a_deployment_trains(stack: Running) -> None:
    parameters = {
        "config": "tiny.yaml",
        "overrides": ["register.gate.better_than_nothing=false", "register.gate.better_than_blob=false"],
    }
    run = ("prefect", "deployment", "run", "train-demo", "--watch", "--params", json.dumps(parameters))
    done = stack.call(*run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agit/train-demo" in done.stdout
    (ended,) = stack.api("POST", "/flow_runs/filter", json={"flow_runs": {"tags": {"all_": ["demo"]}}})
    assert ended["state_type"] == "COMPLETED"
    assert ended["name"].startswith("train tiny.yaml ")
    artifacts = stack.api("POST", "/artifacts/latest/filter", json={})
    told = {
        item["key"].split("-tiny")[0]: item["data"] for item in artifacts if item["key"].startswith("agit-")
    }
    assert "KID" in told["agit-scores"]
    assert "(s3://agit/storage/runs/tiny-" in told["agit-report"]
    assert told["agit-samples"].startswith("data:image/jpeg;base64,")
    assert (told["agit-train-progress"], told["agit-evaluate-progress"]) == (100, 100)
    # trained on the stack's Ray, kept in its S3, registered with its MLflow, one at a time
    (limit,) = [
        one
        for one in stack.api("POST", "/v2/concurrency_limits/filter", json={})
        if one["name"].startswith("agit-cpu-127-0-0-1-")
    ]
    assert (limit["limit"], limit["active_slots"]) == (1, 0)
    assert list((stack.root / ".agit/stack/s3/agit/storage/runs").glob("tiny-*/result.json"))
    mlflow = next(item["url"] for item in stack.told["programs"] if item["name"] == "mlflow")
    with httpx.Client(base_url=mlflow, auth=(USER, stack.keys["mlflow"]), timeout=60) as client:
        found = client.get("/api/2.0/mlflow/registered-models/get", params={"name": "tiny"})
        assert found.json()["registered_model"]["latest_versions"][0]["version"] == "1"
        assert "<title>MLflow</title>" in client.get("/").text


def test_an_unknown_and_an_ambiguous_name_say_so(stack: Running) -> None:
    unknown = stack.call("prefect", "deployment", "run", "train-h2")
    assert unknown.returncode == 1
    assert "Traceback" not in unknown.stderr
    assert "there is no deployment 'train-h2'; there are: agit-tune/tune-h2z, agit/" in unknown.stderr
    other = stack.api("POST", "/flows/", json={"name": "other"})["id"]
    stack.api("POST", "/deployments/", json={"name": "train-h2z", "flow_id": other})
    ambiguous = stack.call("prefect", "deployment", "run", "train-h2z")
    assert ambiguous.returncode == 1
    assert (
        "2 deployments have the name 'train-h2z'; give one of agit/train-h2z, other/train-h2z"
        in ambiguous.stderr
    )


def test_the_worker_picks_up_a_scheduled_retraining(stack: Running) -> None:
    deployment = stack.deployments()["agit/retrain-h2z"]["id"]
    soon = datetime.now(UTC) + timedelta(
        seconds=10
    )  # the scheduler may look later: then it is the next minute
    # after the training above: nothing is new
    parameters = {
        "config": "tiny.yaml",
        "overrides": ["register.gate.better_than_nothing=false", "register.gate.better_than_blob=false"],
    }
    schedule = {"interval": 60, "anchor_date": soon.isoformat(), "timezone": "UTC"}
    body = [{"schedule": schedule, "active": True, "parameters": parameters}]
    stack.api("POST", f"/deployments/{deployment}/schedules", json=body)

    def scheduled() -> list[dict[str, Any]]:
        wanted = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = stack.api("POST", "/flow_runs/filter", json=wanted)
        return [run for run in found if run["auto_scheduled"] and run["parameters"]["config"] == "tiny.yaml"]

    run = wait_for(scheduled, "the scheduler", 300)[0]
    ended = stack.wait_for_end(run["id"])
    assert (ended["state_type"], ended["state_name"]) == ("COMPLETED", "Skipped"), ended["state"]
    assert ended["state"]["message"] == "nothing changed since version 1: no training"
    assert ended["name"].startswith("retrain tiny.yaml ")
    told = [
        item
        for item in stack.api("POST", "/artifacts/latest/filter", json={})
        if item["key"] == "agit-retrain-tiny"
    ]
    assert "not trained" in told[0]["data"]


def test_down_leaves_no_process(stack: Running) -> None:
    token, runtime = stack.state["token"], Path(stack.state["runtime"])
    assert len(carriers(token)) >= 6
    down = stack.call("infra.stack", "down", "--json")
    assert down.returncode == 0, down.stderr
    assert json.loads(down.stdout)["up"] is False
    assert carriers(token) == []
    assert not runtime.exists()
    status = stack.call("infra.stack", "status", "--json")
    assert (status.returncode, json.loads(status.stdout)["up"]) == (1, False)
    assert stack.call("infra.stack", "down").returncode == 0
