"""Every file of a finished run is lost, emptied, cut or overwritten in turn, and later commands are tried.

Each of them works all the same, or ends with one sentence that names the file or its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agit_core import model_folder
from agit_core.errors import BadInput, RunFailed
from pipeline import records, run_status, storage, tasks
from pipeline.config import Config, parse
from pipeline.data.read.inspect import verify
from pipeline.inference import outputs
from pipeline.inference.inputs import Inputs, Item
from pipeline.launch import follow, specs
from pipeline.records import Data, Run
from pipeline.registry import audit
from pipeline.train import events
from pipeline.train.checkpoints import CheckpointStore
from tests.pipeline import fabricated_run
from tests.pipeline.training import TINY, untrained

pytestmark = pytest.mark.usefixtures("small_inception")

EVALUATE = {"subsets": 2, "subset_size": 3, "bootstrap": 10, "device": "cpu"}
KINDS: dict[str, Callable[[bytes], bytes | None]] = {
    "lost": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)) * 4,
    "other": lambda data: b'{"steps": [], "config": 5, "metrics": null, "step": "x", "time": {}}',
    "nested": lambda data: b"[" * 100_000,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("damage")
    return parse({**TINY, "storage": str(root), "evaluate": EVALUATE})


@pytest.fixture(scope="module")
def finished(config: Config) -> tuple[Data, Run]:
    """A run with every file that the stages leave; a registration without a registry, to be quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        data = tasks.prepare(config)
        run = untrained(config, data)
        spec = specs.spec_of(config, data.uri, run.run_id)
        specs.write_spec(spec, 1, records.Owner())
        records.PROGRESS.write(run.uri, records.Progress(state="finished", time=1.0))
        records.ALIVE.write(run.uri, records.Alive(time=1.0))
        records.START.write(run.uri, records.Start(uri="there", digest="0"))
        scores = records.Scores(step=run.result.steps, metrics={"kid_target": 0.1})
        records.score_file(scores.step).write(storage.join(run.uri, records.SCORES), scores)
        fabricated_run.samples(Path(run.uri), every=300, images=1)
        fabricated_run.metrics(Path(run.uri))
        events.record(run.uri, "started", step=0)
        evaluation = tasks.evaluate(config, data, run)
        source = Path(config.storage) / "models/tiny"
        model = model_folder.read(run.result.checkpoint)
        model_folder.write(source, "tiny", model.method, model.image_size, model.weights)
        registration = records.Registration(name="tiny", version=1, aliases=[], source=str(source))
        records.REGISTRATION.write(run.uri, registration)
        tasks.summarize(config, run, evaluation, registration, tasks.report(config, data, run.uri))
    return data, run


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _files(root: Path, kind: str = "cut") -> list[Path]:
    """One file of each kind: the first event, row of metrics, sample and strip stand for the others."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and (kind in {"lost", "cut"} or path.suffix in {".json", ".jsonl"}):
            parts = path.relative_to(root).parts
            series = parts[0] in {
                records.METRICS,
                records.EVENTS,
                records.PICTURES,
                records.SAMPLES,
                records.SCORES,
            }
            found.setdefault(f"{parts[0]}/*{path.suffix}" if series else "/".join(parts), path)
    return list(found.values())


@contextlib.contextmanager
def _damaged(path: Path, kind: str) -> Iterator[None]:
    was, backup = path.read_bytes(), path.with_name(f"{path.name}.backup")
    shutil.copy2(path, backup)
    content = KINDS[kind](was)
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.parent.mkdir(exist_ok=True)
        os.replace(backup, path)


def _tried(path: Path, commands: dict[str, Callable[[], object]]) -> list[str]:
    """What a command made of it that is neither an answer nor one sentence about this file or its folder."""
    wrong = []
    for name, command in commands.items():
        try:
            command()
        except (BadInput, RunFailed) as error:
            # what is not there was never made, as far as can be seen
            told = (str(path), str(path.parent), *([] if path.exists() else ["agit train"]))
            if "\n" in str(error) or not any(part in str(error) for part in told):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    return wrong


def _done(config: Config) -> object:
    """Reading what the registry's file guards."""
    database = Path(config.storage) / "mlflow.db"
    database.touch()
    os.utime(database, (1, 1))
    try:
        return tasks.already_done(config)
    finally:
        database.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_file_of_a_run_ends_a_command_in_a_traceback(
    kind: str, config: Config, finished: tuple[Data, Run]
) -> None:
    data, run = finished
    commands: dict[str, Callable[[], object]] = {
        "done": lambda: _done(config),
        "runs": lambda: run_status.rows(run_status.list_runs(config.storage)),
        "status": lambda: run_status.describe(run_status.status(run.uri)),
        "known": lambda: tasks.known(config, run.uri),
        "evaluate": lambda: tasks.evaluate(config, data, tasks.trained(config, data)),
        "checkpoint": lambda: CheckpointStore(run.uri, 2, "loss").load_newest(),
        "best": lambda: [CheckpointStore(run.uri, 2, by).best() for by in ("cycle", "kid_target")],
        "last": lambda: run_status.model_checkpoint(run.uri),
    }
    if kind in {"cut", "nested"}:  # it takes the longest
        commands["report"] = lambda: tasks.report(config, data, run.uri)
    names = [path.relative_to(run.uri).as_posix() for path in _files(Path(run.uri))]
    expected = {file.name for file in vars(records).values() if isinstance(file, records.File)}
    assert {Path(name).name for name in names} >= expected - {"manifest.json"}, "a kind of file is not tried"
    wrong = []
    for path in _files(Path(run.uri), kind):
        with _damaged(path, kind):
            wrong += [f"{path.relative_to(run.uri)}: {text}" for text in _tried(path, commands)]
    assert wrong == []
    for mark in Path(run.uri).rglob("damaged.json"):
        mark.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_file_of_a_data_set_is_used(kind: str, config: Config, finished: tuple[Data, Run]) -> None:
    data, run = finished
    commands: dict[str, Callable[[], object]] = {
        "find": lambda: tasks.find_prepared(config),
        "verify": lambda: verify(data.uri),
        "report": lambda: tasks.report(config, data, run.uri),
        "evaluate": lambda: tasks.evaluate_model(config, data, run.result.checkpoint),
    }
    wrong = []
    for path in _files(Path(data.uri), kind):
        name = path.relative_to(data.uri).as_posix()
        with _damaged(path, kind):
            wrong += [f"{name}: {text}" for text in _tried(path, commands)]
            if "train" not in name and path.suffix != ".md":  # the card is for people
                with pytest.raises(BadInput):
                    tasks.evaluate_model(config, data, run.result.checkpoint)
    assert wrong == []


