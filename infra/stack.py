"""``agit-stack up|down|status``: the whole development stack on loopback, with one command.

An S3 server (rclone), Prefect's server, MLflow's server, a Ray head and one Prefect worker, kept alive by
supervisord, with the deployments registered. Everything lives in ``./.agit/stack``.
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
    help="The development stack of this folder: S3, Prefect, MLflow, Ray and a worker, on loopback.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def up(
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take free ports instead of 4200, 5000, 8265 and 9000.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> Answer:
    """Start what does not run yet, register the deployments, and say where everything is."""
    root = Path.cwd()
    with _alone(root):
        stack = Stack.find(root)
        if stack is not None and not stack_supervisor.alive(stack):
            _say("the supervisor of the stack before is gone; what it left is ended")
            stack_supervisor.stop(stack)
            stack = None
        packages = stack_programs.mlflow_packages()
        fresh = stack is None
        stack = stack or Stack.new(root, free_ports)
        found = stack_programs.programs(stack, packages)
        try:
            if fresh:
                (stack.folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
                stack.save()  # before anything runs, so that whatever happens `down` finds it
                stack_supervisor.start(stack, found)
            _start(stack, found)
        except BaseException:
            if fresh:
                stack_supervisor.stop(stack)
                stack.forget()
            raise
    return Answer(_status(stack, found), _show)


@app.command()
def down(json: Json = False, debug: Debug = False) -> Answer:
    """Stop everything and make sure that no process is left; the data stays in .agit/stack."""
    root = Path.cwd()
    with _alone(root):
        stack = Stack.find(root)
        if stack is None:
            return Answer({"up": False, "killed": 0}, lambda _: _say("there is no stack in this folder"))
        killed = stack_supervisor.stop(stack)
        stack.forget()
    told = f"the stack is down; its data stays in {stack.folder}"
    return Answer({"up": False, "killed": len(killed)}, lambda _: _say(told))


@app.command()
def status(json: Json = False, debug: Debug = False) -> Answer:
    """What runs, where, and whether it answers; status 0 when everything does, else 1."""
    stack = Stack.find(Path.cwd())
    if stack is None:
        nothing: dict[str, Any] = {"up": False, "programs": []}
        return Answer(nothing, None, "there is no stack in this folder; agit-stack up starts one")
    found = stack_programs.programs(stack, stack_programs.mlflow_packages())
    told = _status(stack, found)
    silent = ", ".join(item["name"] for item in told["programs"] if not item["answers"])
    return Answer(
        told, _show, f"{silent} does not answer; see the logs in {told['logs']}" if silent else None
    )


def _start(stack: Stack, found: list[Program]) -> None:
    *servers, worker = found
    # one after the other: Ray gives up when its own start takes longer than 30 s
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


def _status(stack: Stack, found: list[Program]) -> dict[str, Any]:
    known = stack_supervisor.states(stack) if stack_supervisor.alive(stack) else {}
    told = []
    for program in found:
        state = known.get(program.name, {"state": "STOPPED", "pid": 0})
        fine = state["state"] == "RUNNING" and stack_supervisor.answers(program)
        told.append({"name": program.name, **state, "url": program.url, "answers": fine})
    return {
        "up": all(item["answers"] for item in told),
        "programs": told,
        "logs": str(stack.logs),
        "env": str(stack.env_file),
    }


def _show(told: dict[str, Any]) -> None:
    rows = [
        {**item, "answers": "yes" if item["answers"] else "no", "url": item["url"] or ""}
        for item in told["programs"]
    ]
    show.table_of(rows, ["name", "state", "pid", "url", "answers"])
    _say(f"logs: {told['logs']}")
    _say(f"for this shell: . {told['env']}")


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    folder_of(root).mkdir(parents=True, exist_ok=True)
    folder_of(root).chmod(0o700)  # databases and logs of the servers lie in it
    with FileLock(folder_of(root) / "lock"):
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """The console script."""
    sys.exit(output.execute(app))


if __name__ == "__main__":
    main()
