"""Whether a command line is valid, by the command's own parser; nothing is run."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
from pathlib import Path
from typing import Any


class Unknown(Exception):
    """The command line would fail."""


def check(words: list[str]) -> None:
    """Parses a command line of one of the programs that the image holds.

    Raises:
        Unknown: no such program, command or option, or an argument is missing.
    """
    program, *arguments = words
    match program:
        case "agit":
            follow(_agit(), arguments)
        case "ray":
            from ray.scripts.scripts import cli

            follow(cli, arguments)
        case "mlflow":
            from mlflow.cli import cli

            follow(cli, arguments)
        case "prefect":
            _prefect(arguments)
        case "python" if arguments[:1] == ["-m"]:
            if importlib.util.find_spec(arguments[1]) is None:
                raise Unknown(f"there is no module {arguments[1]}")
            if arguments[1] == "infra.register":
                from infra.register import TYPES

                if not set(arguments[2:]) <= set(TYPES):
                    raise Unknown(f"infra.register knows {', '.join(TYPES)}")
        case "python" if arguments[:1] == ["-c"]:
            compile(arguments[1], "<command>", "exec")
        case _:
            raise Unknown(f"{program} is not a program of the image")


def tool(name: str) -> str:
    """The path of a checking program that the dev extra installs.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise FileNotFoundError(f"{name} is missing beside {sys.executable}; run `make setup`")
    return found


def _agit() -> Any:
    import typer

    from pipeline.cli.main import app

    return typer.main.get_command(app)


def follow(command: Any, arguments: list[str]) -> None:
    """Follows a command line into its subcommands; typer brings a click of its own, so classes go by name."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            context = command.make_context(command.name or "", list(arguments))
        if hasattr(command, "resolve_command"):
            rest = [*getattr(context, "_protected_args", []), *context.args]
            _, found, rest = command.resolve_command(context, rest)
            follow(found, rest)
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "Exit" in kinds:  # --help and --version end the program in good order
            return
        if "UsageError" in kinds:
            raise Unknown(f"{' '.join(arguments)}: {error}") from None
        raise


def _prefect(arguments: list[str]) -> None:
    from prefect.cli._app import _app

    # the only global options in use here; they stand before the command
    while arguments and arguments[0] in {"--no-prompt", "--prompt"}:
        arguments = arguments[1:]
    try:
        _app.parse_args(arguments, exit_on_error=False, print_error=False)
    except Exception as error:
        raise Unknown(f"prefect {' '.join(arguments)}: {error}") from None
