"""What every display of a training run has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pipeline.records import Tree

State = str
"""How a training ended, in MLflow's terms: FINISHED, FAILED or KILLED."""


class Sink(Protocol):
    """A display of runs. Every method may raise: the feed tries again."""

    name: str

    def open(self) -> set[int]:
        """Prepare; return the steps of the rows that are already there."""

    def rows(self, rows: Sequence[Tree]) -> None:
        """Take rows of the metrics, in the order of their steps."""

    def pictures(self, step: int, sheets: Mapping[str, bytes]) -> None:
        """Take one PNG per direction: the sample strips of a step, stacked."""

    def close(self, state: State) -> None:
        """Finish: this training job sends nothing more."""


def numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a row except its step and time; nested ones are named like ``losses/cycle_a``."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in {"step", "time"}:
            yield f"{prefix}{key}", float(value)
