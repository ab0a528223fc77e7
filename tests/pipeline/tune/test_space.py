"""The search space: what is refused and how, and that trials stay what they were."""

from __future__ import annotations

from typing import Any

import pytest

from agit_core.errors import BadInput
from pipeline import config as configs
from pipeline.config import Config
from pipeline.tune import space as tune_space

RATE, BATCH = "method.optimizer.learning_rate", "train.batch_size"
SPACE = {
    RATE: {"loguniform": ["1e-4", 1e-2]},
    "method.stages.tau": {"uniform": [0.05, 0.3]},
    "method.stages.switch_at": {"quniform": [100, 500, 50]},
    "method.networks.generator_blocks": {"randint": [1, 3]},
    BATCH: [2, 4],
}


def _config(space: dict[str, Any]) -> Config:
    return configs.parse({"name": "t", "tune": {"space": space}})


def test_values_lie_in_their_ranges_and_fit_the_configuration() -> None:
    config = _config(SPACE)
    ranges = tune_space.ranges(config)
    for number in range(1, 60):
        values = tune_space.trial_values(ranges, 0, number)
        assert 1e-4 <= values[RATE] <= 1e-2
        assert 0.05 <= values["method.stages.tau"] <= 0.3
        assert values["method.stages.switch_at"] in range(100, 501, 50)
        assert values["method.networks.generator_blocks"] in (1, 2, 3)
        assert values[BATCH] in (2, 4)
        applied = tune_space.applied(config, values)
        assert {key: tune_space.value_of(applied, key) for key in values} == values


def test_both_ends_of_a_range_are_reached_and_rates_spread_over_decades() -> None:
    ranges = tune_space.ranges(_config(SPACE))
    drawn = [tune_space.trial_values(ranges, 0, number) for number in range(1, 200)]
    assert {values["method.networks.generator_blocks"] for values in drawn} == {1, 2, 3}
    assert {values["method.stages.switch_at"] for values in drawn} == set(range(100, 501, 50))
    assert 70 < sum(values[RATE] < 1e-3 for values in drawn) < 130


def test_a_trial_depends_on_the_seed_and_its_number_alone() -> None:
    ranges = tune_space.ranges(_config(SPACE))
    assert tune_space.trial_values(ranges, 0, 0) == {}, "trial 0 is the configuration as it is"
    assert tune_space.trial_values(ranges, 0, 5) == tune_space.trial_values(ranges, 0, 5)
    assert tune_space.trial_values(ranges, 0, 5) != tune_space.trial_values(ranges, 1, 5)
    fewer = [one for one in ranges if one.key != BATCH]
    assert tune_space.trial_values(fewer, 0, 5)[RATE] == tune_space.trial_values(ranges, 0, 5)[RATE]


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({}, "tune.space is empty"),
        ({"method.optimiser.learning_rate": [1e-3]}, "did you mean 'optimizer'"),
        ({"method.optimizer.learning_rat": [1e-3]}, "did you mean 'learning_rate'"),
        ({"method.optimizer": [1e-3]}, "'optimizer' is a section"),
        ({"method.optimizer.learning_rate.x": [1]}, "is a value, not a section"),
        ({RATE: {"logunifrm": [1e-4, 1e-3]}}, "did you mean 'loguniform'"),
        ({RATE: {"loguniform": [0, 1e-3]}}, "no logarithm"),
        ({RATE: {"uniform": [1e-3, 1e-4]}}, "is not below"),
        ({RATE: {"uniform": [1e-3]}}, "write uniform: [low, high]"),
        ({RATE: {"uniform": ["low", 1]}}, "write uniform: [low, high]"),
        ({RATE: {"uniform": 3}}, "write uniform: [low, high]"),
        ({RATE: 3}, "a list of choices or one of"),
        ({RATE: []}, "at least one choice"),
        ({BATCH: {"randint": [1.5, 3]}}, "whole numbers"),
        ({"method.stages.tau": {"uniform": [0.1, 2]}}, "method.stages.tau = 2"),
        ({"method.networks.preset": ["agit", "agot"]}, "method.networks.preset = agot"),
        ({"train.workers": [1, 2]}, "cannot be searched"),
        ({"data.load_size": [286, 300]}, "cannot be searched"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(space: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        tune_space.ranges(_config(space))
    assert sentence in str(caught.value)
    assert "tune.space" in str(caught.value)


@pytest.mark.parametrize("preset", ["demo", "h2z"])
def test_presets_come_with_a_space_that_can_be_searched(preset: str) -> None:
    assert len(tune_space.ranges(configs.load(preset))) >= 5
