"""``agit-stack up|down|status``: the whole development stack on loopback.

An S3 server (rclone), a Prefect server, an MLflow server, a Ray head and one Prefect worker, supervised by supervisord,
with the deployments registered. All state is in ``./.agit/stack``.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from filelock import FileLock

from agit_core.errors import RunFailed
from infra import stack_programs, stack_supervisor
from infra.stack_programs import Program
from infra.stack_state import BUCKET, Stack, folder_of
from pipeline.cli import output, show
from pipeline.cli.output import Answer, Debug, Json

app = typer.Typer(
    name="agit-stack",
    help="Run a development stack for this folder on loopback: S3, Prefect, MLflow, Ray and a Prefect worker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def up(
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Use free ports instead of 4200, 5000, 8265 and 9000.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Start whatever is not running, register the deployments, and show the addresses.

    Then, in the same folder: `. .agit/stack/env` and `prefect deployment run agit/train-demo --watch`.
    """
    root = Path.cwd()
    with _alone(root):
        stack = Stack.find(root)
        if stack is not None and not stack_supervisor.alive(stack):
            _say("the supervisor of the previous stack is gone; stopping the processes that it left")
            stack_supervisor.stop(stack)
            stack = None
        packages = stack_programs.mlflow_packages()
        fresh = stack is None
        stack = stack or Stack.new(root, free_ports)
        programs = stack_programs.programs(stack, packages)
        try:
            if fresh:
                (stack.folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
                stack.save()  # before anything runs, so that `down` finds the stack after any failure
                stack_supervisor.start(stack, programs)
            _start(stack, programs)
        except BaseException:
            if fresh:
                stack_supervisor.stop(stack)
                stack.forget()
            raise
    return Answer(_status(stack, programs), _show)


@app.command()
def down(json: Json = False, debug: Debug = False) -> Answer:
    """Stop all processes of the stack, if necessary by force; the data stays in .agit/stack."""
    root = Path.cwd()
    with _alone(root):
        stack = Stack.find(root)
        if stack is None:
            return Answer({"up": False, "killed": 0}, lambda _: _say("there is no stack in this folder"))
        killed = stack_supervisor.stop(stack)
        stack.forget()
    message = f"the stack is down; its data stays in {stack.folder}"
    return Answer({"up": False, "killed": len(killed)}, lambda _: _say(message))


@app.command()
def status(json: Json = False, debug: Debug = False) -> Answer:
    """Show each program, its address, and whether it responds; exit status 0 if all do, else 1."""
    stack = Stack.find(Path.cwd())
    if stack is None:
        empty: dict[str, Any] = {"up": False, "programs": []}
        return Answer(empty, None, "there is no stack in this folder; start one with agit-stack up")
    state = _status(stack, stack_programs.programs(stack, stack_programs.mlflow_packages()))
    silent = ", ".join(item["name"] for item in state["programs"] if not item["answers"])
    return Answer(
        state, _show, f"{silent} does not respond; see the logs in {state['logs']}" if silent else None
    )


def _start(stack: Stack, programs: list[Program]) -> None:
    *servers, worker = programs
    # one at a time: Ray gives up if its start takes longer than 30 s
    for program in servers:
        stack_supervisor.run(stack, program.name)
        stack_supervisor.wait_until_ready(stack, program)
        _say(f"{program.name}: {program.url}")
    _say("registering the deployments")
    log = stack.logs / "register.log"
    with log.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "infra.register", "process"],
            cwd=stack.root,
            env=stack.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    if done.returncode != 0:
        raise RunFailed(f"the deployments could not be registered; see {log}")
    stack_supervisor.run(stack, worker.name)
    stack_supervisor.wait_until_ready(stack, worker)


def _status(stack: Stack, programs: list[Program]) -> dict[str, Any]:
    states = stack_supervisor.states(stack) if stack_supervisor.alive(stack) else {}
    rows = []
    for program in programs:
        state = states.get(program.name, {"state": "STOPPED", "pid": 0})
        responds = state["state"] == "RUNNING" and stack_supervisor.answers(program)
        rows.append({"name": program.name, **state, "url": program.url, "answers": responds})
    return {
        "up": all(item["answers"] for item in rows),
        "programs": rows,
        "logs": str(stack.logs),
        "env": str(stack.env_file),
    }


def _show(status: dict[str, Any]) -> None:
    rows = [
        {**item, "answers": "yes" if item["answers"] else "no", "url": item["url"] or ""}
        for item in status["programs"]
    ]
    show.table_of(rows, ["name", "state", "pid", "url", "answers"])
    _say(f"logs: {status['logs']}")
    _say(f"for this shell: . {status['env']}")


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    folder_of(root).mkdir(parents=True, exist_ok=True)
    folder_of(root).chmod(0o700)  # it holds the servers' databases and logs
    with FileLock(folder_of(root) / "lock"):
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(output.execute(app))


if __name__ == "__main__":
    main()
