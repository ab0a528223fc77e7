"""Scores of checkpoints on validation images: one small file per scored step, ``scores/00000100.json``.

Which steps are scored depends on the settings alone, and whatever reads the scores waits for those that it needs, so
that a run that was killed chooses and stops as an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import storage
from pipeline.metrics.names import lower_is_better

_FOLDER = "scores"


@dataclass(frozen=True)
class Scored:
    """One checkpoint's scores.

    Attributes:
        metrics: by contract name; empty where the checkpoint could not be scored, which ``message`` explains.
        seconds: what scoring it took.
        time: Unix time.
    """

    step: int
    metrics: dict[str, float | None] = field(default_factory=dict)
    seconds: float = 0.0
    time: float = 0.0
    images: dict[str, int] = field(default_factory=dict)
    message: str = ""

    def value(self, metric: str) -> float | None:
        """The figure, None where there is none or it is not finite."""
        value = self.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None


def due(step: int, every: int | None, end: int) -> bool:
    """Whether the checkpoint of this step is scored: each ``every`` steps, and the last one."""
    return every is not None and step > 0 and (step % every == 0 or step == end)


def steps_due(every: int | None, until: int) -> list[int]:
    """The steps up to and including ``until`` that are multiples of ``every``."""
    return [] if every is None else list(range(every, until + 1, every))


def read(run_uri: str) -> dict[int, Scored]:
    """The scores that there are, by step in rising order."""
    found: dict[int, Scored] = {}
    for uri in storage.list_(storage.join(run_uri, _FOLDER)):
        stem = storage.name(uri).removesuffix(".json")
        if stem.isdigit():
            with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
                found[int(stem)] = Scored(**storage.read_json(uri))
    return dict(sorted(found.items()))


def steps(run_uri: str) -> set[int]:
    """The steps that have been scored, without reading the scores."""
    stems = (storage.name(uri).removesuffix(".json") for uri in storage.list_(storage.join(run_uri, _FOLDER)))
    return {int(stem) for stem in stems if stem.isdigit()}


def write(run_uri: str, scored: Scored) -> None:
    """Stores the scores of a step."""
    tree: dict[str, Any] = asdict(scored)
    storage.write_json(storage.join(run_uri, _FOLDER, f"{scored.step:08d}.json"), tree)


def remove_after(run_uri: str, step: int) -> None:
    """Removes the scores of steps that will be done again."""
    for uri in storage.list_(storage.join(run_uri, _FOLDER)):
        stem = storage.name(uri).removesuffix(".json")
        if stem.isdigit() and int(stem) > step:
            storage.remove(uri)


def best(scores: Mapping[int, Scored], metric: str) -> int | None:
    """The step with the best figure, the latest of equals; None when there is none."""
    sign = 1.0 if lower_is_better(metric) else -1.0
    values = {step: sign * value for step, one in scores.items() if (value := one.value(metric)) is not None}
    return min(values, key=lambda step: (values[step], -step)) if values else None


def hopeless(scores: Mapping[int, Scored], metric: str, patience: int) -> bool:
    """Whether the last ``patience`` scores brought no figure better than one before them."""
    steps = sorted(scores)
    found = best(scores, metric)
    if found is None:
        return len(steps) > patience
    # the first of equals: standing still is not getting better
    value = scores[found].value(metric)
    first = min(step for step in steps if scores[step].value(metric) == value)
    return len([step for step in steps if step > first]) >= patience
