"""Classification of failures: which to retry, and the cause of a failure as one sentence."""

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
"""Errors that a retry would repeat: bad input, failures that were already retried, and programming errors."""


_PAUSE, _LONGEST_PAUSE = 5.0, 60.0  # seconds


class Preempted(RuntimeError):
    """The node is about to be preempted and the state has been stored; the run resumes elsewhere."""


class Allowance:
    """Retry budget: the number of consecutive failures, without a new checkpoint in between, that a run survives.

    A weekend on pre-emptible machines may see dozens of failures; only failures without progress count.
    """

    def __init__(self, newest: Callable[[], int], limit: int, what: str = "training") -> None:
        """``newest`` returns the step of the newest checkpoint; ``limit`` is ``train.max_failures``, -1: no limit.

        ``what`` fails, in messages.
        """
        self._what = what
        self._newest_checkpoint = newest
        self._limit = limit
        self._newest = 0
        self._failures = 0

    @property
    def pause(self) -> float:
        """Seconds to wait before the next attempt: 0 after the first failure, then 5, 10, 20, ..., at most 60."""
        return min(_LONGEST_PAUSE, _PAUSE * 2.0 ** (self._failures - 2)) if self._failures > 1 else 0.0

    def spend(self, cause: BaseException) -> None:
        """Count a failure.

        Raises:
            BadInput, RunFailed: a retry is pointless, or the budget is exhausted.
        """
        if isinstance(cause, BadInput | RunFailed):
            raise cause
        if isinstance(cause, PERMANENT):
            raise RunFailed(
                f"the {self._what} stopped with an error of the program: {sentence(cause)}"
            ) from cause
        newest = self._newest
        with contextlib.suppress(RunFailed, FileNotFoundError):
            newest = self._newest_checkpoint()
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
    """The exception that caused the others, unwrapped from Ray's exceptions.

    When one rank fails, its peers fail with broken connections. A process that merely died is the least informative.
    """

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

    return min(_unwrapped(errors), key=rank)


def sentence(error: BaseException) -> str:
    """Describe an error in one line."""
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
    """Class names in the exception's MRO; comparing names avoids importing Ray."""
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
