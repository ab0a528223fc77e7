"""A search on the built-in set with everything real and tiny; and single trials, with the training played."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from agit_core import model_folder, networks
from agit_core.errors import BadInput, RunFailed
from pipeline import config as configs
from pipeline import ray_session, run_status, storage
from pipeline.data.prepare.stage import prepare
from pipeline.launch import follow, specs
from pipeline.records import Data, Manifest, Result, Spec
from pipeline.train import events as train_events
from pipeline.tune import job as tune_job
from pipeline.tune import report, stages
from pipeline.tune import search as tune_search
from pipeline.tune import trial as tune_trial
from pipeline.tune.search import Search
from tests.browser import Browser
from tests.pipeline.command import agit, environment
from tests.pipeline.s3 import S3Server
from tests.pipeline.training import TINY, differences, read_checkpoint, wait_for
from tests.ray_environment import without_token

TREE: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "image_size": 32,
        "load_size": 36,
        "builtin": {"train": 6, "test": 4, "size": 40},
        "workers": 1,
    },
    "method": {
        "networks": TINY["method"]["networks"],
        "stages": {"switch_by": "step", "switch_at": 3},
    },
    "train": {
        "max_steps": 6,
        "batch_size": 2,
        "device": "cpu",
        "threads_per_worker": 1,
        "log_every": 2,
        "checkpoint_every": 4,
        "samples": 1,
        "sample_every": 2,
    },
    "evaluate": {"subsets": 2, "subset_size": 4, "bootstrap": 0, "device": "cpu"},
    "tune": {
        "trials": 6,
        "images": 2,
        "grace_steps": 2,
        "reduction": 3,
        "space": {
            "method.optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]},
            "method.losses.cycle_weight": {"uniform": [5, 20]},
            "train.batch_size": [1, 2],
        },
    },
}
SEARCH = """
import sys
from pipeline import tasks
from pipeline.config import load
from pipeline.tune import stages
settings = load(sys.argv[1])
stages.search(settings, tasks.prepare(settings))
"""


@pytest.fixture(autouse=True)
def no_folders_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray gives a trial that no Tuner started its folder; there is no setting for it."""
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path / "ray_results"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("tune")
    return prepare(configs.parse({**TREE, "storage": str(root)})).uri


def _search(data: str, root: Path, **tune: Any) -> Search:
    tree = {**TREE, "storage": str(root), "tune": TREE["tune"] | tune}
    return Search.of(configs.parse(tree), data)


