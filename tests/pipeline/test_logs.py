"""Log lines as JSON: what each holds, what is passed on as it is, and that secrets stay out."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import logs, progress
from tests.pipeline.command import agit, tiny_config


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """JSON logs of this process, for one test."""
    monkeypatch.setenv("AGIT_LOG", "json")
    monkeypatch.setattr(logs, "_context", {})
    root, stream = logging.getLogger(), io.StringIO()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in logs.OURS}
    logs.set_up(stream)
    yield stream
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_carries_run_step_and_rank(written: io.StringIO) -> None:
    logs.bind(run_id="demo-1", rank=1, step=20)
    logging.getLogger("pipeline.x").info("at %d", 20, extra={"fields": {"losses": {"cycle_a": 0.5}}})
    logging.getLogger("somebody.else").info("chatter")
    [line] = _lines(written)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "pipeline.x",
        "message": "at 20",
        "run_id": "demo-1",
        "rank": 1,
        "step": 20,
        "losses": {"cycle_a": 0.5},
    }


def test_an_exception_stays_on_one_line(written: io.StringIO) -> None:
    try:
        raise ValueError("of all things")
    except ValueError:
        logging.getLogger("pipeline.x").exception("failed")
    [line] = _lines(written)
    assert "ValueError: of all things" in line["error"]


@pytest.mark.parametrize(
    "prefix", ["", "(RayTrainWorker pid=17) ", "\x1b[36m(RayTrainWorker pid=17, ip=10.0.0.4)\x1b[0m "]
)
def test_what_a_job_has_written_as_json_is_passed_on_as_it_is(written: io.StringIO, prefix: str) -> None:
    inner = '{"time": "t", "level": "INFO", "logger": "w", "message": "m", "rank": 3}'
    logging.getLogger("pipeline.train.output").info(prefix + inner)
    logging.getLogger("pipeline.train.output").info("%sno json {", prefix)
    passed, wrapped = _lines(written)
    assert passed == json.loads(inner)
    assert wrapped["message"] == f"{prefix}no json {{"


def test_secrets_do_not_reach_the_log(written: io.StringIO) -> None:
    logging.getLogger("pipeline.x").warning("cannot read %s", "https://user:hunter2@host/x")
    assert "hunter2" not in written.getvalue()
    assert "host/x" in written.getvalue()


def test_progress_is_told_in_figures(written: io.StringIO) -> None:
    with progress.shown_on(progress.for_terminal()), progress.stage("train") as stage:
        stage._display._last = -1e9  # type: ignore[attr-defined]
        stage({"step": 3, "total_steps": 9, "images_per_s": 2.5})
    lines = _lines(written)
    assert [line["stage"] for line in lines] == ["train"] * 3
    assert (lines[1]["done"], lines[1]["total"], lines[1]["images_per_s"]) == (3, 9, 2.5)
    assert lines[2]["ok"] is True


def test_a_command_writes_nothing_else_to_standard_error(tmp_path: Any) -> None:
    called = agit("prepare", tiny_config(tmp_path), "--json", cwd=tmp_path, AGIT_LOG="json")
    assert called.status == 0, called.err
    assert called.answer["rows"]["trainA"] == 6
    lines = [json.loads(line) for line in called.err.splitlines()]
    assert {"prepare"} == {line["stage"] for line in lines}


def test_an_unknown_format_is_a_wrong_call(tmp_path: Any) -> None:
    called = agit("presets", cwd=tmp_path, AGIT_LOG="jsno")
    assert (called.status, called.out) == (2, "")
    assert "AGIT_LOG=jsno" in called.last_line
