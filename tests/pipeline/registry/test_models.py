"""The registry on a real MLflow SQLite store, with tiny networks and evaluations written by hand."""

from __future__ import annotations

import copy
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from agit_core import checkpoint, model_folder, networks, saved_method
from agit_core.checkpoint import Snapshot
from agit_core.config import MethodConfig, NetworkConfig
from agit_core.errors import BadInput, RunFailed
from infra.stack_state import free_port
from pipeline import clean, storage, tasks
from pipeline import config_reader as configs
from pipeline.config import Config, GateConfig
from pipeline.launch import specs
from pipeline.records import Result, Run
from pipeline.registry import gate, models, registration, tracking, versions
from tests.pipeline.killed import write_and_die
from tests.pipeline.s3 import S3Server

METHOD = MethodConfig(
    networks=NetworkConfig(generator_width=4, generator_blocks=1, attention_width=4, discriminator_width=4)
)
Register = Callable[..., dict[str, Any]]


def evaluation(
    kid: float = 0.05, nothing: float = 0.2, coverage: float = 0.3, **others: float
) -> dict[str, Any]:
    metrics: dict[str, float | None] = {"kid_mean": kid}
    baseline: dict[str, float | None] = {}
    for direction in ("a2b", "b2a"):
        metrics |= {f"kid_target_{direction}": kid, f"kid_mean_{direction}": kid, f"fid_{direction}": 90.0}
        baseline[f"kid_target_{direction}"] = nothing
        metrics[f"attention_coverage_{direction[0]}"] = coverage
        metrics[f"attention_iou_{direction[0]}"] = 0.6
    return {
        "metrics": metrics | others,
        "baseline": baseline,
        "champion": None,
        "intervals": {},
        "data": {"uri": "data/x", "fingerprint": "abc"},
        "inception": {"sha256": "7ff4"},
    }


def against(told: dict[str, Any], version: int, kid: float, verdict: str = "better") -> dict[str, Any]:
    """The same evaluation, which has also scored the champion."""
    champion = copy.deepcopy(told["metrics"]) | {"kid_mean": kid}
    told["champion"] = {"version": version, "metrics": champion}
    told["intervals"] = {"kid_mean": {"champion": {"verdict": verdict}}}
    return told


def make_run(storage_uri: str, run_id: str, seed: int) -> str:
    """A finished run whose weights depend on the seed alone, with curves of two steps."""
    uri = storage.join(storage_uri, "runs", run_id)
    local = Path(os.environ["PYTEST_CHECKPOINTS"]) / run_id
    net = networks.build(METHOD.networks, seed)
    info = {"step": 20, "epoch": 2, "stage": "full", "image_size": 32}
    info["method"] = saved_method.to_dict(METHOD)
    checkpoint.write(local, Snapshot(info, net.state_dict(), {}, {}, {}))
    target = storage.join(uri, "checkpoints", "step-00000020")
    storage.upload_folder(local, target)
    rows = '{"step": 10, "losses": {"cycle_a": 2.0}, "epoch": 0}\n{"step": 20, "losses": {"cycle_a": 1.0}}\n'
    storage.write_text(storage.join(uri, "metrics", "00000020.jsonl"), rows)
    storage.write_json(
        storage.join(uri, "result.json"), {"run_id": run_id, "steps": 20, "checkpoint": target}
    )
    return uri


@pytest.fixture
def bare_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A storage where nothing was ever written."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTEST_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.chdir(tmp_path)
    return configs.parse({"name": "h2z", "storage": str(tmp_path / "state")})


@pytest.fixture
def config(bare_config: Config, empty_database: Path) -> Config:
    Path(bare_config.storage).mkdir()
    shutil.copy(empty_database, Path(bare_config.storage) / "mlflow.db")
    return bare_config


@pytest.fixture
def register(config: Config) -> Register:
    def _register(seed: int, told: dict[str, Any] | None = None, settings: Config = config) -> dict[str, Any]:
        uri = make_run(settings.storage, f"h2z-run{seed}", seed)
        return registration.register(settings, uri, told or evaluation(), {"data_fingerprint": "abc"})

    return _register


