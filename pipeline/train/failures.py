"""Which failures are worth another try, and the one sentence that names a failure's cause."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from agit_core.errors import BadInput, RunFailed

PERMANENT = (
    BadInput,
    RunFailed,
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)
"""Would happen again: what was asked for, what has been tried patiently already, and programming errors."""


_PAUSE, _LONGEST_PAUSE = 5.0, 60.0


class Preempted(RuntimeError):
    """The node is about to be taken away and the state has been stored; the run goes on elsewhere."""


class Allowance:
    """How many failures in a row, without a new checkpoint between them, a run survives.

    A weekend on pre-emptible machines may see dozens of failures; only those that bring nothing count.
    """

    def __init__(self, newest: Callable[[], int], limit: int, what: str = "training") -> None:
        """``newest``: the newest checkpoint's step; ``limit``: ``train.max_failures``; ``what`` fails, in messages."""
        self._what = what
        self._look = newest
        self._limit = limit
        self._newest = 0
        self._failures = 0

    @property
    def pause(self) -> float:
        """Seconds to wait before the next try: none after a first failure, then 5, 10, 20 and so on up to 60."""
        return min(_LONGEST_PAUSE, _PAUSE * 2.0 ** (self._failures - 2)) if self._failures > 1 else 0.0

    def spend(self, cause: BaseException) -> None:
        """Counts a failure.

        Raises:
            BadInput, RunFailed: another try is pointless or one too many.
        """
        if isinstance(cause, BadInput | RunFailed):
            raise cause
        if isinstance(cause, PERMANENT):
            raise RunFailed(
                f"the {self._what} stopped with an error of the program: {sentence(cause)}"
            ) from cause
        newest = self._newest
        with contextlib.suppress(RunFailed, FileNotFoundError):
            newest = self._look()
        self._failures = 1 if newest > self._newest else self._failures + 1
        self._newest = newest
        if 0 <= self._limit < self._failures:
            times = f"{self._failures} times" if self._failures > 1 else ""
            if times and self._what == "training":
                times += " without a new checkpoint"
            raise RunFailed(
                f"the {self._what} failed {times}: {sentence(cause)}".replace(" :", ":")
            ) from cause


def root_cause(*errors: BaseException) -> BaseException:
    """The exception that explains the others, dug out of Ray's wrapping.

    When one rank fails, its peers fail with broken connections; a process that just died says least.
    """
    found = list(_unwrapped(errors))

    def rank(error: BaseException) -> int:
        if isinstance(error, BadInput):
            return 0
        if isinstance(error, RunFailed):
            return 1
        if isinstance(error, Preempted):
            return 2
        if isinstance(error, PERMANENT):
            return 3
        if "OutOfMemoryError" in _kinds(error) or isinstance(error, MemoryError):
            return 4
        if "RayActorError" in _kinds(error):
            return 6
        if type(error).__module__.startswith("ray."):
            return 9
        return 8 if _is_lost_peer(error) else 5

    return min(found, key=rank)


def sentence(error: BaseException) -> str:
    """One line for a person."""
    if isinstance(error, BadInput | RunFailed | Preempted):
        return " ".join(str(error).split())
    if "RayActorError" in _kinds(error):
        return "a process of the training died (killed, out of memory, or its node was lost)"
    if _is_lost_peer(error):
        return "a worker lost the connection to another one"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if type(error).__module__.startswith("ray.") and lines else " ".join(lines[:1])
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _kinds(error: BaseException) -> set[str]:
    """Names of the exception's classes; by name, so that judging one needs no import of Ray."""
    return {kind.__name__ for kind in type(error).__mro__}


def _is_lost_peer(error: BaseException) -> bool:
    text = str(error)
    marks = (
        "Connection closed by peer",
        "Connection reset by peer",
        "connection was aborted",
        "ncclRemoteError",
    )
    return isinstance(error, RuntimeError) and (any(mark in text for mark in marks) or "gloo" in text)


def _unwrapped(errors: tuple[BaseException, ...]) -> Iterator[BaseException]:
    seen: set[int] = set()
    queue = list(errors)
    while queue:
        error = queue.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        inner = [*getattr(error, "worker_failures", {}).values()]
        names = ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__")
        inner += [getattr(error, name, None) for name in names]
        queue += [e for e in inner if isinstance(e, BaseException)]