def test_scores_are_made_again_and_a_damaged_checkpoint_sends_the_run_back(
    config: Config, finished: tuple[Data, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = finished
    before = json.loads(storage.read_text(records.EVALUATION.uri(run.uri)))
    with _damaged(Path(records.EVALUATION.uri(run.uri)), "cut"):
        assert tasks.evaluate(config, data, run).metrics == before["metrics"]
    weights = Path(run.result.checkpoint) / "networks.pt"

    class JobAsked(Exception):
        pass

    def job(*arguments: object) -> object:
        raise JobAsked

    monkeypatch.setattr(follow, "run_job", job)  # trained for real in the tests of the job
    with _damaged(weights, "garbage"):
        assert tasks.train(config, data).reused, "the model is registered already"
    with _damaged(Path(records.REGISTRATION.uri(run.uri)), "empty"), _damaged(weights, "garbage"):
        result = Path(records.RESULT.uri(run.uri)).read_bytes()
        with pytest.raises(JobAsked):
            tasks.train(config, data)
        assert not records.RESULT.exists(run.uri)
        Path(records.RESULT.uri(run.uri)).write_bytes(result)
    with _damaged(Path(records.RESULT.uri(run.uri)), "cut"), pytest.raises(JobAsked):
        tasks.train(config, data)
    assert tasks.train(config, data).reused


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_audit_event_is_left_out_and_named(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        audit.record(str(tmp_path), "x", f"{number}", action="promote", version=number, champion=number)
    with _damaged(tmp_path / "models/x/audit/1.json", kind):
        assert [event["version"] for event in audit.events(str(tmp_path), "x", {})] == [2]
        assert kind == "lost" or "1.json is damaged" in caplog.text
    assert [event["version"] for event in audit.events(str(tmp_path), "x", {})] == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_damaged_journal_translations_count_as_those_of_another(kind: str, tmp_path: Path) -> None:
    found = Inputs("folder", [Item("a.png", "in/a.png")], [])

    def planned(overwrite: bool = False) -> outputs.Plan:
        return outputs.plan(found, "in", str(tmp_path), False, {"model": "0"}, overwrite)

    planned()
    (tmp_path / "a.png").write_bytes(b"x")
    assert planned().skipped == 1
    with _damaged(tmp_path / outputs.JOURNAL, kind):
        with pytest.raises(BadInput, match="exists and comes from another"):
            planned()
        assert [target for _, target in planned(overwrite=True).todo] == [str(tmp_path / "a.png")]
