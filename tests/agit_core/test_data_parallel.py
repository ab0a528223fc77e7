"""Several processes are one: gradients and weights do not depend on the number of workers.

Two real processes over gloo with batch b each, or 2 and 1 of 3 items, against one process with all of them.
Tolerances are relative to a network's norm; what remains is fp32 sums in another order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agit_core.config import MethodConfig
from tests.agit_core import ranks, tiny
from tests.agit_core.ranks import Scenario, difference

GRADIENTS = 1e-5
WEIGHTS = 1e-3
"""After six steps, which move the weights by some 1e-2. Mostly it is 1e-7; one sign that rounding flips (of an L1
difference, of a ReLU's input) shows as a few 1e-4,
and the port's networks have more ReLUs and norms to flip (5.4e-4)."""


def method(preset: str = "agit", switch_at: int = 1) -> MethodConfig:
    config = tiny.calm(tiny.method(switch_at=switch_at))
    identity = replace(config.losses, identity_weight=0.5)
    return replace(config, networks=replace(config.networks, preset=preset), losses=identity)


# 7 items an epoch: with the switch at epoch 1, the first masked step is 4 for batch 2 and 3 for batch 3
FIRST_STEPS = [
    Scenario(f"first-{stage}-{batch}", method(switch_at=at), batch, 1)
    for stage, at in (("full", 9), ("masked", 0))
    for batch in (2, 3)
]
ACROSS = [Scenario(f"across-{p}-{b}", method(p), b, 6) for p in ("agit", "uaggan") for b in (2, 3)]
MISTAKE_9 = [Scenario(f"until-{n}", tiny.calm(tiny.method(switch_at=1)), 2, n) for n in (1, 2, 5)]

POISONED = Scenario("poisoned", method(), 2, 3, poisoned_rank=1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    scenarios = [*FIRST_STEPS, *ACROSS, *MISTAKE_9, POISONED]
    return ranks.run(tmp_path_factory.mktemp("ranks") / "all", 2, scenarios)


@pytest.mark.parametrize("scenario", FIRST_STEPS, ids=lambda s: s.name)
def test_gradients_of_two_workers_are_those_of_one(
    scenario: Scenario, together: dict[str, list[dict[str, Any]]]
) -> None:
    one = ranks.play(scenario)
    for rank in together[scenario.name]:
        assert difference(one["gradients"], rank["gradients"]) < GRADIENTS
        assert rank["window"]["losses"] == pytest.approx(one["window"]["losses"], rel=1e-4, abs=1e-6)
        assert rank["window"]["mask_health"] == pytest.approx(one["window"]["mask_health"], rel=1e-4)
    has_attention = any(n.startswith("attention") for n in one["gradients"])
    assert has_attention == ("full" in scenario.name)


@pytest.mark.parametrize("scenario", ACROSS, ids=lambda s: s.name)
def test_weights_after_several_steps_and_the_switch(
    scenario: Scenario, together: dict[str, list[dict[str, Any]]]
) -> None:
    one = ranks.play(scenario)
    first, second = together[scenario.name]
    assert one["stage"] == first["stage"] == "masked"
    assert difference(one["weights"], first["weights"]) < WEIGHTS
    assert tiny.same(first["weights"], second["weights"]), "ranks must agree bit for bit"


def test_every_rank_notices_what_is_not_finite_on_one(together: dict[str, list[dict[str, Any]]]) -> None:
    for rank in together[POISONED.name]:
        assert "losses of steps 4 to 4 are not finite" in rank["losses"]
        assert "weights after step 4 are not finite" in rank["weights"]


@pytest.mark.parametrize("scenario", MISTAKE_9, ids=lambda s: s.name)
def test_9_ddp_with_several_forwards_per_backward(
    scenario: Scenario, together: dict[str, list[dict[str, Any]]]
) -> None:
    """The seed's ninth mistake: DDP around nets that run twice per backward and are frozen in between gave wrong
    gradients, silently."""
    alone = ranks.play(scenario)
    for rank in together[scenario.name]:
        assert difference(alone["weights"], rank["weights"]) < 1e-4
        assert difference(alone["gradients"], rank["gradients"]) < 1e-2


def test_a_resumed_run_of_three_workers_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Of two, the order of the sum does not matter; of three it does, and DDP may change it after a first step."""
    straight = Scenario("straight", method(switch_at=9), 3, 4)
    half = straight._replace(name="half", until=2, save=str(tmp_path / "half"))
    resumed = straight._replace(name="resumed", load=half.save)
    found = ranks.run(tmp_path / "ranks", 3, [straight, half, resumed])
    for one, other in zip(found["straight"], found["resumed"], strict=True):
        assert tiny.same(one["weights"], other["weights"])


@pytest.mark.long
def test_two_killed_workers_go_on_exactly_and_one_can_take_over(
    tmp_path: Path, together: dict[str, list[dict[str, Any]]]
) -> None:
    """2 x ``kill -9`` before the switch (at 3) and after it (at 5), in mid-epoch: the weights are the same bits."""
    straight = next(s for s in ACROSS if s.name == "across-agit-2")
    saved = {at: str(tmp_path / f"step-{at}") for at in (3, 5)}
    first = straight._replace(until=3, save=saved[3])
    ranks.run(tmp_path / "first", 2, [first], die=True)
    then = straight._replace(name="then", until=5, load=saved[3], save=saved[5])
    end = straight._replace(name="end", load=saved[5])
    ranks.run(tmp_path / "second", 2, [then], die=True)
    finished = ranks.run(tmp_path / "third", 2, [end])["end"]
    for rank, before in zip(finished, together[straight.name], strict=True):
        assert tiny.same(before["weights"], rank["weights"])
    alone = ranks.play(straight._replace(load=saved[3]))
    assert difference(alone["weights"], finished[0]["weights"]) < WEIGHTS
    back = ranks.play(straight)
    assert difference(alone["weights"], back["weights"]) < WEIGHTS
