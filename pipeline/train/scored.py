"""Which checkpoints are scored on validation images, which of them is the best, and when there is no hope of a better.

It depends on the settings and the scores alone, and whatever reads scores waits for those that it needs: a run that
was killed, at any moment, chooses and stops as an undisturbed one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline import records, storage
from pipeline.metrics import catalog
from pipeline.records import Scores


def due(every: int | None, until: int) -> list[int]:
    """The steps up to and including ``until`` whose checkpoints are scored, besides that of the last step."""
    return [] if every is None else list(range(every, until + 1, every))


def best(scores: Mapping[int, Scores], metric: str) -> int | None:
    """The step with the best figure, the first of equals; None when there is none."""
    values = {
        step: value for step, one in scores.items() if (value := _lower_is_better(one, metric)) is not None
    }
    return min(values, key=lambda step: (values[step], step)) if values else None


def hopeless(scores: Mapping[int, Scores], metric: str, patience: int) -> bool:
    """Whether the last ``patience`` scores brought no figure better than one before them."""
    found = best(scores, metric)
    return found is not None and sum(step > found for step in scores) >= patience


def remove_after(run_uri: str, step: int) -> None:
    """Forgets the scores of steps that will be done again."""
    for scored in records.scored_steps(run_uri):
        if scored > step:
            storage.remove(records.score_file(scored).uri(storage.join(run_uri, records.SCORES)))


def _lower_is_better(scores: Scores, metric: str) -> float | None:
    """The figure with its sign turned where higher is better; None where there is none or it is not finite."""
    value = catalog.value_of(scores.metrics, metric)
    if value is None or not math.isfinite(value):
        return None
    return value if catalog.lower_is_better(metric) else -value
