"""The order of the images depends on (seed, step) alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer, lr_scheduler

from agit_core.augment import augment, to_float, to_uint8
from agit_core.config import OptimizerConfig
from agit_core.errors import BadInput
from agit_core.loader import Loader
from agit_core.optimizers import learning_rate_factor
from agit_core.sampling import SamplePlan, slots_of
from tests.agit_core import tiny


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(8, 17),
    st.integers(0, 9),
    st.sampled_from([1, 2, 3, 4, 8]),
)
def test_any_number_of_ranks_sees_the_same_global_batch(
    a: int, b: int, batch: int, step: int, world: int
) -> None:
    plan = SamplePlan(1, a, b, batch)
    for domain in ("a", "b"):
        whole = plan.items(step, domain, range(batch))  # type: ignore[arg-type]
        slices = [plan.items(step, domain, slots_of(r, world, batch)) for r in range(world)]  # type: ignore[arg-type]
        assert [item for part in slices for item in part] == whole
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_an_epoch_shows_every_image_of_the_larger_domain_once() -> None:
    plan = SamplePlan(0, 12, 5, 4)
    for epoch in range(3):
        steps = range(epoch * 3, epoch * 3 + 3)
        seen_a = Counter(i.index for s in steps for i in plan.items(s, "a", range(4)))
        seen_b = Counter(i.index for s in steps for i in plan.items(s, "b", range(4)))
        assert seen_a == Counter(range(12))
        assert set(seen_b) == set(range(5))
        assert max(seen_b.values()) - min(seen_b.values()) <= 1


def test_epochs_and_domains_have_orders_of_their_own() -> None:
    plan = SamplePlan(0, 50, 50, 50)
    orders = [
        tuple(i.index for i in plan.items(step, domain, range(50)))  # type: ignore[arg-type]
        for step in (0, 1)
        for domain in ("a", "b")
    ]
    assert len(set(orders)) == 4, "A and B are not paired and each epoch is shuffled anew"
    assert SamplePlan(1, 50, 50, 50).items(0, "a", range(50)) != plan.items(0, "a", range(50))


def test_steps_cover_the_epochs() -> None:
    plan = SamplePlan(0, 10, 7, 4)
    assert plan.steps(3) == 8
    assert [plan.epoch_of(s) for s in range(8)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [s for s in range(8) if plan.starts_epoch(s)] == [3, 5]


def test_more_ranks_than_items_is_refused() -> None:
    with pytest.raises(BadInput, match=r"train\.batch_size"):
        slots_of(0, 3, 2)


def test_augmentation_depends_on_its_key_alone() -> None:
    image = torch.arange(3 * 20 * 20, dtype=torch.int64).reshape(3, 20, 20).remainder(256).to(torch.uint8)
    crops = [augment(image, 16, f"key {i}", True) for i in range(40)]
    assert all(torch.equal(augment(image, 16, f"key {i}", True), c) for i, c in enumerate(crops))
    assert len({c.numpy().tobytes() for c in crops}) > 20
    assert all(c.shape == (3, 16, 16) for c in crops)
    assert torch.equal(augment(image, 20, "x", False), image)


def test_half_of_the_images_are_flipped() -> None:
    image = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
    crops = [augment(image, 4, f"key {i}", True) for i in range(1000)]
    flipped = sum(torch.equal(crop, image.flip(-1)) for crop in crops)
    assert flipped + sum(torch.equal(crop, image) for crop in crops) == 1000
    assert 450 < flipped < 550


def test_pixels_survive_the_scaling() -> None:
    pixels = torch.arange(256, dtype=torch.uint8)
    scaled = to_float(pixels)
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert torch.equal(to_uint8(scaled), pixels)


def test_the_loader_starts_anywhere() -> None:
    plan = tiny.plan()
    every = list(tiny.loader(plan).batches(0, range(2), 9))
    late = list(tiny.loader(plan).batches(5, range(2), 9))
    assert [b.step for b in late] == [5, 6, 7, 8]
    for one, two in zip(every[5:], late, strict=True):
        assert torch.equal(one.a, two.a)
        assert torch.equal(one.b, two.b)


def test_the_loader_refuses_data_that_is_not_the_plans() -> None:
    with pytest.raises(BadInput, match="prepare the data again"):
        Loader({"a": tiny.Images(3, 0), "b": tiny.Images(5, 0)}, tiny.plan(), tiny.SIZE)


def test_the_learning_rate_is_constant_and_then_falls_to_zero() -> None:
    rates = [learning_rate_factor(s, 10, OptimizerConfig()) for s in range(11)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.0])


@pytest.mark.parametrize(
    ("config", "scheduler"),
    [
        (
            OptimizerConfig(policy="cosine", constant_fraction=0.0),
            lambda adam: lr_scheduler.CosineAnnealingLR(adam, T_max=200),
        ),
        (OptimizerConfig(policy="step"), lambda adam: lr_scheduler.StepLR(adam, step_size=50, gamma=0.1)),
        (
            OptimizerConfig(policy="step", step_fraction=0.1, step_factor=0.5),
            lambda adam: lr_scheduler.StepLR(adam, step_size=20, gamma=0.5),
        ),
        (
            OptimizerConfig(constant_fraction=1.0),
            lambda adam: lr_scheduler.ConstantLR(adam, factor=1.0),
        ),
    ],
    ids=["cosine", "step", "own steps", "constant"],
)
def test_the_other_policies_are_those_of_pytorch(
    config: OptimizerConfig, scheduler: Callable[[Optimizer], lr_scheduler.LRScheduler]
) -> None:
    adam = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = scheduler(adam)
    for step in range(200):
        assert learning_rate_factor(step, 200, config) == pytest.approx(
            adam.param_groups[0]["lr"], abs=1e-9
        ), step
        adam.step()
        reference.step()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    batch=st.integers(1, 9),
    block=st.integers(1, 20),
    window=st.integers(1, 120),
)
def test_windows_hold_every_image_once(lengths: tuple[int, int], batch: int, block: int, window: int) -> None:
    plan = SamplePlan(1, *lengths, batch, block, window)
    seen: dict[str, list[int]] = {}
    for step in range(plan.steps(2)):
        for domain in ("a", "b"):
            for item in plan.items(step, domain, range(batch)):  # type: ignore[arg-type]
                seen.setdefault(item.key.rsplit(":", 1)[0], []).append(item.index)
    for lap, indices in seen.items():
        length = lengths["ab".index(lap.split(":")[2])]
        assert len(set(indices)) == len(indices) <= length
    for domain, length in zip("ab", lengths, strict=True):
        assert sorted(seen[f"1:augment:{domain}:0:0"]) == list(range(length))


def test_a_slot_reads_few_blocks_at_a_time() -> None:
    block, window, batch = 10, 400, 4
    plan = SamplePlan(5, 4000, 4000, batch, block, window)
    assert plan.rows == 100
    for start in (0, 300, 900):
        for slot in range(batch):
            steps = range(start, start + plan.rows)
            blocks = {plan.items(s, "a", range(slot, slot + 1))[0].index // block for s in steps}
            assert len(blocks) <= plan.rows // block + 1
    assert SamplePlan(5, 4000, 4000, batch, block, window).items(77, "b", range(4)) == plan.items(
        77, "b", range(4)
    )
    assert SamplePlan(6, 4000, 4000, batch, block, window).items(77, "b", range(4)) != plan.items(
        77, "b", range(4)
    )


def test_a_windowed_order_is_nearly_as_good_as_an_exact_one() -> None:
    """The yardsticks of SCALE.md: where images come, and with which others, from epoch to epoch."""
    length, batch, block = 20_000, 8, 50
    exact, windowed = SamplePlan(2, length, length, batch), SamplePlan(2, length, length, batch, block, 4000)

    def measured(plan: SamplePlan) -> tuple[float, float]:
        first, second = torch.zeros(length), torch.zeros(length)
        together = 0
        for step in range(length // batch):
            for place, epoch in ((first, 0), (second, length // batch)):
                indices = [item.index for item in plan.items(step + epoch, "a", range(batch))]
                place[indices] = float(step)
                blocks = [index // block for index in indices]
                together += len(blocks) - len(set(blocks))
        order = torch.corrcoef(torch.stack([torch.arange(length), first, second]))
        return float(order.fill_diagonal_(0).abs().max()), together / (2 * length)

    (exact_order, exact_together), (order, together) = measured(exact), measured(windowed)
    assert exact_order < 0.03
    assert order < 0.15  # 400 blocks instead of 20,000 images are placed at random
    assert together <= exact_together, "images of a batch come from different blocks"
