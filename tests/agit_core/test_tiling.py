"""The two halves of invisible tiles: the ramp between neighbours and the statistics that all of them share."""

from __future__ import annotations

import torch

from agit_core import tiling
from agit_core.layers import InstanceNorm
from agit_core.tiling import PooledNorm


def test_neighbours_are_blended_by_a_smooth_ramp_in_the_middle_of_what_they_share() -> None:
    left, right = tiling.spans(960, 512)[:2]
    shared = left.stop - right.start
    rise, fall = right.weights[:shared], left.weights[-shared:]
    inner = shared - 2 * tiling.MARGIN
    assert inner >= 64
    assert not rise[: tiling.MARGIN].any(), "the outermost pixels of an inner edge are not used"
    assert (rise[-tiling.MARGIN :] == 1).all()
    # 3 p^2 - 2 p^3 at the pixels' centres: the same seen from either side
    p = (torch.arange(inner) + 0.5) / inner
    torch.testing.assert_close(rise[tiling.MARGIN : -tiling.MARGIN], 3 * p**2 - 2 * p**3)
    torch.testing.assert_close(fall, rise.flip(0))


def test_pooled_statistics_are_those_of_all_patches_without_their_rims() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 3 + 1

    norm = InstanceNorm(2, affine=True)
    norm.load_state_dict({"weight": torch.tensor([0.5, 2.0]), "bias": torch.tensor([1.0, -1.0])})
    pooled = PooledNorm(norm, torch.device("cpu"))
    patches, tile = random(3, 2, 16, 24), random(1, 2, 8, 8)
    inside = patches[:, :, 2:14, 3:21].transpose(0, 1).flatten(1)  # an eighth of the side, at each edge
    mean, deviation = inside.mean(1), (inside.var(1, correction=0) + 1e-5).sqrt()

    def expected(x: torch.Tensor) -> torch.Tensor:
        normalised = (x - mean.view(2, 1, 1)) / deviation.view(2, 1, 1)
        return normalised * torch.tensor([0.5, 2.0]).view(2, 1, 1) + torch.tensor([1.0, -1.0]).view(2, 1, 1)

    with torch.no_grad():
        torch.testing.assert_close(pooled(patches), expected(patches))
        tiling.hold_statistics(pooled)
        torch.testing.assert_close(pooled(tile), expected(tile))
