"""Output and exit status of the commands.

With ``--json``, standard output contains exactly one JSON object; anything else that is printed goes to standard
error. Errors are one line; exit status 2 for a wrong call or configuration, 1 for a failed run.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from agit_core.errors import BadInput, RunFailed
from pipeline import logs
from pipeline.redact import redact

DONE, FAILED, WRONG_CALL = 0, 1, 2
_ERROR_LOG = Path(".agit/last-error.log")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_RESUME = "run the same command again to resume"


@dataclass
class Answer:
    """Result of a command."""

    value: Any
    """JSON-ready; printed by ``--json``."""
    show: Callable[[Any], None] | None = None
    """Prints ``value`` for people."""
    failure: str | None = None
    """Error message; if set, the exit status is 1."""
    public: bool = False
    """Describes names alone, some of which name secrets: printed without redaction."""


class _State:
    """State of the options that every command has."""

    debug = bool(os.environ.get("AGIT_DEBUG"))
    json_to: int | None = None


def _on_json(value: bool) -> bool:
    if value and _State.json_to is None:
        sys.stdout.flush()
        # descriptor 1 becomes standard error, also for child processes and C libraries
        _State.json_to = os.dup(1)
        os.dup2(2, 1)
    return value


def _on_debug(value: bool) -> bool:
    if value:
        _State.debug = True
        _log_from(logging.DEBUG)
    return value


Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON object.", callback=_on_json, is_eager=True),
]
Debug = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks and every log line.", callback=_on_debug, is_eager=True),
]


def _log_from(level: int) -> None:
    root = logging.getLogger()
    root.setLevel(level)
    for handler in root.handlers:
        # also on the handlers, because libraries set the levels of their loggers
        handler.setLevel(min(level, logging.INFO) if logs.as_json() else level)
        if level > logging.DEBUG:
            # redundant: progress is shown by pipeline.progress, failures by their exceptions
            handler.addFilter(lambda record: not record.name.startswith("prefect"))


def debugging() -> bool:
    return _State.debug


def execute(app: typer.Typer) -> int:
    """Run the command line and return the exit status; the last line on standard error names the cause of an error."""
    try:
        logs.set_up()
    except BadInput as error:
        return _fail(WRONG_CALL, str(error))
    _log_from(logging.DEBUG if _State.debug else logging.WARNING)
    try:
        # treat SIGTERM, e.g. from a scheduler, like Ctrl-C, so that the run's workers and servers are stopped
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if callable(signal.getsignal(signal.SIGINT)):  # not if the shell has it ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
        outcome = app(standalone_mode=False)
        if outcome == 130:  # typer's exit code for Ctrl-C
            return _fail(FAILED, f"interrupted; {_RESUME}")
        return _answer(outcome)
    except BadInput as error:
        return _fail(WRONG_CALL, str(error))
    except RunFailed as error:
        return _fail(FAILED, f"{str(error).rstrip('.')}; {_RESUME}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt:
        return _fail(FAILED, f"interrupted; {_RESUME}")
    except Exception as error:
        if _interrupted(error):
            return _fail(FAILED, f"interrupted; {_RESUME}")
        if hasattr(error, "format_message"):
            return _fail(WRONG_CALL, _usage(error))
        if isinstance(error, FileNotFoundError) and not _in_a_folder():
            return _fail(WRONG_CALL, "the working directory was removed; change to one that exists")
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            where = (
                error.filename
                or f"one of the working directory, the storage and {tempfile.gettempdir()} (TMPDIR)"
            )
            return _fail(FAILED, f"cannot write {where}: {error.strerror}; make room, then {_RESUME}")
        return _fail(FAILED, f"{type(error).__name__}: {error}; {_RESUME} ({_keep(error)})")
    except BaseException as error:
        if not _interrupted(error):
            raise
        return _fail(FAILED, f"interrupted; {_RESUME}")


def _in_a_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _answer(outcome: Any) -> int:
    if isinstance(outcome, int):
        return outcome
    answer = outcome if isinstance(outcome, Answer) else Answer(outcome)
    if answer.value is None and answer.show is None:
        return DONE
    value = answer.value if answer.public else redact(answer.value)
    if _State.json_to is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        with os.fdopen(_State.json_to, "w") as out:
            from pipeline import storage  # imported late: loads fsspec

            out.write(json.dumps(storage.finite(value), indent=1, allow_nan=False, default=str) + "\n")
    elif answer.show is not None:
        answer.show(value)
    return DONE if answer.failure is None else _fail(FAILED, answer.failure)


def _usage(error: Any) -> str:
    """Format typer's usage error as one line."""
    # no_args_is_help: the message is the help text, which belongs on standard output
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        error.message = ""
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    # NoArgsIsHelpError has no message left
    return f"{error.format_message().rstrip('.') or 'no command was given'}{hint}"


def _fail(status: int, message: str) -> int:
    if _State.debug:
        print(redact(traceback.format_exc()), file=sys.stderr)
    sys.stdout.flush()
    print(f"agit: {logs.printable(redact(' '.join(message.split())))}", file=sys.stderr, flush=True)
    return status


def _interrupted(error: BaseException) -> bool:
    """Whether a signal is in the error's chain of causes: later errors, e.g. of a stopped server, follow from it."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, KeyboardInterrupt) or type(link).__name__ == "TerminationSignal":
            return True
        link = link.__cause__ or link.__context__
    return False


def _keep(error: BaseException) -> str:
    try:
        _ERROR_LOG.parent.mkdir(parents=True, exist_ok=True)
        _ERROR_LOG.write_text(redact("".join(traceback.format_exception(error))))
    except OSError:
        return "--debug shows the traceback"
    return f"traceback in {_ERROR_LOG}"
