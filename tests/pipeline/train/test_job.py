"""Training on a real Ray with two workers: what it leaves, and what survives its processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from agit_core import checkpoint, model_folder
from agit_core.checkpoint import Snapshot
from agit_core.config import OptimizerConfig
from agit_core.errors import BadInput, RunFailed
from agit_core.networks import build
from pipeline import storage, train_job
from pipeline.config import Config
from pipeline.records import Manifest, Result, Spec
from pipeline.train import events as train_events
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.events import Furthest
from tests.chaos import processes
from tests.pipeline.disk import fill, small_disk
from tests.pipeline.training import differences, prepared, read_checkpoint, spec_of, tiny, wait_for
from tests.ray_environment import job_ray

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return prepared(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def scratch() -> Iterator[str]:
    """A Ray of this module's own."""
    with pytest.MonkeyPatch.context() as patch, job_ray(patch) as folder:
        yield folder


def drive(config: Config, data: str, scratch: str) -> tuple[Spec, Result]:
    from pipeline.train.driver import drive

    spec = spec_of(config, data)
    return spec, drive(spec, config, scratch)


@pytest.fixture(scope="module")
def undisturbed(data: str, scratch: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, Result]:
    """An undisturbed run to the end: its specification and result."""
    return drive(tiny(tmp_path_factory.mktemp("calm")), data, scratch)


@pytest.fixture
def final(undisturbed: tuple[Spec, Result]) -> Snapshot:
    return read_checkpoint(undisturbed[1].checkpoint)


def test_leaves_what_the_next_stages_need(undisturbed: tuple[Spec, Result]) -> None:
    spec, result = undisturbed
    run = Path(spec.run_uri)
    assert result.steps == 60
    assert result.stage == "masked"
    assert result.switched_at_step == 15
    assert result.workers == 2
    assert result.checkpoint == str(run / "checkpoints" / "step-00000060")
    # twice per interval, so that a kill during an upload costs one interval at most
    assert CheckpointStore(str(run), 3).steps()[:3] == [60, 50, 40]
    assert result.best_checkpoint in {str(path) for path in (run / "checkpoints").iterdir()}

    files = sorted((run / "metrics").iterdir())
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(5, 61, 5))
    assert [row["stage"] for row in rows] == ["full"] * 3 + ["masked"] * 9
    assert {"epoch", "learning_rate", "losses", "mask_health", "images_per_s"} <= rows[0].keys()
    assert rows[-1]["learning_rate"] < rows[0]["learning_rate"]

    for step in (40, 60):
        folder = run / "samples" / f"step-{step:08d}"
        described = json.loads((folder / "samples.json").read_text())
        assert described["strips"] == ["a2b-0.png", "b2a-0.png"]
        assert (described["step"], described["tile"]) == (step, 32)
        assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in described["strips"])
    assert result.samples == [
        str(run / "samples/step-00000060" / name) for name in ("a2b-0.png", "b2a-0.png")
    ]

    progress = json.loads((run / "progress.json").read_text())
    assert (progress["step"], progress["total_steps"], progress["last_checkpoint_step"]) == (60, 60, 60)
    assert [event.kind for event in train_events.read(str(run))] == ["started", "switched"]


def killing(kind: str, spec: Spec, at: int) -> Callable[[], None]:
    """Kills a process of this kind once the run has reached a step; call the answer to wait for it."""

    def work() -> None:
        # not progress.json: on a fast machine the run may be over before that tells
        wait_for(lambda: Furthest(spec.run_uri).step >= at, f"step {at}")
        os.kill(processes.of_kind(kind, os.getpid())[0], signal.SIGKILL)

    pool = ThreadPoolExecutor(1)
    killed = pool.submit(work)
    pool.shutdown(wait=False)
    return killed.result


@pytest.mark.long
@pytest.mark.parametrize(("kind", "told"), [("worker", "worker_failed"), ("controller", "controller_lost")])
def test_a_killed_process_costs_less_than_an_interval(
    kind: str, told: str, data: str, scratch: str, final: Snapshot, tmp_path: Path
) -> None:
    config = tiny(tmp_path)
    wait = killing(kind, spec_of(config, data), at=12)
    spec, result = drive(config, data, scratch)
    wait()
    events = train_events.read(spec.run_uri)
    kinds = [event.kind for event in events if event.kind != "switched"]
    assert kinds == ["started", told, "resumed"]
    assert "process" in next(event for event in events if event.kind == told).message
    resumed = next(event for event in events if event.kind == "resumed")
    assert resumed.step >= 10
    assert 0 <= resumed.redone <= config.train.checkpoint_every
    assert result.resumed_from == resumed.step
    assert differences(read_checkpoint(result.checkpoint), final) == []
    files = sorted((Path(spec.run_uri) / "metrics").iterdir())
    rows = [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]
    assert sorted(set(rows)) == list(range(5, 61, 5))
    assert len(rows) == len(set(rows))


