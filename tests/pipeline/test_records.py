"""The files of a run: what is read, what is missing, what is damaged, and that no other module spells their names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import pipeline
from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.records import RESULT, SPEC, Damaged, Result


def test_a_result_of_an_earlier_version_is_read_and_what_a_later_one_adds_is_kept(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert RESULT.read(folder) is None
    storage.write_json(RESULT.uri(folder), {"steps": 4, "checkpoint": "here", "invented": {"later": 1}})
    result = RESULT.read(folder)
    assert result is not None
    assert (result.steps, result.checkpoint, result.samples) == (4, "here", [])
    RESULT.write(folder, result)
    assert storage.read_json(RESULT.uri(folder))["invented"] == {"later": 1}
    assert RESULT.read(folder) == result


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"steps": 4, "chec', "it is not valid JSON"),
        (b"\xff\xfe\x00", "it is not valid JSON"),
        (b"[]", "it does not hold an object"),
        (b'{"steps": 4}', "checkpoint: field required"),
        (b'{"steps": "many", "checkpoint": ""}', "steps: input should be a valid integer"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_says_what_to_do(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        RESULT.read(str(tmp_path))
    assert isinstance(caught.value, BadInput), "exit status 2, and no traceback"
    assert str(file) in str(caught.value)
    assert reason in str(caught.value)
    assert "agit train" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert RESULT.peek(str(tmp_path)) is None


def test_rows_of_a_resumed_run_count_once_and_unreadable_ones_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / records.METRICS
    folder.mkdir()
    (folder / "00000020.jsonl").write_text('{"step": 10, "x": 1}\n{"step": 20, "x": 1}\n')
    (folder / "00000030.jsonl").write_text('{"step": 20, "x": 2}\n{"step": 30, "x"\n\n')
    rows, unreadable = records.metric_rows(str(tmp_path))
    assert rows == [{"step": 10, "x": 1}, {"step": 20, "x": 2}]
    assert unreadable == 1


def test_the_newest_samples_are_taken_from_both_directions(tmp_path: Path) -> None:
    assert records.newest_samples(str(tmp_path), each=2) == []
    for step in (100, 200):
        for name in ("a2b-0.png", "a2b-1.png", "a2b-2.png", "b2a-0.png", "samples.json"):
            storage.write_bytes(storage.join(records.sample_folder(str(tmp_path), step), name), b"")
    names = [
        uri.removeprefix(f"{tmp_path}/samples/") for uri in records.newest_samples(str(tmp_path), each=2)
    ]
    assert names == [f"step-00000200/{name}" for name in ("a2b-0.png", "a2b-1.png", "b2a-0.png")]


def test_no_other_module_spells_the_name_of_a_runs_file() -> None:
    files = [file for file in vars(records).values() if isinstance(file, records.File)]
    assert {RESULT, SPEC} <= set(files)
    names = "|".join(re.escape(name) for name in {file.name for file in files} | {records.REPORT})
    spelled = re.compile(rf"""["'/](?:{names})["']""")
    package = Path(str(pipeline.__file__)).parent
    others = [path for path in package.rglob("*.py") if "records" not in path.parts]
    assert len(others) > 100
    found = {path.name: match[0] for path in others if (match := spelled.search(path.read_text()))}
    assert found == {}


def test_a_result_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Result(steps=1, checkpoint="").steps = 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (SPEC, {"run_id": "h2z-1", "attempt": 2, "owner": {"host": "h", "of_another_version": 1}}),
        (records.EVALUATION, {"metrics": {"kid_mean": 0.1}, "of_another_version": {"a": None}}),
        (
            records.MANIFEST,
            {
                "format": 1,
                "splits": {
                    "trainA": {"rows": 3, "shards": [{"path": "p", "rows": 3, "bytes": 9, "sha256": "0"}]}
                },
                "duplicates": {"policy": "report", "of_another_version": 8},
            },
        ),
        (records.REGISTRATION, {"name": "h2z", "version": "4", "source": "m", "aliases": [], "decision": {}}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_file_of_another_version_is_read_and_written_without_loss(
    tmp_path: Path, file: records.File[Any], content: dict[str, Any]
) -> None:
    storage.write_json(file.uri(str(tmp_path)), content)
    value = file.read(str(tmp_path))
    assert value is not None
    file.write(str(tmp_path), value)
    known = content | ({"version": 4} if "version" in content else {})
    assert storage.read_json(file.uri(str(tmp_path))) == known
