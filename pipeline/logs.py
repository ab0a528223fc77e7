"""Log lines: for people, or with ``AGIT_LOG=json`` one JSON object per line with run, step and rank.

The variable is inherited by the training job and handed to a cluster, so one setting reaches every process:
``{"time": ..., "level": "INFO", "logger": "pipeline.train.worker", "message": "step 20 of 700", "run_id":
"demo-1a2b", "rank": 0, "step": 20, "losses": {...}}``. What a job prints that is such a line already, also behind
Ray's prefix, is passed on as it is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from agit_core.errors import BadInput
from pipeline.redact import redact

VARIABLE = "AGIT_LOG"
OURS = ("pipeline", "agit_core")
_TEXT = "%(levelname)s %(name)s: %(message)s"
# (RayTrainWorker pid=123, ip=10.0.0.4) {...}, with or without colours
_RAY_PREFIX = re.compile(r"^(?:\x1b\[\d+m)?\([^)]* pid=\d+[^)]*\)(?:\x1b\[0m)? *")
_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(0x20), *range(0x7F, 0xA0)) if n != ord("\n")}
_context: dict[str, Any] = {}


def as_json() -> bool:
    """Whether log lines are JSON objects.

    Raises:
        BadInput: the variable says neither ``json`` nor ``text``.
    """
    chosen = os.environ.get(VARIABLE) or "text"
    if chosen not in ("json", "text"):
        raise BadInput(f"{VARIABLE}={chosen} is not known; set it to json or text, or leave it out")
    return chosen == "json"


def bind(**fields: Any) -> None:
    """Adds fields to every later line of this process: a process trains one run at a time."""
    _context.update(fields)


def set_up(stream: TextIO | None = None, text: str = _TEXT) -> None:
    """Gives the root logger one handler; in JSON our own loggers tell everything from INFO on.

    Args:
        text: format of lines for people.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if as_json() else TextLines(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    if as_json():
        for name in OURS:
            logging.getLogger(name).setLevel(logging.INFO)


def printable(text: str) -> str:
    """Text with control characters made visible (``\\x1b``): a terminal obeys them, and files' names may hold any."""
    return text.translate(_CONTROLS)


class TextLines(logging.Formatter):
    """Lines for people, without credentials; libraries log the addresses that they call."""

    def format(self, record: logging.LogRecord) -> str:
        return str(redact(super().format(record)))


class JsonLines(logging.Formatter):
    """A record as one line; ``extra={"fields": {...}}`` of a log call become additional keys."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if (passed := _already(message)) is not None:
            return passed
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
            **_context,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(redact(line), default=str)


def _already(message: str) -> str | None:
    """The JSON line that a process of ours has written, out of what Ray made of it."""
    rest = _RAY_PREFIX.sub("", message)
    if not rest.startswith('{"time": '):
        return None
    try:
        line = json.loads(rest)
    except ValueError:
        return None
    return rest if isinstance(line, dict) and {"level", "logger", "message"} <= line.keys() else None