@pytest.mark.long
def test_a_damaged_checkpoint_sends_it_one_back(
    data: str,
    scratch: str,
    undisturbed: tuple[Spec, Result],
    final: Snapshot,
    tmp_path: Path,
) -> None:
    config = tiny(tmp_path)
    spec = spec_of(config, data)
    shutil.copytree(undisturbed[0].run_uri, spec.run_uri)
    checkpoints = Path(spec.run_uri) / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000060")
    weights = checkpoints / "step-00000050" / "networks.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    _, result = drive(config, data, scratch)
    assert result.resumed_from == 40
    assert differences(read_checkpoint(result.checkpoint), final) == []
    told = [event for event in train_events.read(spec.run_uri) if event.kind == "checkpoint_damaged"]
    assert "step 50 is damaged" in told[0].message


@pytest.mark.long
def test_a_full_disk_holds_the_checkpoints_up_and_nothing_else(
    data: str, scratch: str, final: Snapshot, tmp_path: Path
) -> None:
    """The run's storage is full from its first checkpoint on, until somebody makes room."""
    with small_disk(tmp_path / "disk", "16M") as disk:
        config = tiny(disk / "store")
        spec = spec_of(config, data)
        run = spec.run_uri
        store = CheckpointStore(run, 3)
        seen: dict[str, Any] = {}

        def work() -> None:
            wait_for(store.steps, "a checkpoint")
            ballast = fill(disk)
            time.sleep(0.5)  # a file whose blocks were taken already may still be finished
            stored = store.newest()
            # one more checkpoint is taken; with that in hand it waits for the disk where the next is due
            wait_for(lambda: Furthest(run).step >= stored + 15, "the training to go on")
            seen.update(stored=stored, full=store.newest())
            ballast.unlink()

        with ThreadPoolExecutor(1) as pool:
            filled = pool.submit(work)
            result = drive(config, data, scratch)[1]
            filled.result()
        assert seen["full"] == seen["stored"], "a checkpoint was written on a full disk"
        assert result.steps == 60
        assert differences(read_checkpoint(result.checkpoint), final) == []
        assert [event.kind for event in train_events.read(run)] == ["started", "switched"]


@pytest.mark.long
def test_bad_input_in_a_worker_is_not_tried_again(data: str, scratch: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, start_from=str(tmp_path / "nowhere"), max_failures=5)
    with pytest.raises(BadInput, match=r"no model at .*nowhere"):
        drive(config, data, scratch)
    events = train_events.read(spec_of(config, data).run_uri)
    assert [event.kind for event in events] == ["worker_failed"]


