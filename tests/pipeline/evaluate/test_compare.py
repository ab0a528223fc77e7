from __future__ import annotations

import pytest
import torch

from pipeline.config import Config
from pipeline.evaluate import compare
from pipeline.evaluate.compare import Judge

pytestmark = pytest.mark.usefixtures("small_inception")


def test_every_competitor_meets_the_same_subsets_and_resamples(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    real_a, real_b = (torch.rand(12, 2048, generator=generator) for _ in range(2))
    judge = Judge(config.evaluate, 0, real_a, real_b)
    ones = torch.ones(12)
    arrays = {
        d: {"features": f, "finite": ones.bool(), "cycle_l1": ones.double()}
        for d, f in (("a2b", real_a), ("b2a", real_b))
    }
    model = judge.model(arrays)
    nothing = judge.nothing(model)
    assert {name: model.metrics[name] for name in ("kid_mean", "fid", "kid_source_b2a")} == {
        name: nothing.metrics[name] for name in ("kid_mean", "fid", "kid_source_b2a")
    }
    told = compare.intervals(model, {"do_nothing": nothing})["kid_mean"]["do_nothing"]
    assert told == {"difference": 0.0, "low": 0.0, "high": 0.0, "verdict": "noise"}


def test_a_difference_is_that_of_all_images_and_an_interval_knows_the_subsets_noise(config: Config) -> None:
    """Two models that are alike differ in the means over a few small subsets by more than their images do."""
    generator = torch.Generator().manual_seed(0)
    real_a, real_b, mine, theirs = (torch.rand(60, 8, generator=generator) for _ in range(4))
    judge = Judge(config.evaluate.model_copy(update={"subsets": 2, "subset_size": 5}), 0, real_a, real_b)
    ones = torch.ones(60)
    model, other = (
        judge.model({d: {"features": f, "finite": ones.bool()} for d in ("a2b", "b2a")})
        for f in (mine, theirs)
    )

    def kid(translated: torch.Tensor) -> float:
        def cubed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x.double() @ y.double().T / 8 + 1) ** 3

        def within(x: torch.Tensor) -> torch.Tensor:
            return (cubed(x, x).sum() - cubed(x, x).trace()) / (60 * 59)

        return float(within(translated) + within(real_b) - 2 * cubed(translated, real_b).mean())

    told = compare.intervals(model, {"champion": other})["kid_target_a2b"]
    assert told["champion"]["difference"] == pytest.approx(kid(mine) - kid(theirs))
    metrics = (model.metrics["kid_target_a2b"], other.metrics["kid_target_a2b"])
    assert None not in metrics
    assert metrics[0] - metrics[1] != pytest.approx(told["champion"]["difference"], rel=0.5)  # type: ignore[operator]
    spread = float(model.replicates["kid_target_a2b"].std())
    subsets = model.metrics["kid_target_a2b_std"]
    assert subsets is not None
    wide = 1.96 * (spread**2 + subsets**2 / 2) ** 0.5
    assert told["high"] - told["value"] == pytest.approx(wide, rel=1e-3)
