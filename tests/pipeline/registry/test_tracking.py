from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from agit_core.errors import BadInput, RunFailed
from infra.stack_state import free_port
from pipeline import config as configs
from pipeline import storage
from pipeline.config import Config
from pipeline.registry import models, tracking
from tests.pipeline.registry.finished_runs import Register


def test_an_experiment_that_somebody_deleted_is_restored(register: Register, config: Config) -> None:
    register(1)
    connection = tracking.client(tracking.tracking_uri(config))
    experiment = connection.search_experiments(filter_string="name = 'h2z'")[0]
    connection.delete_experiment(experiment.experiment_id)
    assert register(2).version == 2
    assert connection.get_experiment(experiment.experiment_id).lifecycle_stage == "active"


def test_a_run_in_mlflow_can_be_traced_back_to_its_data_code_and_settings(
    config: Config, register: Register
) -> None:
    strip = storage.join(config.storage, "runs", "h2z-run1", "samples", "step-00000020", "a2b-0.png")
    storage.write_bytes(strip, b"a picture")
    told = register(1)
    client = tracking.client(tracking.tracking_uri(config))
    run = client.get_run(told.mlflow.run_id)
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("h2z", "abc")
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    found = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert found == {"config.yaml", "evaluation.json", "lineage.json", "samples"}
    assert [item.path for item in client.list_artifacts(run.info.run_id, "samples")] == ["samples/a2b-0.png"]
    local = Path(client.download_artifacts(run.info.run_id, "config.yaml"))
    assert configs.parse(yaml.safe_load(local.read_text())) == config
    commit = told.lineage["code"]["git_commit"]
    assert run.data.tags.get("mlflow.source.git.commit") == commit
    note = run.data.tags["mlflow.note.content"]
    for part in ("report.html", told.source, "abc", "agit reproduce"):
        assert part in note
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "losses.cycle_a")]
    assert steps == [10, 20]


def test_mlflow_holds_settings_curves_scores_and_tags(config: Config, register: Register) -> None:
    told = register(seed=1)
    client = tracking.client(tracking.tracking_uri(config))
    run = client.get_run(told.mlflow.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["method.stages.switch_at"] == "30"
    assert run.data.metrics["kid_target_a2b"] == 0.05
    curve = client.get_metric_history(run.info.run_id, "losses.cycle_a")
    assert [(point.step, point.value) for point in curve] == [(10, 2.0), (20, 1.0)]
    assert run.data.tags["agit.data_fingerprint"] == "abc"
    version = client.get_model_version("h2z", "1")
    assert version.tags["agit.directions"] == "a2b,b2a"
    assert version.tags["agit.code"]
    assert version.source == told.source
    assert not Path("mlruns").exists()


def test_a_server_that_does_not_answer_is_told_in_one_sentence(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    elsewhere = configs.parse({**config.plain(), "register": {"tracking_uri": uri}})
    with pytest.raises(RunFailed, match="MLflow at http") as caught:
        register(seed=1, settings=elsewhere)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_mlflow_is_quiet(tmp_path: Path) -> None:
    """A fresh process creates the database: nothing on standard output or standard error, or in the home directory."""
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "from pipeline.registry import models, tracking\n"
        f"client = tracking.client('sqlite:///{tmp_path}/state/mlflow.db')\n"
        "client.create_registered_model('x')\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "HOME": str(home)},
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "state"]
    # nor are there messages; this reads a registry, as a run does first
    script = f"from pipeline.registry import versions; versions.versions('sqlite:///{tmp_path}/state/mlflow.db', 'x')"
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        | {"PYTHONPATH": str(root), "HOME": str(home)},
        check=True,
    )
    assert list(home.rglob("*")) == []


def test_a_damaged_database_is_named(bare_config: Config) -> None:
    file = Path(bare_config.storage) / tracking.LOCAL_DATABASE
    file.parent.mkdir()
    file.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(BadInput, match=r"mlflow.db is damaged .* move it away"):
        models.history(bare_config)


class Locked(http.server.BaseHTTPRequestHandler):
    """Answers 401 to everything, as MLflow's server does without its password."""

    def do_GET(self) -> None:
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_server_that_asks_for_a_password_says_which_variables(bare_config: Config) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_address[1]}"
        settings = bare_config.model_copy(
            update={"register_": bare_config.register_.model_copy(update={"tracking_uri": uri})}
        )
        with pytest.raises(BadInput, match="asks for a password; set MLFLOW_TRACKING_USERNAME"):
            models.history(settings)
        server.shutdown()