def stuck(folder: Path, bias: float) -> str:
    """A model whose attention of domain a begins at sigmoid(``bias``)."""
    config = tiny(folder)
    networks = build(config.method.networks, 1)
    assert networks.attention_a is not None
    last = [m for m in networks.attention_a.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    torch.nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
    model_folder.write(folder / "stuck", "stuck", config.method, 32, networks.state_dict(), lineage={})
    return str(folder / "stuck")


@pytest.mark.long
def test_a_switch_that_comes_too_early_is_told(data: str, scratch: str, tmp_path: Path) -> None:
    """The masked stage begins while the masks of domain a are at 0.2, which is reported once."""
    config = tiny(tmp_path, start_from=stuck(tmp_path, -1.4), max_steps=30)
    spec, _ = drive(config, data, scratch)
    events = train_events.read(spec.run_uri)
    assert [event.kind for event in events] == ["started", "switched", "mask_faint"]
    began = storage.read_json(storage.join(spec.run_uri, "start.json"))
    assert began == {"uri": config.train.start_from, "digest": model_folder.read(began["uri"]).digest}
    assert re.search(r"attention was faint: 0\.[12]\d \(domain a\) where", events[-1].message)
    assert json.loads((Path(spec.run_uri) / "progress.json").read_text())["message"] == ""


@pytest.mark.long
@pytest.mark.parametrize(("bias", "says"), [(-20.0, "all zeros"), (20.0, "all ones")])
def test_a_hopeless_run_stops_and_can_be_made_to_go_on(
    bias: float, says: str, data: str, scratch: str, tmp_path: Path
) -> None:
    """From weights whose attention of domain a is stuck: alarm, curves and checkpoint, then the end."""
    config = tiny(tmp_path, stop_on_collapse=True, start_from=stuck(tmp_path, bias), max_steps=30)
    with pytest.raises(RunFailed, match=f"attention of domain a has collapsed to {says} at step 10"):
        drive(config, data, scratch)
    run = Path(spec_of(config, data).run_uri)
    kinds = [event.kind for event in train_events.read(str(run))]
    assert kinds == ["started", "mask_collapsed", "worker_failed"]
    rows = [
        json.loads(line) for f in sorted((run / "metrics").iterdir()) for line in f.read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [5, 10]
    # 12 images an epoch, 2 a step: the first epoch ended within the second window and is enough for the alarm
    assert [e["epoch"] for e in rows[1]["epochs"]] == [0]
    assert rows[1]["epochs"][0]["mask_health"]["bimodality_a"] == pytest.approx(1.0)

    going_on = tiny(tmp_path, start_from=config.train.start_from, max_steps=30)
    _, result = drive(going_on, data, scratch)
    assert (result.resumed_from, result.steps) == (10, 30)


def diverging(root: Path, **train: Any) -> Config:
    """At a rate at which nothing is finite after a step or two."""
    config = tiny(root, log_every=1, sample_every=100, **train)
    method = dataclasses.replace(config.method, optimizer=OptimizerConfig(learning_rate=1e9))
    return config.model_copy(update={"method": method})


def test_a_divergence_from_the_start_ends_the_run_and_leaves_no_checkpoint(
    data: str, scratch: str, tmp_path: Path
) -> None:
    config = diverging(tmp_path, max_failures=5)
    says = r"^the training diverged: the (losses|weights) .* are not finite; lower .*learning_rate \(now 1e\+09\), or"
    with pytest.raises(RunFailed, match=says):
        drive(config, data, scratch)
    run = spec_of(config, data).run_uri
    events = train_events.read(run)
    assert [event.kind for event in events] == ["started", "diverged", "worker_failed"]
    assert CheckpointStore(run, 3).steps() == []
    assert not storage.exists(storage.join(run, "result.json"))
    rows = storage.list_(storage.join(run, "metrics"))
    assert len(rows) == 1, "the curve that led there is kept"
    assert '"cycle_a": null' in storage.read_text(rows[0])


def test_a_late_divergence_leaves_the_finite_checkpoints(
    data: str, scratch: str, undisturbed: tuple[Spec, Result], tmp_path: Path
) -> None:
    """From Adam's moments that are finite and yet move a weight beyond all numbers; going back does not help."""
    config = tiny(tmp_path, rollbacks=2)
    run = spec_of(config, data).run_uri
    shutil.copytree(undisturbed[0].run_uri, run)
    shutil.rmtree(Path(run) / "checkpoints" / "step-00000060")
    store = CheckpointStore(run, 3)
    at = store.load(50)
    at.training["optimizer_g"]["state"][0]["exp_avg"].fill_(3e38)
    at.training["optimizer_g"]["state"][0]["exp_avg_sq"].fill_(1e-38)
    store.write(
        dataclasses.replace(
            at, info={k: v for k, v in at.info.items() if k not in {"files", "format", "sha256"}}
        )
    )
    before = time.time()
    with pytest.raises(
        RunFailed, match=r"losses of steps 51 to 55 are not finite; .* as 2 rollbacks did not help"
    ):
        drive(config, data, scratch)
    assert store.steps()[:2] == [50, 40]
    assert all(not checkpoint.not_finite(store.load(step).networks) for step in store.steps())
    events = [event for event in train_events.read(run) if event.time > before]
    told = [(event.kind, event.step) for event in events if event.step is not None]
    assert told == [("resumed", 50), *[("diverged", 55), ("rolled_back", 50)] * 2, ("diverged", 55)]


@pytest.mark.long
def test_rolling_back_finds_a_rate_at_which_nothing_overflows(
    data: str, scratch: str, tmp_path: Path
) -> None:
    config = diverging(tmp_path, rollbacks=60, max_steps=8)
    spec, result = drive(config, data, scratch)
    assert result.steps == 8
    assert 0 < result.rollbacks < 60
    last = read_checkpoint(result.checkpoint)
    assert last.training["rollbacks"] == result.rollbacks
    assert not checkpoint.not_finite(last.networks)
    files = sorted((Path(spec.run_uri) / "metrics").iterdir())
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9)), "what was done again is told once"
    assert rows[0]["learning_rate"] == 1e9 * 0.5**result.rollbacks


@pytest.mark.long
def test_failures_without_progress_end_the_run(data: str, scratch: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, max_failures=0)
    wait = killing("worker", spec_of(config, data), at=2)
    with pytest.raises(RunFailed, match=r"^the training failed: a process of the training died"):
        drive(config, data, scratch)
    wait()


class TestCheck:
    """What is refused before anything is started."""

    def manifest(self, **changes: Any) -> Manifest:
        rows = {split: {"rows": 12} for split in ("trainA", "trainB", "testA", "testB")}
        return Manifest.model_validate({"image_size": 32, "splits": rows, **changes})

    @pytest.mark.parametrize(
        ("train", "manifest", "says"),
        [
            ({"workers": 4}, {}, "batch of 2 cannot be split over 4 workers"),
            ({"minimum_workers": 3}, {}, r"minimum_workers \(3\) must not be larger"),
            ({}, {"image_size": 64}, "prepared for 64 pixels"),
            ({}, {"splits": {"trainA": {"rows": 0}, "trainB": {"rows": 3}}}, "no training images in trainA"),
        ],
    )
    def test_refused(self, train: dict[str, Any], manifest: dict[str, Any], says: str) -> None:
        with pytest.raises(BadInput, match=says):
            train_job.check(tiny("x", **train), self.manifest(**manifest))

    def test_fine(self) -> None:
        train_job.check(tiny("x"), self.manifest())
