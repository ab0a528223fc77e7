"""The arithmetic of infra/SCALING.md."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.scaling import (
    ETHERNET,
    GPUS,
    MEASURED,
    Machine,
    all_reduce_seconds,
    efficiency,
    measure,
    step_seconds,
    tables,
)

PAGE = Path(__file__).parents[2] / "infra" / "SCALING.md"


def test_all_reduce_by_hand() -> None:
    machine = Machine(node_bandwidth=100.0, network_bandwidth=10.0, latency=0.5, gpus_per_node=4)
    assert all_reduce_seconds(1000, 3, 1, machine) == 0
    # a ring of four: 2 * 3/4 * 1000 bytes at 100 per second, and three messages of six steps
    assert all_reduce_seconds(1000, 3, 4, machine) == pytest.approx(15 + 9)
    # two nodes: besides, 2 * 1/2 * 250 bytes at 10 per second, and two steps more per message
    assert all_reduce_seconds(1000, 3, 8, machine) == pytest.approx(15 + 25 + 3 * 0.5 * (6 + 2))


@pytest.mark.parametrize("machine", [Machine(), ETHERNET])
@pytest.mark.parametrize("per_gpu", [1, 4])
def test_efficiency_falls_from_one(machine: Machine, per_gpu: int) -> None:
    values = [efficiency(MEASURED, gpus, per_gpu, machine) for gpus in GPUS]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < 1
    assert efficiency(MEASURED, 64, 4, machine) > efficiency(MEASURED, 64, 1, machine)


def test_a_step_is_never_shorter_than_its_launches() -> None:
    slow = step_seconds(MEASURED, 1, 1, Machine(launch=1.0))[0]
    assert slow == MEASURED.operations
    assert step_seconds(replace(MEASURED, operations=0), 1, 1, Machine())[0] == pytest.approx(
        MEASURED.flops / (989e12 * 0.15)
    )


def test_the_bytes_are_those_of_the_networks() -> None:
    now = measure(64)
    exact = ("generator_bytes", "discriminator_bytes", "buckets", "checkpoint_bytes")
    assert {k: getattr(now, k) for k in exact} == {k: getattr(MEASURED, k) for k in exact}
    # another version of PyTorch may fuse a few more or less
    assert now.operations == pytest.approx(MEASURED.operations, rel=0.1)
    # convolutions grow with the pixels, but for their borders
    assert now.flops * 16 == pytest.approx(MEASURED.flops, rel=0.1)


def test_the_page_shows_what_the_model_gives() -> None:
    assert "\n".join(tables()).rstrip() in PAGE.read_text()