def test_an_experiment_that_somebody_deleted_is_restored(register: Register, config: Config) -> None:
    register(1)
    connection = tracking.client(tracking.tracking_uri(config))
    experiment = connection.search_experiments(filter_string="name = 'h2z'")[0]
    connection.delete_experiment(experiment.experiment_id)
    assert register(2)["version"] == 2
    assert connection.get_experiment(experiment.experiment_id).lifecycle_stage == "active"


def test_two_that_register_the_same_weights_at_once_make_one_version(config: Config) -> None:
    uri = make_run(config.storage, "h2z-run1", 1)
    tracking.client(tracking.tracking_uri(config))
    start = threading.Barrier(2)

    def one(_: int) -> dict[str, Any]:
        start.wait(60)
        return registration.register(config, uri, evaluation(), {"data_fingerprint": "abc"})

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert first == second
    (version,) = versions.versions(tracking.tracking_uri(config), "h2z")
    assert (
        tracking.client(tracking.tracking_uri(config)).get_run(version.run_id).info.lifecycle_stage
        == "active"
    )


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


class TestGate:
    def test_the_first_model_that_passes_becomes_champion(self) -> None:
        decision = gate.decide(GateConfig(), evaluation(), None)
        assert (decision.passed, decision.promoted) == (True, True)

    @pytest.mark.parametrize(
        ("told", "reason"),
        [
            (evaluation(kid=0.21), "no better than doing nothing"),
            (evaluation(coverage=0.99), "collapsed to all ones"),
            (evaluation(coverage=0.001), "collapsed to nothing"),
            (
                evaluation(attention_iou_b=0.31, attention_iou_blob_b=0.35),
                "attention_iou_b 0.310 is no better than that of a fixed blob in the middle (0.350)",
            ),
        ],
    )
    def test_forbidden_outcomes_are_neither_challenger_nor_champion(
        self, told: dict[str, Any], reason: str
    ) -> None:
        decision = gate.decide(GateConfig(), told, None)
        assert (decision.passed, decision.promoted) == (False, False)
        assert reason in decision.reasons[0]

    def test_figures_that_are_not_finite_are_forbidden(self) -> None:
        told = evaluation()
        told["metrics"]["cycle_l1_a"] = None
        decision = gate.decide(GateConfig(), told, None)
        assert not decision.passed
        assert "cycle_l1_a" in decision.reasons[0]

    def test_a_precision_that_nothing_attended_leaves_undefined_is_no_broken_figure(self) -> None:
        told = evaluation()
        told["metrics"] |= {"attention_precision_a": None, "attention_recall_a": 0.0}
        assert gate.decide(GateConfig(), told, None).passed
        told["metrics"]["attention_recall_a"] = 0.5
        assert not gate.decide(GateConfig(), told, None).passed

    def test_no_background_to_keep_is_no_broken_figure(self) -> None:
        """No true masks, and a model without attention (or with a wide one): no pixel counts as background."""
        told = evaluation()
        told["metrics"] |= {f"background_{key}_a2b": None for key in ("l1", "psnr", "ssim")}
        assert gate.decide(GateConfig(), told, None).passed
        # images that are not finite have no distances either
        told["metrics"]["kid_target_a2b"] = None
        assert not gate.decide(GateConfig(), told, None).passed

    def test_a_champion_is_beaten_by_more_than_the_margin_and_noise(self) -> None:
        champion = {"version": 4}
        better = against(evaluation(kid=0.05), 4, 0.08)
        assert gate.decide(GateConfig(), better, champion).promoted
        assert not gate.decide(GateConfig(margin=0.03), better, champion).promoted
        noise = against(evaluation(kid=0.05), 4, 0.08, "noise")
        refused = gate.decide(GateConfig(), noise, champion)
        assert (refused.passed, refused.promoted) == (True, False)
        assert "within noise" in refused.reasons[0]
        assert gate.decide(GateConfig(beyond_noise=False), noise, champion).promoted
        worse = gate.decide(GateConfig(), against(evaluation(kid=0.09), 4, 0.08, "worse"), champion)
        assert "is not better" in worse.reasons[0]

    def test_a_regression_beyond_what_the_policy_allows_refuses(self) -> None:
        policy = GateConfig(maximum_regression={"attention_iou": 0.1})
        told = against(evaluation(kid=0.05), 4, 0.08)
        assert gate.decide(policy, told, {"version": 4}).promoted
        told["metrics"]["attention_iou_b"] = 0.45
        refused = gate.decide(policy, told, {"version": 4})
        assert not refused.promoted
        assert any("attention_iou_b" in reason for reason in refused.reasons)

    def test_a_champion_that_was_not_measured_alongside_stays(self) -> None:
        decision = gate.decide(GateConfig(), against(evaluation(), 3, 0.1), {"version": 4})
        assert not decision.promoted
        assert "was not compared with the current champion" in decision.reasons[0]

    def test_a_metric_of_one_direction_or_where_more_is_better_decides_too(self) -> None:
        told = against(evaluation(kid=0.05), 4, 0.08)
        told["champion"]["metrics"] |= {"attention_iou_a": 0.5, "attention_iou_b": 0.5, "fid_a2b": 80.0}
        iou = GateConfig(metric="attention_iou")
        for verdicts, says in (
            ((), "no interval"),
            (("better",), "no interval"),
            (("better", "noise"), "within noise"),
            (("better", "better"), "better by more than noise"),
        ):
            each = dict.fromkeys(("attention_iou_a", "attention_iou_b"))
            told["intervals"] = each | {
                name: {"champion": {"verdict": verdict}}
                for name, verdict in zip(each, verdicts, strict=False)
            }
            decision = gate.decide(iou, told, {"version": 4})
            assert decision.promoted == (set(verdicts) == {"better"} and len(verdicts) == 2)
            assert says in " ".join(decision.reasons)
        told["intervals"] = {}
        assert gate.decide(
            GateConfig(metric="attention_iou", beyond_noise=False), told, {"version": 4}
        ).promoted
        assert not gate.decide(GateConfig(metric="fid_a2b"), told, {"version": 4}).promoted
        unknown = gate.decide(GateConfig(metric="kid_men"), told, {"version": 4})
        assert "was not measured" in unknown.reasons[0]

    @pytest.mark.parametrize(
        ("policy", "wrong"),
        [
            ({"metric": "kid_men"}, "register.gate.metric 'kid_men'"),
            ({"metric": "kid_mean_ab"}, "'kid_mean_ab'"),
            ({"metric": "attention_iou_everywhere"}, "'attention_iou_everywhere'"),
            ({"metric": "attention_coverage"}, "no better end"),
            ({"maximum_regression": {"attention_io": 0.1}}, "maximum_regression 'attention_io'"),
        ],
    )
    def test_a_policy_that_no_evaluation_can_meet_is_refused_before_the_run(
        self, bare_config: Config, policy: dict[str, Any], wrong: str
    ) -> None:
        tree = {**bare_config.plain(), "register": {"gate": policy}}
        with pytest.raises(BadInput, match=wrong):
            tasks.check_registration(configs.parse(tree))

    def test_every_score_with_a_better_end_may_decide(self) -> None:
        for metric in (
            "kid_mean",
            "fid_a2b",
            "attention_iou",
            "attention_iou_b",
            "cycle_l1_a",
            "background_ssim",
        ):
            gate.check(GateConfig(metric=metric, maximum_regression={metric: 0.1}))


