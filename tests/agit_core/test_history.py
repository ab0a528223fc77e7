"""The history pool: earlier fakes come back, each with its own mask."""

from __future__ import annotations

import torch
from torch import Tensor

from agit_core.config import HistoryConfig
from agit_core.history import History


def marked(value: float, n: int = 1) -> tuple[Tensor, Tensor]:
    """Images and masks that carry the same number, so that a pair is recognised."""
    return torch.full((n, 3, 2, 2), value), torch.full((n, 1, 2, 2), value)


def run(history: History, steps: range) -> list[tuple[float, float]]:
    pairs = []
    for step in steps:
        image, mask = history.exchange(step, *marked(float(step), len(history.slots)))
        pairs += [(float(i.mean()), float(m.mean())) for i, m in zip(image, mask, strict=True)]
    return pairs


def pool(slots: range = range(1), batch: int = 1, size: int = 5, probability: float = 0.5) -> History:
    return History(HistoryConfig(size, probability), slots, batch, 0, "a")


def test_entries_keep_their_own_masks_and_old_ones_come_back() -> None:
    pairs = run(pool(), range(200))
    assert all(image == mask for image, mask in pairs)
    old = [step for step, (image, _) in enumerate(pairs) if image != step]
    assert 60 < len(old) < 130, "about half of the answers must be older fakes"
    assert pairs[:5] == [(float(s), float(s)) for s in range(5)], "a pool that is filling gives back the new"


def test_probability_zero_and_size_zero_never_look_back() -> None:
    for history in (pool(probability=0.0), pool(size=0)):
        assert run(history, range(30)) == [(float(s), float(s)) for s in range(30)]


def test_a_pool_that_the_batch_does_not_divide_is_rounded_up() -> None:
    history = pool(range(2), batch=2, size=5)
    pairs = run(history, range(3))
    assert pairs == [(float(s), float(s)) for s in (0, 0, 1, 1, 2, 2)], "three of each slot fit in"
    run(history, range(3, 40))
    assert [len(entries) for entries in history.state().values()] == [3, 3]


def test_the_pool_is_the_same_whatever_the_number_of_ranks() -> None:
    whole = pool(range(4), batch=4, size=8)
    ranks = [pool(range(r, r + 1), batch=4, size=8) for r in range(4)]
    for step in range(40):
        images, masks = torch.rand(4, 3, 2, 2), torch.rand(4, 1, 2, 2)
        together = whole.exchange(step, images, masks)[0]
        apart = torch.cat(
            [h.exchange(step, images[r : r + 1], masks[r : r + 1])[0] for r, h in enumerate(ranks)]
        )
        assert torch.equal(together, apart)


def test_state_restores_the_pool_exactly() -> None:
    one = pool(range(2), batch=2)
    run(one, range(20))
    other = pool(range(2), batch=2)
    other.load(one.state(), torch.device("cpu"))
    assert run(one, range(20, 60)) == run(other, range(20, 60))


def test_a_stored_fake_is_not_changed_by_later_writes() -> None:
    history = pool(probability=1.0, size=1)
    image, mask = marked(1.0)
    history.exchange(0, image, mask)
    image.fill_(9.0)
    assert float(history.exchange(1, *marked(2.0))[0].mean()) == 1.0
