"""Less memory for the same training: gradients summed over parts of the batch, activations computed again.

Tolerances as in test_data_parallel: what remains is fp32 sums in another order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agit_core.config import CoverageConfig, MethodConfig
from tests.agit_core import ranks, tiny
from tests.agit_core.ranks import Scenario, difference

BATCH = 4


def method(switch_at: int = 1, preset: str = "agit") -> MethodConfig:
    """Everything that looks at a whole batch: the controller outside its band, identity and binarity."""
    config = tiny.calm(tiny.method(switch_at=switch_at))
    return replace(
        config,
        networks=replace(config.networks, preset=preset),
        losses=replace(config.losses, identity_weight=0.5, binarity_weight=0.3),
        coverage=CoverageConfig((0.1, 0.3), (0.7, 0.9)),
    )


@pytest.fixture(scope="module", params=["agit", "uaggan"])
def whole(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The first step and six steps, across the switch, on the whole batch at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests; sums depend on it
    first, six = (ranks.play(Scenario("whole", method(1, request.param), BATCH, n)) for n in (1, 6))
    torch.set_num_threads(threads)
    return request.param, first, six


@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 9])
def test_the_weights_do_not_depend_on_the_microbatch(
    whole: tuple[str, dict[str, Any], dict[str, Any]], microbatch: int
) -> None:
    preset, first, six = whole
    scenario = Scenario("parts", method(1, preset), BATCH, 1, microbatch=microbatch)
    again = ranks.play(scenario)
    assert difference(first["gradients"], again["gradients"]) < 1e-5
    for kind in ("losses", "mask_health"):
        assert again["window"][kind] == pytest.approx(first["window"][kind], rel=1e-4, abs=1e-6)
    later = ranks.play(scenario._replace(until=6))
    assert later["stage"] == six["stage"] == "masked"
    assert difference(six["weights"], later["weights"]) < 1e-3
    assert later["coverage"].keys() == {"coverage", "lambda"}
    for name, value in six["coverage"].items():
        torch.testing.assert_close(later["coverage"][name], value, rtol=1e-4, atol=1e-6)
    if microbatch >= BATCH:
        assert tiny.same(six["weights"], later["weights"]), "one part is the whole batch, to the bit"


def test_two_workers_of_unequal_share_sum_their_parts_before_they_speak(tmp_path: Path) -> None:
    """Two and one of three items, one at a time: the first worker has a part more."""
    alone = Scenario("alone", method(), 3, 1)
    parts = alone._replace(name="parts", microbatch=1)
    one = ranks.play(alone)
    for rank in ranks.run(tmp_path / "ranks", 2, [parts])["parts"]:
        assert difference(one["gradients"], rank["gradients"]) < 1e-5
        torch.testing.assert_close(
            rank["coverage"]["lambda"], one["coverage"]["lambda"], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("preset", ["agit", "uaggan", "cyclegan"])
def test_activations_computed_again_are_the_same_to_the_bit(preset: str) -> None:
    kept, again = (tiny.trainer(method(1, preset), BATCH, recompute=recompute) for recompute in (False, True))
    saved: dict[bool, int] = {}
    for recompute, trainer in ((False, kept), (True, again)):
        held = [0]

        def pack(tensor: torch.Tensor, held: list[int] = held) -> torch.Tensor:
            held[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            tiny.train(trainer, 5)
        saved[recompute] = held[0]
    assert tiny.same(tiny.weights(kept), tiny.weights(again))
    assert saved[True] < saved[False], "the switch reaches the generators"