def test_registering_writes_a_model_folder_that_loads(config: Config, register: Register) -> None:
    told = register(seed=1)
    assert (told["name"], told["version"]) == ("h2z", 1)
    assert told["aliases"] == ["challenger", "champion"]
    model = model_folder.read(told["source"])
    assert model.name == "h2z"
    assert model.lineage["data_fingerprint"] == "abc"
    expected = networks.build(METHOD.networks, 1).state_dict()
    assert all((model.weights[key] == value).all() for key, value in expected.items())
    assert storage.read_json(storage.join(config.storage, "runs/h2z-run1/registration.json")) == told
    card = storage.read_text(storage.join(told["source"], "README.md"))
    assert "| KID to the target × 100 | 5.00" in card
    assert "pipeline.serve.pyfunc" in storage.read_text(storage.join(told["source"], "MLmodel"))


def test_a_run_in_mlflow_can_be_traced_back_to_its_data_code_and_settings(
    config: Config, register: Register
) -> None:
    strip = storage.join(config.storage, "runs", "h2z-run1", "samples", "step-00000020", "a2b-0.png")
    storage.write_bytes(strip, b"a picture")
    told = register(1)
    client = tracking.client(tracking.tracking_uri(config))
    run = client.get_run(told["mlflow"]["run_id"])
    [used] = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("h2z", "abc")
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "training")]
    found = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert found == {"config.yaml", "evaluation.json", "lineage.json", "samples"}
    assert [item.path for item in client.list_artifacts(run.info.run_id, "samples")] == ["samples/a2b-0.png"]
    local = Path(client.download_artifacts(run.info.run_id, "config.yaml"))
    assert configs.parse(yaml.safe_load(local.read_text())) == config
    commit = told["lineage"]["code"]["git_commit"]
    assert run.data.tags.get("mlflow.source.git.commit") == commit
    note = run.data.tags["mlflow.note.content"]
    for part in ("report.html", told["source"], "abc", "agit reproduce"):
        assert part in note
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "losses.cycle_a")]
    assert steps == [10, 20]