def _states(folder: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob(".agit/tune/*/trials/*.json")):
        trial = json.loads(path.read_text())
        found[trial["number"]] = trial
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_six_trials_killed_once_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TREE))
    process = subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(config)], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE
    )
    # in the middle of the third trial, when two have been scored
    wait_for(lambda: len(_states(tmp_path)) >= 3 or process.poll() is not None, "the third trial", 900)
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = _states(tmp_path)
    done = [trial for trial in before.values() if trial["state"] in ("finished", "stopped")]
    assert len(done) >= 1
    events = {trial["run_id"]: len(train_events.read(trial["run_uri"])) for trial in done}

    called = agit("tune", config, "--json", cwd=tmp_path, timeout=1500, AGIT_LOG="json")
    assert called.status == 0, called.err
    told = called.answer
    _expect_structured_log(called.err, {trial["run_id"] for trial in told["trials"]})
    after = _states(tmp_path)
    assert [trial["trial"] for trial in told["trials"]] == list(range(6))
    assert {trial["state"] for trial in told["trials"]} == {"finished", "stopped"}, told["trials"]
    for trial in done:  # nothing of them is done again
        assert after[trial["number"]] == trial
        assert len(train_events.read(trial["run_uri"])) == events[trial["run_id"]]
    for trial in after.values():  # under the rules of every run
        where = tmp_path / ".agit/runs" / trial["run_id"]
        assert trial["run_uri"] == str(where)
        assert (where / f"checkpoints/step-{trial['scores'][-1]['step']:08d}/checkpoint.json").is_file()
        assert (where / "result.json").is_file() == (trial["state"] == "finished")

    # the best is the best of those that trained to the end
    finished = [trial for trial in told["trials"] if trial["state"] == "finished"]
    assert told["best"] == min(finished, key=lambda trial: trial["kid_target"])
    assert (told["run_id"], told["steps"]) == (told["best"]["run_id"], told["best"]["step"])
    assert (told["metrics"]["kid_target"], told["model"]) == (told["best"]["kid_target"], None)
    page = Path(told["report"]).read_text()
    assert all(trial["run_id"] in page for trial in told["trials"])
    assert "All settings side by side" in page
    assert "SHA-256 7ff4a85c3a63" in page, "which Inception scored"

    # the preset is the best trial's run: there is nothing left to train in its storage ...
    preset = configs.load(told["preset"])
    data = str(next(tmp_path.glob(".agit/data/*/manifest.json")).parent)
    monkeypatch.chdir(tmp_path)
    assert follow.train(preset, data).run_id == told["best"]["run_id"]
    # ... and the same weights come out of a training in one go
    alone = follow.train(preset.model_copy(update={"storage": str(tmp_path / "alone")}), data)
    ours = after[told["best"]["trial"]]["run_uri"]
    there = storage.read_json(storage.join(ours, "result.json"))["checkpoint"]
    assert differences(read_checkpoint(alone.result.checkpoint), read_checkpoint(there)) == []


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_mask_that_collapses_in_training_ends_its_trial_also_on_s3(
    data: str, tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_token(monkeypatch)
    method = _search(data, tmp_path).config.method
    weights = networks.build(method.networks, 0).state_dict()
    for domain in "ab":
        last = [name for name in weights if name.startswith(f"attention_{domain}.")][-1]
        weights[last].fill_(-60.0)  # the sigmoid's gradient is gone, too
    model_folder.write(tmp_path / "dead", "dead", method, 32, weights)
    train = TREE["train"] | {"start_from": str(tmp_path / "dead"), "log_every": 1}
    tune = TREE["tune"] | {"grace_steps": 5}
    tree = {**TREE, "storage": f"{s3.uri}/x", "train": train, "tune": tune}
    search = Search.of(configs.parse(tree), data)
    spec = specs.spec_of(search.config, search.data_uri, search.search_id)
    with ray_session.connected(search.config, cpus=2) as scratch:
        trial = tune_trial.TuneTrial({"trial": 0, "spec": spec, "scratch": scratch, "own_ray": True})
        told = trial.step()
    assert (told["done"], told["score"]) == (True, tune_trial.WORST)
    stored = search.trial(0)
    assert stored.state == "collapsed"
    assert "collapsed to all zeros" in stored.message
    assert run_status.list_runs(f"{s3.uri}/x")[0].state == "collapsed"
    assert stored.run_uri.startswith(f"{s3.uri}/x/runs/")
    # what the search leaves on object storage, where a preset cannot be read from by `agit run`
    told = stages.summarize(search, stages.report(search), tmp_path / "best.yaml")
    assert (told["best"], told["preset"]) == (None, None)
    assert (told["run_id"], told["steps"], told["metrics"], told["model"]) == (None, None, None, None)
    assert "No trial has a score yet" in storage.read_text(told["report"])


def _expect_structured_log(text: str, run_ids: set[str]) -> None:
    """One JSON object per line, those of the workers with run, step and rank, behind none of Ray's prefixes."""
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    steps = [line for line in lines if line["logger"] == "pipeline.train.worker" and "losses" in line]
    assert {line["run_id"] for line in steps} <= run_ids
    assert any(line["rank"] == 0 and line["step"] > 0 for line in steps)
    assert any("kid_target" in line and "trial" in line for line in lines)


# ---------------------------------------------------------------------- what takes no Ray


def test_the_identity_is_the_space_and_the_data_not_how_much_is_asked_for(data: str, tmp_path: Path) -> None:
    search = _search(data, tmp_path)
    assert search.rungs == [2, 6]
    larger = _search(data, tmp_path, trials=9, concurrent=3)
    assert larger.search_id == search.search_id
    assert [t.run_id for t in larger.trials()[:6]] == [t.run_id for t in search.trials()]
    assert _search(data, tmp_path, reduction=2).search_id != search.search_id
    assert len({t.run_id for t in search.trials()}) == 6


def test_the_identity_has_how_many_images_a_score_takes(data: str, tmp_path: Path) -> None:
    def search(max_images: int | None, images: int) -> Search:
        tree = {**TREE, "storage": str(tmp_path), "evaluate": TREE["evaluate"] | {"max_images": max_images}}
        return Search.of(configs.parse(tree | {"tune": TREE["tune"] | {"images": images}}), data)

    assert search(3, images=4).search_id != search(None, images=4).search_id
    # the smaller one counts
    assert search(4, images=3).search_id == search(None, images=3).search_id == search(3, images=4).search_id
    assert tune_trial._executed(search(3, images=4), 1).evaluate.max_images == 3


def test_the_job_finds_the_same_search_whatever_its_working_directory(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train = TREE["train"] | {"start_from": "models/mine"}
    search = Search.of(configs.parse({**TREE, "storage": "./state", "train": train}), data)
    spec = specs.spec_of(search.config, search.data_uri, search.search_id)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = tune_search.from_spec(spec)
    assert again.uri == str(tmp_path / "state" / "tune" / search.search_id)
    assert again.trial(3) == Search.of(again.config, data).trial(3)
    assert again.config.train.start_from == str(tmp_path / "models/mine")


def test_settings_of_a_search_that_do_not_fit_are_refused(data: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="grace_steps"):
        _search(data, tmp_path, grace_steps=7)
    with pytest.raises(BadInput, match="attention_coverage_a"):
        _search(data, tmp_path, metric="attention_coverage_a")
    tree = {**TREE, "storage": str(tmp_path), "train": TREE["train"] | {"workers": 2}}
    with pytest.raises(BadInput, match="cannot be split over 2 workers"):
        Search.of(configs.parse(tree), data)


def test_trials_of_another_batch_are_compared_at_the_same_share_of_the_epochs(
    data: str, tmp_path: Path
) -> None:
    train = {key: value for key, value in TREE["train"].items() if key != "max_steps"} | {"epochs": 6}
    tree = {**TREE, "storage": str(tmp_path), "train": train}
    search = Search.of(configs.parse(tree), data)
    halves = [n for n in range(6) if search.config_of(n).train.batch_size == 1]
    assert search.rungs == [2, 6, 18]
    assert halves
    assert search.steps_of(halves[0]) == [4, 12, 36]
    assert search.steps_of(0) == search.rungs


class Played:
    """Trainings and scores as the test says, in place of Ray Train and Inception."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scores: list[float | None]) -> None:
        self.trained: list[int] = []
        self.scores = scores
        self.failure: Exception | None = None
        monkeypatch.setattr(tune_trial, "_train", self.train)
        self.coverage = 0.4
        monkeypatch.setattr(tune_trial, "_score", self.score)

    def score(self, *_: Any) -> dict[str, Any]:
        metrics = {"kid_target": self.scores.pop(0), "attention_coverage_a": self.coverage}
        return {"metrics": metrics, "inception": {}}

    def train(self, spec: Spec, until: int, *_: Any) -> Result:
        if self.failure is not None:
            raise self.failure
        self.trained.append(until)
        return Result(steps=until, checkpoint="c")


def _trial(search: Search, number: int = 1) -> tune_trial.TuneTrial:
    spec = specs.spec_of(search.config, search.data_uri, search.search_id)
    return tune_trial.TuneTrial({"trial": number, "spec": spec, "scratch": "s", "own_ray": True})


def test_a_trial_goes_from_rung_to_rung(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played, search = Played(monkeypatch, [0.4, 0.3]), _search(data, tmp_path)
    trial = _trial(search)
    told = [trial.step(), trial.step()]
    assert played.trained == [2, 6]
    assert [(t["resource"], t["score"], t["done"]) for t in told] == [(2, 0.4, False), (6, 0.3, True)]
    assert search.trial(1).state == "finished"


def test_what_was_scored_before_a_kill_is_told_again_and_not_trained(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, search = Played(monkeypatch, [0.4, 0.3]), _search(data, tmp_path)
    first = _trial(search).step()
    again = _trial(search)
    assert again.step() == first
    assert played.trained == [2]
    assert again.step()["resource"] == 6
    assert played.trained == [2, 6]
    third = _trial(search)
    assert [third.step()["done"], third.step()["done"]] == [False, True]
    assert played.trained == [2, 6]


def test_a_stopped_trial_stays_stopped(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played, search = Played(monkeypatch, [0.4]), _search(data, tmp_path)
    _trial(search).step()
    stored = search.trial(1)
    stored.state = "stopped"
    search.store(stored)
    told = _trial(search).step()
    assert (told["resource"], told["score"], told["done"]) == (2, 0.4, True)
    assert played.trained == [2]


@pytest.mark.parametrize(
    ("state", "becomes"),
    [("running", "stopped"), ("finished", "finished"), ("collapsed", "collapsed"), ("stopped", "stopped")],
)
def test_a_trial_that_ended_before_is_not_stopped_while_its_scores_are_told_again(
    data: str, tmp_path: Path, state: str, becomes: str
) -> None:
    search = _search(data, tmp_path)
    trial = search.trial(1)
    trial.state, trial.message = state, "as it was"
    search.store(trial)
    spec = specs.spec_of(search.config, search.data_uri, search.search_id)
    told = SimpleNamespace(config={"trial": 1}, last_result={"ended": False})
    tune_job._watch(spec, search).on_trial_complete(1, [], told)
    stored = search.trial(1)
    assert stored.state == becomes
    assert (stored.message == "as it was") == (state != "running")
    assert storage.exists(storage.join(stored.run_uri, "progress.json")) == (state == "running")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mask_collapsed", "the attention of domain a has collapsed to all ones at step 4"),
        ("diverged", "the training diverged: the losses of steps 3 to 4 are not finite"),
    ],
)
def test_a_training_without_hope_ends_a_trial_and_it_is_not_the_best(
    kind: str, message: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, search = Played(monkeypatch, [0.4, 0.1]), _search(data, tmp_path)
    assert tune_trial._executed(search, 1).train.stop_on_collapse
    _trial(search, 0).step()
    trial = _trial(search)
    trial.step()
    played.failure = RunFailed(f"{message}; do something about it")
    train_events.record(search.trial(1).run_uri, kind, message, step=4)
    told = trial.step()
    assert (told["resource"], told["score"], told["done"]) == (6, tune_trial.WORST, True)
    stored = search.trial(1)
    assert (stored.state, message in stored.message) == ("collapsed", True)
    best = search.best(search.trials())
    assert best is not None
    assert best.number == 0
    # replayed after a kill: it is not trained again
    again = _trial(search)
    assert again.step()["done"] is True


def test_a_collapse_that_passed_is_not_why_a_trial_fails_later(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, search = Played(monkeypatch, [0.4]), _search(data, tmp_path)
    train_events.record(search.trial(1).run_uri, "mask_collapsed", "all ones at step 4", step=4)
    played.failure = RunFailed("the storage does not answer")
    _trial(search).step()
    assert search.trial(1).state == "failed"


def test_scores_that_are_not_finite_end_a_trial(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Played(monkeypatch, [None])
    search = _search(data, tmp_path)
    told = _trial(search).step()
    assert (told["score"], told["done"]) == (tune_trial.WORST, True)
    assert search.trial(1).state == "collapsed"


def test_a_mask_that_is_the_same_on_all_test_images_ends_a_trial(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, search = Played(monkeypatch, [0.1]), _search(data, tmp_path)
    played.coverage = 0.99
    told = _trial(search).step()
    assert (told["done"], told["score"]) == (True, tune_trial.WORST)
    stored = search.trial(1)
    assert (stored.state, stored.message) == (
        "collapsed",
        "the attention of domain a is all ones on the test images",
    )
    assert search.best(search.trials()) is None


def test_a_failed_trial_is_tried_again_by_the_next_call(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, search = Played(monkeypatch, [0.4]), _search(data, tmp_path)
    played.failure = RunFailed("the storage was away")
    assert _trial(search).step()["done"] is True
    assert search.trial(1).state == "failed"
    played.failure = None
    assert _trial(search).step()["done"] is False
    assert search.trial(1).state == "running"


def test_a_search_is_done_when_no_trial_failed(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails whenever it is tried is tried once per call."""
    search = _search(data, tmp_path)
    result_uri = storage.join(search.uri, "result.json")
    ends = ["failed", "failed", "finished"]
    calls = []

    def job(*_: Any) -> None:
        assert not storage.exists(result_uri)
        calls.append(ends.pop(0))
        for trial in search.trials():
            trial.state = calls[-1] if trial.number == 3 else "finished"
            search.store(trial)
        storage.write_json(result_uri, {"trials": 6})

    monkeypatch.setattr(follow, "run_job", job)
    for known in (1, 2, 3, 3):
        stages.search(search.config, Data(data, Manifest(), True))
        assert len(calls) == known


def test_only_those_that_came_as_far_are_compared(data: str, tmp_path: Path) -> None:
    search = _search(data, tmp_path)
    for number, scores in {0: [0.5, 0.4], 1: [0.1], 2: [0.3, 0.35]}.items():
        trial = search.trial(number)
        trial.scores = [
            {"resource": r, "step": r, "metrics": {"kid_target": s}}
            for r, s in zip([2, 6], scores, strict=False)
        ]
        trial.state = "finished" if len(scores) == 2 else "stopped"
        search.store(trial)
    best = search.best(search.trials())
    assert best is not None
    assert best.number == 2
    text = tune_search.preset(search, best)
    assert text.startswith("# Best of 6 trials")
    assert configs.parse(yaml.safe_load(text)) == search.config_of(2)


def test_the_report_opens_in_a_browser_with_all_its_charts(
    data: str, tmp_path: Path, browser: Browser, screenshots: Path
) -> None:
    search = _search(data, tmp_path)
    for number, state in enumerate(("finished", "stopped", "collapsed", "finished", "running", "failed")):
        trial = search.trial(number)
        trial.state = state
        trial.message = "<b>no tags</b>" if state == "failed" else ""
        steps = search.rungs if state == "finished" else search.rungs[:1] if state != "failed" else []
        trial.scores = [
            {"resource": at, "step": at, "metrics": {"kid_target": 0.3 - 0.02 * number - 0.01 * at}}
            for at in steps
        ]
        search.store(trial)
    page = browser.open(f"file://{report.build(search)}")
    page.wait_for_selector("html[data-charts]", timeout=120_000)
    assert "Trial 3 is best: kid_target 0.18" in page.inner_text(".verdict")
    assert "25% below" in page.inner_text(".verdict")
    rows = page.locator("#trials tbody tr").all_inner_texts()
    assert len(rows) == 6
    assert rows[0].startswith("3 best")
    assert any("<b>no tags</b>" in row for row in rows), "a message is text, not markup"
    drawn = page.locator(".plot .main-svg").count()
    assert drawn >= 2 + len(search.ranges)
    page.screenshot(path=screenshots / "tune.png", full_page=True)
