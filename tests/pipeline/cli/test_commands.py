from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console

from infra.stack_state import free_port
from pipeline import progress
from pipeline.cli import output, show
from tests.pipeline.command import agit, environment, tiny_config
from tests.pipeline.s3 import S3Server

CONTRACT = ("run", "prepare", "train", "tune", "evaluate", "report", "translate", "export", "doctor")


def test_help_names_every_command_of_the_contract(tmp_path: Path) -> None:
    called = agit("--help", cwd=tmp_path)
    assert called.status == 0
    assert all(f" {name} " in called.out for name in CONTRACT)


def test_version_and_schema_are_printed(tmp_path: Path) -> None:
    called = agit("--version", cwd=tmp_path)
    assert (called.status, called.out) == (0, f"agit {metadata.version('agit')}\n")
    plain, as_json = (
        agit("config", "--schema", cwd=tmp_path),
        agit("config", "--schema", "--json", cwd=tmp_path),
    )
    assert plain.answer == as_json.answer
    assert plain.answer == json.loads(Path("pipeline/configs/schema.json").read_text()), "nothing is redacted"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("config",), "give a CONFIG"),
        (("run", "demo", "--set", "train.max_stepss=3"), "did you mean 'max_steps'"),
        (("run", "demp"), "did you mean 'demo'"),
        (("run",), "Missing argument 'CONFIG'"),
        (("run", "demo", "--fast"), "No such option: --fast"),
        (("frobnicate",), "No such command"),
        (("prepare", "demo", "--set", "data.source=./nowhere"), "nowhere"),
        (("prepare", "demo", "--set", "storage=ftp://host/x"), "ftp"),
        (("status", "nobody"), "no run 'nobody'"),
        (("train", "tiny.yaml", "--json"), "tiny.yaml"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    called = agit(*arguments, cwd=tmp_path)
    assert called.status == 2
    assert called.out == ""
    assert sentence in called.last_line
    assert called.last_line.startswith("agit: ")
    assert "Traceback" not in called.err


def test_a_working_directory_that_was_removed_is_named(tmp_path: Path) -> None:
    command = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m pipeline.cli prepare demo'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.endswith("agit: the working directory was removed; change to one that exists\n")


@pytest.mark.parametrize("group", [(), ("data",)])
def test_without_a_command_there_is_help_and_the_cause(tmp_path: Path, group: tuple[str, ...]) -> None:
    called = agit(*group, cwd=tmp_path)
    assert called.status == 2
    assert "Commands" in called.out
    assert re.fullmatch(
        f"agit: no command was given \\(see `.*{' '.join(group)} --help`\\)", called.last_line
    )


def test_json_is_one_object_alone_on_standard_output(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    first = agit("prepare", config, "--json", cwd=tmp_path)
    assert first.status == 0, first.err
    assert first.answer["rows"] == {"trainA": 6, "trainB": 6, "testA": 4, "testB": 4}
    assert first.answer["reused"] is False
    assert "prepare" in first.err

    second = agit("prepare", config, "--json", cwd=tmp_path)
    assert second.answer == {**first.answer, "reused": True}
    assert "reused" in second.err


def test_evaluate_and_report_ask_for_the_training_first(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for command in ("evaluate", "report"):
        called = agit(command, config, "--json", cwd=tmp_path)
        assert called.status == 2
        assert "agit train" in called.last_line
        assert called.out == ""
        assert not (tmp_path / ".agit").exists() or not list((tmp_path / ".agit").rglob("*.parquet"))
    assert agit("prepare", config, cwd=tmp_path).status == 0
    for command in ("evaluate", "report"):
        called = agit(command, config, "--json", cwd=tmp_path)
        assert called.status == 2
        assert "run tiny-" in called.last_line
        assert "agit train" in called.last_line


def test_storage_that_does_not_answer_is_told_before_any_work(tmp_path: Path) -> None:
    called = agit(
        "prepare",
        tiny_config(tmp_path),
        "--set",
        "storage=s3://nobody/prefix",
        cwd=tmp_path,
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
    )
    assert called.status == 2
    assert "does not answer" in called.last_line


def test_wrong_credentials_and_missing_buckets_are_told(tmp_path: Path, s3: S3Server) -> None:
    config = tiny_config(tmp_path)
    wrong = agit("prepare", config, "--set", f"storage={s3.uri}", cwd=tmp_path, AWS_SECRET_ACCESS_KEY="wrong")
    assert wrong.status == 2
    assert "credentials" in wrong.last_line
    missing = agit("prepare", config, "--set", "storage=s3://not-there/x", cwd=tmp_path)
    assert missing.status == 2
    assert "not-there" in missing.last_line


def _executed(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command line in a separate process."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def test_an_unexpected_failure_ends_with_its_cause_and_keeps_the_traceback(tmp_path: Path) -> None:
    code = """
import sys, typer
from pipeline.cli import output
app = typer.Typer()
@app.command()
def broken(debug: output.Debug = False):
    raise ZeroDivisionError("of all things")
@app.command()
def other(): ...
sys.exit(output.execute(app))
"""
    for arguments, shown in (((), False), (("--debug",), True)):
        done = _executed(code, tmp_path, "broken", *arguments)
        assert done.returncode == 1
        assert "of all things" in done.stderr.splitlines()[-1]
        assert "same command" in done.stderr.splitlines()[-1]
        assert ("Traceback" in done.stderr) is shown
        assert "ZeroDivisionError" in (tmp_path / ".agit/last-error.log").read_text()


def test_square_brackets_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a[/b] [red]c.png"
    show.table_of([{"run": "r1", "message": text, "aliases": ["[/x]", "[d]"]}], ["run", "message", "aliases"])
    show.findings(
        {"ok": False, "checks": [{"name": text, "state": "missing", "found": text, "remedy": text}]}
    )
    shown = capsys.readouterr().out
    assert shown.count(text) == 4
    assert "[/x], [d]" in shown
    assert "[red]missing" not in shown


def test_square_brackets_in_what_a_running_stage_says() -> None:
    console = Console(force_terminal=True, width=100, record=True)
    bars = progress.Bars(console)
    bars.begin("prepare")
    bars.update("prepare", progress.Status(done=1, total=2, message="a[/b].png"))
    bars.close()
    assert ", a[/b].png" in console.export_text()


def test_control_characters_in_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name, seen = "\x1b[2J\x9b\x7f\b", r"\x1b[2J\x9b\x7f\x08"
    show.lines([name, "one\ntwo"])
    show.mapping({"file": name, "files": [name], name: {name: 1}})
    show.table_of([{"name": name}], ["name"])
    show.findings({"ok": True, "checks": [{"name": name, "state": "ok", "found": name, "remedy": name}]})
    show.prepared(
        {
            "quarantined": {"trainA": [{"name": name, "reason": name}]},
            "notes": {"trainA": [{"name": name, "reason": name}]},
            "left_out": [{"name": name, "reason": name}],
            "leaks": [[name, name]],
            "near_leaks": [],
            "duplicates": "keep",
            "data": name,
            "domains": {"a": name},
            "rows": {},
            "duplicate_groups": 0,
            "near_groups": 0,
        }
    )
    assert output._fail(2, name) == 2
    recorded = Console(force_terminal=True, width=200, record=True, file=io.StringIO())
    for make in (lambda: progress.Lines(every=0), lambda: progress.Bars(recorded)):
        display: progress.Display = make()
        display.begin("prepare")
        display.update("prepare", progress.Status(done=1, message=name))
        display.note(name)
        display.close()
        display.end("prepare", name, ok=True)
    shown = capsys.readouterr()
    bar = recorded.export_text()
    assert not set(shown.out + shown.err + bar) & set("\x1b\x9b\x7f\b")
    assert "one\ntwo" in shown.out
    assert (shown.out.count(seen), shown.err.count(seen), bar.count(seen)) == (19, 4, 3)


def test_an_answer_that_cannot_be_shown_ends_as_any_failure(tmp_path: Path) -> None:
    code = """
import sys, typer
from pipeline.cli import output
app = typer.Typer()
@app.command()
def unseen(json: output.Json = False):
    def show(value):
        raise ZeroDivisionError("of all things")
    return output.Answer({"a": {1: {2}}, (1, 2): 3}, show)
@app.command()
def other(): ...
sys.exit(output.execute(app))
"""
    for arguments, sentence in (
        ((), "ZeroDivisionError: of all things"),
        (("--json",), "TypeError: keys must be"),
    ):
        done = _executed(code, tmp_path, "unseen", *arguments)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert sentence in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_not_a_traceback(tmp_path: Path, sent: signal.Signals) -> None:
    code = """
import sys, time, typer
from pipeline.cli import output
app = typer.Typer()
@app.command()
def slow():
    print("ready", flush=True)
    time.sleep(600)
@app.command()
def other(): ...
sys.exit(output.execute(app))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "slow"],
        cwd=tmp_path,
        env=environment(),
        stdout=-1,
        stderr=-1,
        text=True,
        # a suite that a shell started in the background has inherited that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "interrupted" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("ours", [r"pipeline(\.cli(\.start)?)?|__future__", r"(?!typer).*"])
def test_an_interruption_while_the_commands_are_imported_is_one_line(
    tmp_path: Path, sent: str, ours: str
) -> None:
    """It comes with the first import that is neither ours nor the interpreter's own, or in the middle of all."""
    code = f"""
import _signal, os, re, sys
for name in {{"signal", "enum", "typing"}} & set(sys.modules):
    del sys.modules[name]
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if not re.fullmatch({ours!r}, name):
            os.kill(os.getpid(), _signal.{sent})
_signal.signal(_signal.SIGINT, _signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
from pipeline.cli import start
start.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "agit: interrupted; run the same command again to resume\n"


def test_config_shows_what_a_run_would_take(tmp_path: Path) -> None:
    written = agit("config", "demo", "--set", "train.max_steps=5", "-o", "full.yaml", cwd=tmp_path)
    assert written.status == 0, written.err
    again = agit("config", "full.yaml", "--json", cwd=tmp_path)
    assert again.answer["train"]["max_steps"] == 5
    assert again.answer == agit("config", "demo", "--set", "train.max_steps=5", "--json", cwd=tmp_path).answer
