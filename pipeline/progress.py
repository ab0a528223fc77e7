"""Display of progress during a run: stage, step, images per second and remaining time.

A stage reports plain dicts (``{"step": 120, "total_steps": 600, "images_per_s": 41.0, "eta_s": 47}``; ``done`` and
``total`` work too), independently of the display: bars on a terminal, lines in a log, Prefect's logger in a worker. All
output goes to standard error; standard output is reserved for ``--json``.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agit_core.errors import BadInput, RunFailed
from pipeline import logs
from pipeline.redact import redact

if TYPE_CHECKING:  # imported late: slow, and needed on a terminal only
    from rich.console import Console
    from rich.progress import TaskID

log = logging.getLogger(__name__)
LINE_SECONDS = 5.0
STAGES = ("prepare", "train", "evaluate", "register", "report")
Listener = Callable[[str, "Status"], None]


@dataclass(frozen=True)
class Status:
    """Progress of a stage at one moment; None: unknown."""

    done: float | None = None
    total: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    message: str = ""
    unit: str = ""

    @staticmethod
    def of(event: Mapping[str, Any]) -> Status:
        """Parse a stage's event; unknown keys are ignored."""
        steps = event.get("total_steps") is not None or event.get("step") is not None
        losses = event.get("losses") or {}
        message = str(event.get("message") or "")
        if not message and event.get("state") == "starting":
            message = "starting the workers"
        if not message and losses:
            message = " ".join(
                f"{key} {'not a number' if value is None else format(value, '.3f')}"
                for key, value in list(losses.items())[:3]
            )
        if event.get("stage") in {"full", "masked"}:
            message = f"{event['stage']} discriminator" + (f", {message}" if message else "")
        return Status(
            done=_number(event.get("step" if steps else "done")),
            total=_number(event.get("total_steps" if steps else "total")),
            images_per_s=_number(event.get("images_per_s")),
            eta_s=_number(event.get("eta_s")),
            message=message,
            unit="step" if steps else str(event.get("unit") or "images"),
        )

    def line(self) -> str:
        """Format as one line, without unknown values."""
        parts = []
        if self.done is not None:
            of = f"/{self.total:.0f}" if self.total else ""
            count = f"{self.done:.0f}{of}"
            parts.append(f"step {count}" if self.unit == "step" else f"{count} {self.unit}")
        if self.images_per_s:
            parts.append(f"{self.images_per_s:.1f} images/s")
        if self.eta_s is not None:
            parts.append(f"{clock(self.eta_s)} left")
        if self.message:
            parts.append(self.message)
        return ", ".join(parts)


