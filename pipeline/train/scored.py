"""Selection of checkpoints by validation scores: which to score, which is best, and when to stop early.

Decisions depend only on the settings and the scores, and wait for the scores that they need: a run that was killed at
any moment selects and stops exactly like an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline import records, storage
from pipeline.metrics import catalog
from pipeline.records import Scores


def due(every: int | None, until: int) -> list[int]:
    """Steps up to and including ``until`` whose checkpoints are scored; the last step's is scored in addition."""
    return [] if every is None else list(range(every, until + 1, every))


def best(scores: Mapping[int, Scores], metric: str) -> int | None:
    """Step with the best value of a metric, the first of equals; None if there are no scores."""
    values = {
        step: value for step, one in scores.items() if (value := _lower_is_better(one, metric)) is not None
    }
    return min(values, key=lambda step: (values[step], step)) if values else None


def hopeless(scores: Mapping[int, Scores], metric: str, patience: int) -> bool:
    """Whether none of the last ``patience`` scores improved on the best one before them."""
    found = best(scores, metric)
    return found is not None and sum(step > found for step in scores) >= patience


def remove_after(run_uri: str, step: int) -> None:
    """Remove the scores of steps that will be repeated."""
    for scored in records.scored_steps(run_uri):
        if scored > step:
            storage.remove(records.score_file(scored).uri(storage.join(run_uri, records.SCORES)))


def _lower_is_better(scores: Scores, metric: str) -> float | None:
    """Value of a metric, negated if higher is better; None if missing or not finite."""
    value = catalog.value_of(scores.metrics, metric)
    if value is None or not math.isfinite(value):
        return None
    return value if catalog.lower_is_better(metric) else -value
