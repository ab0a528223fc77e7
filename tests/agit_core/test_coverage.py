"""The coverage controller: its formula by hand, its gradient, its state, and two ranks as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from agit_core.config import CoverageConfig, MethodConfig
from agit_core.coverage import CoverageController
from agit_core.errors import BadInput
from agit_core.saved_method import from_dict, to_dict
from agit_core.world import World
from tests.agit_core import ranks, tiny
from tests.agit_core.ranks import Scenario, difference

BAND = (0.2, 0.4)


def method() -> MethodConfig:
    """Bands that the first masks, about 0.5, lie outside, one on either side."""
    config = tiny.calm(tiny.method(switch_at=9))
    return replace(
        config,
        coverage=CoverageConfig(BAND, (0.6, 0.8)),
        networks=replace(config.networks, attention_activation="identity"),
    )


def masks(value: float, count: int = 2) -> Tensor:
    """Of this mean, but not everywhere the same."""
    return torch.tensor([value - 0.1, value + 0.1]).expand(count, 1, 1, 2)


def controller(config: CoverageConfig) -> CoverageController:
    return CoverageController(config, torch.device("cpu"))


def test_formula_by_hand_above_inside_and_below_the_band() -> None:
    held = controller(CoverageConfig(BAND, BAND))
    cov, weight = 0.3, 0.0
    for c in (0.9, 0.9, 0.3, 0.3, 0.25, *[0.11] * 20):
        cov = 0.9 * cov + 0.1 * c
        e = max(cov - 0.4, 0) - max(0.2 - cov, 0)
        if e == 0:
            weight *= 0.99
        weight = min(max(weight + 0.05 * e, -5), 5)
        slope = weight + 2 * 5 * (max(c - 0.4, 0) - max(0.2 - c, 0))
        loss = held(masks(c), masks(0.3), 2, World())
        assert held.coverage[0].item() == pytest.approx(cov)
        assert held.weight[0].item() == pytest.approx(weight, rel=1e-4, abs=1e-8)
        assert loss.item() == pytest.approx(slope * c + held.weight[1].item() * 0.3, rel=1e-4, abs=1e-6)
    assert weight < 0, "too little coverage is rewarded"
    assert held.weight[1] == 0, "a domain inside its band is left alone"


def test_gradient_is_that_of_the_formula() -> None:
    held = controller(CoverageConfig(BAND, None))
    mask = masks(0.9).clone().requires_grad_()
    (given,) = torch.autograd.grad(held(mask, masks(0.99), 2, World()), mask)
    c = mask.mean()
    formula = held.weight[0].float() * c + 5 * ((c - 0.4).relu() ** 2 + (0.2 - c).relu() ** 2)
    torch.testing.assert_close(given, torch.autograd.grad(formula, mask)[0])
    assert held.weight[1] == 0, "no band, no weight"


def test_weight_stays_in_its_limits() -> None:
    held = controller(CoverageConfig((0.0, 0.0), (1.0, 1.0)))
    for _ in range(150):
        held(masks(0.9), masks(0.1), 2, World())
    assert held.weight.tolist() == [5.0, -5.0]


@pytest.mark.parametrize("band", [(0.4, 0.2), (-0.1, 0.3), (0.5, 1.1), (0.1,)])
def test_a_band_that_is_none_is_refused(band: tuple[float, float]) -> None:
    with pytest.raises(BadInput, match=r"band_b must be \[low, high\]"):
        CoverageConfig(band_b=band)


def test_configuration_survives_json_and_may_lack_the_section() -> None:
    stored = json.loads(json.dumps(to_dict(method())))
    assert from_dict(stored) == method()
    del stored["coverage"]
    assert from_dict(stored).coverage == CoverageConfig()


def test_training_resumes_exactly_and_the_controller_counts() -> None:
    run = tiny.trainer(method())
    tiny.train(run, 3)
    snapshot = run.snapshot()
    assert snapshot is not None
    assert set(snapshot.training["coverage"]) == {"coverage", "lambda"}
    resumed = tiny.trainer(method())
    resumed.restore(snapshot)
    for trainer in (run, resumed):
        tiny.train(trainer, 6)
    assert tiny.same(tiny.everything(run), tiny.everything(resumed))


def test_controller_moves_the_masks() -> None:
    """Up where they cover less than the band asks for, down where they cover more."""
    covered = []
    for band in (BAND, (0.6, 0.8)):
        config = tiny.method(switch_at=9)
        # of random images the cycle loss alone would pull every mask down at Adam's full pace
        losses = replace(config.losses, cycle_weight=0.0)
        run = tiny.trainer(replace(config, losses=losses, coverage=CoverageConfig(band, band)))
        tiny.train(run, 6)
        covered.append(run.window().mask_health)
    low, high = covered
    assert low["coverage_a"] < high["coverage_a"] - 1e-3
    assert low["coverage_b"] < high["coverage_b"] - 1e-3


def test_checkpoints_without_a_controller_load() -> None:
    """Those of earlier versions have no such state."""
    run = tiny.trainer()
    snapshot = run.snapshot()
    assert snapshot is not None
    assert not snapshot.training.pop("coverage")
    tiny.trainer().restore(snapshot)


def test_a_frozen_attention_leaves_the_controller_alone() -> None:
    config = method()
    run = tiny.trainer(replace(config, stages=replace(config.stages, switch_by="step", switch_at=1)))
    tiny.train(run, 1)
    before = run.training_step.coverage.weight.clone()
    tiny.train(run, 2)
    assert torch.equal(before, run.training_step.coverage.weight)


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """Also with 2 and 1 of 3 items, where each rank's own mean would be wrong."""
    scenarios = [Scenario(f"batch-{batch}", method(), batch, 3) for batch in (2, 3)]
    together = ranks.run(tmp_path / "ranks", 2, scenarios)
    for scenario in scenarios:
        one = ranks.play(scenario)
        first, second = together[scenario.name]
        assert tiny.same(first["weights"], second["weights"])
        assert difference(one["weights"], first["weights"]) < 5e-4
        assert difference(one["gradients"], first["gradients"]) < 1e-4