class Display(Protocol):
    """Output for the stages' progress."""

    def begin(self, stage: str) -> None: ...
    def update(self, stage: str, status: Status) -> None: ...
    def end(self, stage: str, message: str, ok: bool) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A line at a stage's start and end, and every few seconds in between."""

    def __init__(self, write: Callable[[str], None] | None = None, every: float = LINE_SECONDS) -> None:
        self._out = write or (lambda text: print(text, file=sys.stderr, flush=True))
        self._every = every
        self._last = 0.0
        self._shown = ""

    def begin(self, stage: str) -> None:
        self._write(f"{_place(stage)} ...")
        self._last, self._shown = time.monotonic(), ""

    def update(self, stage: str, status: Status) -> None:
        text = status.line()
        if text and text != self._shown and time.monotonic() - self._last >= self._every:
            self._last, self._shown = time.monotonic(), text
            self._write(f"{stage}: {text}")

    def end(self, stage: str, message: str, ok: bool) -> None:
        self._write(f"{stage}: {message}")

    def note(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        pass

    def _write(self, text: str) -> None:
        self._out(logs.printable(text))


class Records:
    """Log records with the stage's figures, for machine-readable logs (``AGIT_LOG=json``)."""

    def __init__(self, every: float = LINE_SECONDS) -> None:
        self._every = every
        self._last = 0.0

    def begin(self, stage: str) -> None:
        self._log(f"{stage} begins", stage)

    def update(self, stage: str, status: Status) -> None:
        if time.monotonic() - self._last >= self._every:
            figures = {key: value for key, value in vars(status).items() if value not in (None, "")}
            figures.pop("message", None)
            self._log(status.line(), stage, **figures)

    def end(self, stage: str, message: str, ok: bool) -> None:
        self._log(message, stage, ok=ok)

    def note(self, text: str) -> None:
        log.info(text)

    def close(self) -> None:
        pass

    def _log(self, message: str, stage: str, **fields: Any) -> None:
        self._last = time.monotonic()
        log.info("%s", message, extra={"fields": {"stage": stage, **fields}})


class Bars:
    """Terminal display with a bar per running stage; finished stages remain as lines above."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def begin(self, stage: str) -> None:
        self._tasks[stage] = self._bars.add_task(_place(stage), total=None, line="")

    def update(self, stage: str, status: Status) -> None:
        if stage in self._tasks:
            line = logs.printable(status.line())
            self._bars.update(self._tasks[stage], completed=status.done or 0, total=status.total, line=line)

    def end(self, stage: str, message: str, ok: bool) -> None:
        if stage in self._tasks:
            self._bars.remove_task(self._tasks.pop(stage))
        mark = "[green]✓[/green]" if ok else "[red]✗[/red]"
        self._console.print(f"{mark} [bold]{_place(stage)}[/bold]  ", end="", highlight=False)
        self._console.print(logs.printable(message), markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._console.print(logs.printable(text), markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()


_display: ContextVar[Display | None] = ContextVar("agit_display", default=None)
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("agit_listeners", default=())


def for_terminal() -> Display:
    """Choose a display: log records if logs are JSON, bars on a terminal, lines elsewhere (a pipe, CI)."""
    if logs.as_json():
        return Records()
    if not sys.stderr.isatty():
        return Lines()
    from rich.console import Console

    console = Console(stderr=True)
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines()


@contextlib.contextmanager
def shown_on(display: Display) -> Iterator[Display]:
    """Show every stage within the block on ``display``, and close it afterwards."""
    token = _display.set(display)
    try:
        yield display
    finally:
        _display.reset(token)
        display.close()


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Also call ``listener(stage, status)`` for every event within the block."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def note(text: str) -> None:
    """Show a line between the stages."""
    _current().note(text)


class Stage:
    """A running stage: call it with events; ``message`` is shown in its closing line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.message = "done"
        self.reused = False
        self._display = _current()
        self._listeners = _listeners.get()

    def __call__(self, event: Mapping[str, Any]) -> None:
        status = Status.of(event)
        self._display.update(self.name, status)
        for listener in self._listeners:
            listener(self.name, status)

    def reuse(self, message: str) -> None:
        """Mark the stage as reused: it had nothing to do."""
        self.message, self.reused = f"reused: {message}", True


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Show a stage from start to end with its duration; redacts credentials in the message of a failure."""
    running = Stage(name)
    display = running._display
    display.begin(name)
    start = time.monotonic()
    try:
        yield running
    except BaseException as error:
        if isinstance(error, BadInput | RunFailed):
            error.args = (redact(str(error)),)
        display.end(name, f"did not finish (after {clock(time.monotonic() - start)})", ok=False)
        raise
    display.end(name, f"{running.message} ({clock(time.monotonic() - start)})", ok=True)


def clock(seconds: float) -> str:
    """Format seconds: ``75`` as ``1:15``, ``3700`` as ``1:01:40``."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def _place(stage_name: str) -> str:
    if stage_name in STAGES:
        return f"[{STAGES.index(stage_name) + 1}/{len(STAGES)}] {stage_name}".replace("[", "(").replace(
            "]", ")"
        )
    return stage_name


def _current() -> Display:
    return _display.get() or (Records() if logs.as_json() else Lines())


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value else None