def test_mlflow_holds_settings_curves_scores_and_tags(config: Config, register: Register) -> None:
    told = register(seed=1)
    client = tracking.client(tracking.tracking_uri(config))
    run = client.get_run(told["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["method.stages.switch_at"] == "30"
    assert run.data.metrics["kid_target_a2b"] == 0.05
    curve = client.get_metric_history(run.info.run_id, "losses.cycle_a")
    assert [(point.step, point.value) for point in curve] == [(10, 2.0), (20, 1.0)]
    assert run.data.tags["agit.data_fingerprint"] == "abc"
    version = client.get_model_version("h2z", "1")
    assert version.tags["agit.directions"] == "a2b,b2a"
    assert version.tags["agit.code"]
    assert version.source == told["source"]
    assert not Path("mlruns").exists()


def test_a_model_folder_that_is_gone_is_written_again(
    config: Config, register: Register, tmp_path: Path
) -> None:
    first = register(seed=1)
    shutil.rmtree(first["source"])
    assert register(seed=1) == first
    assert model_folder.read(models.resolve("models:/h2z/1", config)).name == "h2z"
    # in another storage, for a version of its own, which is found again
    shutil.rmtree(first["source"])
    shutil.copytree(config.storage, tmp_path / "moved")
    elsewhere = configs.parse({**config.plain(), "storage": str(tmp_path / "moved")})
    second = register(seed=1, settings=elsewhere)
    assert (second["version"], second["source"]) == (2, f"{tmp_path}/moved/models/h2z/h2z-run1")
    assert register(seed=1, settings=elsewhere)["version"] == 2


def test_a_killed_registration_leaves_nothing_in_the_model(config: Config, register: Register) -> None:
    folder = Path(config.storage) / "models" / "h2z" / "h2z-run1"
    write_and_die(folder / "weights.safetensors")
    assert register(seed=1)["source"] == str(folder)
    assert not list(folder.rglob("*.part"))


def test_the_same_run_keeps_its_version(config: Config, register: Register) -> None:
    first = register(seed=1)
    assert register(seed=1) == first
    assert len(models.history(config)["versions"]) == 1
    assert len(models.history(config)["events"]) == 1


def test_cleaning_removes_the_runs_that_no_version_came_from(config: Config, register: Register) -> None:
    kept = register(seed=1)
    make_run(config.storage, "h2z-run2", seed=2)
    clean.remove(config, clean.find(config, 0, now=time.time() + 7200))
    assert [path.name for path in Path(config.storage, "runs").iterdir()] == ["h2z-run1"]
    assert model_folder.read(kept["source"]).name == "h2z"


def test_a_version_that_was_not_promoted_is_decided_again_when_policy_or_evaluation_change(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    noise = against(evaluation(kid=0.04), 1, 0.05, "noise")
    refused = register(seed=2, told=noise)
    assert refused["aliases"] == ["challenger"]
    assert register(seed=2, told=noise) == refused
    register(seed=3, told=against(evaluation(kid=0.06), 1, 0.05, "worse"))
    assert len(models.history(config)["events"]) == 3

    # other figures, still refused: the newest challenger stays the challenger
    again = register(seed=2, told=against(evaluation(kid=0.045), 1, 0.05, "noise"))
    assert (again["version"], again["aliases"], again["decision"]["promoted"]) == (2, [], False)
    assert "0.0450 against 0.0500" in again["decision"]["reasons"][0]
    assert models.history(config)["versions"][1]["metrics"]["kid_mean"] == 0.045

    gate_policy = {"register": {"gate": {"beyond_noise": False}}}
    easier = configs.parse({**config.plain(), **gate_policy})
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.audit.record", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=2, told=noise, settings=easier)
    for settings in (easier, easier, config):  # once promoted, no other policy is asked
        assert register(seed=2, told=noise, settings=settings)["aliases"] == ["champion"]
    events = models.history(config)["events"]
    assert [(e["version"], e["champion"]) for e in events] == [(1, 1), (2, 1), (3, 1), (2, 1), (2, 2)]
    assert [e["policy"]["beyond_noise"] for e in events] == [True] * 4 + [False]


def test_the_gate_does_not_overrule_people(config: Config, register: Register) -> None:
    register(seed=1)
    noise = against(evaluation(kid=0.04), 1, 0.05, "noise")
    register(seed=2, told=noise)
    models.promote(config, 2, "looks better")
    models.rollback(config, "it is not")
    register(seed=2, told=against(evaluation(kid=0.03), 1, 0.05))
    assert models.champion(config)["version"] == 1  # type: ignore[index]
    assert [e["action"] for e in models.history(config)["events"]] == ["gate", "gate", "promote", "rollback"]


def test_a_challenger_that_fails_under_a_stricter_policy_is_challenger_no_more(
    config: Config, register: Register
) -> None:
    register(seed=1)
    told = against(evaluation(kid=0.06), 1, 0.05, "worse")
    assert register(seed=2, told=told)["aliases"] == ["challenger"]
    stricter = configs.parse({**config.plain(), "register": {"gate": {"maximum_coverage": 0.2}}})
    assert register(seed=2, told=told, settings=stricter)["aliases"] == []


def test_the_champions_weights_trained_again_are_told_as_such_and_not_scored_again(
    config: Config, register: Register
) -> None:
    register(seed=1)
    champion = models.champion(config)
    assert champion is not None
    told = evaluation() | {"model": {"weights_sha256": champion["weights_sha256"]}}
    twin = make_run(config.storage, "h2z-twin", 1)
    second = registration.register(config, twin, told)
    assert (second["version"], second["aliases"]) == (2, ["challenger"])
    assert second["decision"]["reasons"] == [
        "it has the weights of the champion, version 1: nothing to promote"
    ]
    assert registration.register(config, twin, told) == second
    run = Run("h2z-twin", twin, Result(steps=1, checkpoint=""))
    assert tasks._compared(config, run, told)
    assert not tasks._compared(config, run, evaluation() | {"model": {"weights_sha256": "another"}})


def test_an_interrupted_registration_is_finished_by_the_next_call(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at the worst moments: before the version exists, and between decision and aliases."""
    with monkeypatch.context() as patch:
        patch.setattr(registration, "_create", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.audit.record", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=1)
    assert models.champion(config) is None
    told = register(seed=1)
    assert told["version"] == 1
    assert told["aliases"] == ["challenger", "champion"]
    assert [e["action"] for e in models.history(config)["events"]] == ["gate"]


def test_a_decision_against_a_champion_that_is_gone_is_taken_again(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    better = against(evaluation(kid=0.01), 1, 0.05)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.registry.audit.record", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register(seed=2, told=better)
    register(seed=3, told=evaluation(kid=0.3))
    models.promote(config, 3, "looks better")
    told = register(seed=2, told=better)
    assert (told["version"], told["decision"]["promoted"]) == (2, False)
    assert "not compared with the current champion, version 3" in told["decision"]["reasons"][0]
    assert models.champion(config)["version"] == 3  # type: ignore[index]
    assert [(e["action"], e["version"]) for e in models.history(config)["events"]][-2:] == [
        ("promote", 3),
        ("gate", 2),
    ]


def _interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_refused_model_is_registered_without_aliases(config: Config, register: Register) -> None:
    told = register(seed=1, told=evaluation(kid=0.3))
    assert told["aliases"] == []
    assert told["decision"]["promoted"] is False
    assert models.champion(config) is None
    second = register(seed=2)
    assert second["aliases"] == ["challenger", "champion"]


def test_a_champion_that_another_registration_makes_meanwhile_is_not_replaced_unmeasured(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    decide, others = gate.decide, [evaluation(kid=0.01)]

    def while_another_registers(*judged: Any) -> gate.Decision:
        told = decide(*judged)
        if others:  # between this one's decision and what comes of it
            register(seed=2, told=against(others.pop(), 1, 0.05))
        return told

    monkeypatch.setattr(gate, "decide", while_another_registers)
    later = register(seed=3, told=against(evaluation(kid=0.04), 1, 0.05))
    champion = models.champion(config)
    assert champion is not None
    assert champion["metrics"]["kid_mean"] == 0.01
    assert later["aliases"] == ["challenger"]
    assert "was not compared with the current champion" in later["decision"]["reasons"][0]


def test_a_promotion_that_failed_is_nothing_to_roll_back_to(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(seed=1)
    register(seed=2, told=against(evaluation(kid=0.04), 1, 0.05))
    register(seed=3, told=against(evaluation(kid=0.06), 2, 0.04, "worse"))

    def away(*_: Any) -> None:
        raise RunFailed("the registry does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_registered_model_alias", away)
        with pytest.raises(RunFailed, match="does not answer"):
            models.promote(config, 3, "looks good")
    assert models.rollback(config, "v2 is bad")["champion"] == 1


def test_promotion_refusal_and_rollback_with_their_audit(config: Config, register: Register) -> None:
    register(seed=1)
    register(seed=2, told=against(evaluation(kid=0.049), 1, 0.05, "noise"))
    third = register(seed=3, told=against(evaluation(kid=0.02), 1, 0.05))
    assert third["aliases"] == ["challenger", "champion"]

    found = models.champion(config)
    assert found is not None
    assert (found["version"], found["uri"]) == (3, third["source"])
    with pytest.raises(BadInput, match="is already the champion"):
        models.promote(config, 3, "again")
    with pytest.raises(BadInput, match="needs a reason"):
        models.promote(config, 2, " ")
    models.promote(config, 2, "looks better to the customer")
    assert models.resolve("models:/h2z@champion", config).endswith("h2z-run2")
    assert models.rollback(config, "the customer was wrong")["version"] == 3
    assert models.rollback(config, "and so were we")["version"] == 1
    with pytest.raises(BadInput, match="no previous champion"):
        models.rollback(config, "further")

    told = models.history(config)
    assert [event["action"] for event in told["events"]] == ["gate"] * 3 + ["promote", "rollback", "rollback"]
    assert [event["champion"] for event in told["events"]] == [1, 1, 3, 2, 3, 1]
    assert told["events"][3]["reason"] == "looks better to the customer"
    assert all(event["by"] and event["time"] for event in told["events"])
    assert told["events"][1]["decision"]["reasons"]
    assert [row["version"] for row in told["versions"]] == [3, 2, 1]
    assert told["versions"][2]["aliases"] == ["champion"]
    assert told["versions"][0]["metrics"]["kid_mean"] == 0.02


def test_registries_that_share_a_storage_tell_their_own_stories(
    config: Config, register: Register, empty_database: Path
) -> None:
    """Without a server each machine has a registry of its own, and both begin with version 1."""
    shutil.copy(empty_database, "other.db")
    other = configs.parse(
        {**config.plain(), "register": {"tracking_uri": f"sqlite:///{Path('other.db').resolve()}"}}
    )
    register(seed=1)
    register(seed=2, settings=other)
    register(seed=3, told=against(evaluation(kid=0.01), 1, 0.05))
    models.promote(config, 1, "looks better")
    [only] = models.history(other)["events"]
    assert (only["action"], only["version"], only["champion"]) == ("gate", 1, 1)
    assert only["mlflow_run_id"] == versions.get(tracking.tracking_uri(other), "h2z", 1).run_id
    with pytest.raises(BadInput, match="no previous champion"):
        models.rollback(other, "it is bad")
    assert [e["champion"] for e in models.history(config)["events"]] == [1, 2, 1]
    assert models.rollback(config, "it is not")["champion"] == 2


def test_events_of_an_earlier_release_are_read(config: Config, register: Register) -> None:
    register(seed=1)
    register(seed=2, told=against(evaluation(kid=0.01), 1, 0.05))
    for uri in storage.list_(storage.join(config.storage, "models/h2z/audit")):
        event = storage.read_json(uri)
        del event["mlflow_run_id"]
        storage.write_json(uri, event)
    assert [e["champion"] for e in models.history(config)["events"]] == [1, 2]
    assert models.rollback(config, "it is bad")["champion"] == 1


def test_resolving_model_uris(config: Config, register: Register) -> None:
    source = register(seed=1)["source"]
    assert models.resolve("models:/h2z@challenger", config) == source
    assert models.resolve("models:/h2z/1", config) == source
    assert models.resolve("some/folder", config) == "some/folder"
    for uri, reason in {
        "models:/h2z": "names no version",
        "models:/h2z/7": "has no version 7",
        "models:/h2z@prod": "has no alias 'prod'; its aliases are challenger, champion",
        "models:/horse@champion": "no model 'horse' is registered",
    }.items():
        with pytest.raises(BadInput, match=reason):
            models.resolve(uri, config)


def test_the_entry_point_resolves_without_a_configuration(
    config: Config, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = register(seed=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri(config))
    assert model_folder.read("models:/h2z@champion").digest == model_folder.read(told["source"]).digest


def test_without_a_registry_nothing_is_created(bare_config: Config) -> None:
    assert models.champion(bare_config) is None
    assert models.history(bare_config) == {"name": "h2z", "versions": [], "events": []}
    with pytest.raises(BadInput, match="no model 'h2z' is registered"):
        models.promote(bare_config, 1, "why not")
    assert not Path(bare_config.storage).exists()


def test_an_unfinished_run_is_not_registered(config: Config) -> None:
    with pytest.raises(BadInput, match="is not finished"):
        registration.register(config, storage.join(config.storage, "runs", "nothing"), evaluation())


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


def test_no_password_reaches_the_registry(config: Config, register: Register) -> None:
    tree = config.plain()
    tree["data"]["source"] = "https://user:hunter2@example.org/set.zip"
    told = register(seed=1, settings=configs.parse(tree))
    database = Path(config.storage) / "mlflow.db"
    assert b"hunter2" not in database.read_bytes()
    assert b"example.org/set.zip" in database.read_bytes()
    assert told["version"] == 1


def test_storage_in_s3_keeps_models_and_audit_there(config: Config, register: Register, s3: S3Server) -> None:
    remote = configs.parse({**config.plain(), "storage": f"{s3.uri}/prefix"})
    shutil.copytree(config.storage, ".agit")
    told = register(seed=1, settings=remote)
    assert told["source"] == f"{s3.uri}/prefix/models/h2z/h2z-run1"
    assert model_folder.read(models.resolve("models:/h2z@champion", remote)).name == "h2z"
    assert len(storage.list_(f"{s3.uri}/prefix/models/h2z/audit")) == 1
    assert Path(".agit/mlflow.db").is_file()


def test_mlflow_is_quiet(tmp_path: Path) -> None:
    """A fresh process creates the database: nothing on standard output or standard error, or in the home directory."""
    home = tmp_path / "home"
    home.mkdir()
    script = (
        "from pipeline.registry import tracking\n"
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
    # nor is anybody told; this looks into a registry, as a run does first
    script = f"from pipeline.registry import versions; versions.versions('sqlite:///{tmp_path}/state/mlflow.db', 'x')"
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        | {"PYTHONPATH": str(root), "HOME": str(home)},
        check=True,
    )
    assert list(home.rglob("*")) == []


def test_a_job_is_told_the_folder_of_the_weights_it_starts_from(
    config: Config, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers have no registry; and the one to ask is the configuration's, wherever the command is called."""
    told = register(seed=1)
    start = config.train.model_copy(update={"start_from": "models:/h2z@champion"})
    config = config.model_copy(update={"train": start})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = specs.spec_of(config, "data/x", "h2z-run2")
    assert spec["config"]["train"]["start_from"] == told["source"]
    lost = config.train.model_copy(update={"start_from": "models:/h2z/7"})
    with pytest.raises(BadInput, match="7"):
        specs.spec_of(config.model_copy(update={"train": lost}), "data/x", "h2z-run2")
