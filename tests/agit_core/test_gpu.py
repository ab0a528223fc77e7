"""What a GPU must do, with the precision a run has by default there: bf16, channels_last, compiled.

Needs torch and pytest alone: ``pytest --noconftest tests/agit_core/test_gpu.py``. Where a test says something of
a CPU as well, it runs there too (in bf16 and channels_last), so that it can be seen to pass and to fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo

from agit_core.config import MethodConfig, PrecisionConfig
from agit_core.precision import can_compile
from tests.agit_core import ranks, tiny
from tests.agit_core.ranks import Scenario, difference

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_a_gpu)])

UNTIL = 7
"""Three steps past the switch, at step 4."""


def method(device: str, **precision: Any) -> MethodConfig:
    """With an average of the weights; a run's own precision on a GPU, what is like it on a CPU."""
    config = tiny.calm(tiny.method())
    default = PrecisionConfig() if device == "cuda" else PrecisionConfig("bf16", "on", "off")
    return replace(
        config,
        optimizer=replace(config.optimizer, average_decay=0.9),
        precision=replace(default, **precision),
    )


@everywhere
@pytest.mark.parametrize("autocast", ["bf16", "off"])
def test_losses_are_those_of_the_plain_fp32_step(device: str, autocast: str) -> None:
    """Over both stages, beside the CPU in fp32, eager and channels first."""
    windows = []
    for where, config in (
        ("cpu", replace(method(device), precision=tiny.REFERENCE)),
        (device, method(device, autocast=autocast)),
    ):
        trainer = tiny.trainer(config, device=where)
        tiny.train(trainer, UNTIL)
        assert trainer.stages.switched_at_step == 4
        windows.append(trainer.window())
    # ten times what bf16 changes on a CPU
    rel, abs_ = (2e-3, 1e-3) if autocast == "bf16" else (2e-4, 5e-5)
    assert windows[1].losses == pytest.approx(windows[0].losses, rel=rel, abs=abs_)


@pytest.fixture(autouse=True)
def _no_silent_eager_mode() -> Iterator[None]:
    with dynamo.patch(fail_on_recompile_limit_hit=True):
        yield


@everywhere
def test_runs_repeat_and_resume_to_the_bit(device: str, tmp_path: Path) -> None:
    """Straight, once more, and gone on from checkpoints in mid-epoch, before the switch and after it."""
    if device == "cuda" and not can_compile():
        pytest.skip("eager reflection padding has no deterministic gradient on a GPU")
    straight, again = (tiny.trainer(method(device), device=device) for _ in range(2))
    tiny.train(straight, UNTIL)
    for at in (3, 5):
        tiny.train(again, at)
        again.save(tmp_path / str(at))
        resumed = tiny.trainer(method(device), device=device)
        resumed.load(tmp_path / str(at))
        tiny.train(resumed, UNTIL)
        assert tiny.same(tiny.everything(straight), tiny.everything(resumed))
    tiny.train(again, UNTIL)
    assert tiny.same(tiny.everything(straight), tiny.everything(again)), (
        "the same run twice, saved in between"
    )


@everywhere
def test_two_processes_on_one_device_are_one(device: str, tmp_path: Path) -> None:
    """DDP over gloo (NCCL wants a GPU for each), for two and one of three items, in both stages."""
    eager = replace(method(device, autocast="off"), precision=tiny.REFERENCE)
    scenarios = [
        Scenario("eager", eager, 3, 6, device=device),
        Scenario("default", method(device), 3, 6, device=device),
    ]
    both = ranks.run(tmp_path / "ranks", 2, scenarios)
    for name in ("eager", "default"):
        first, second = both[name]
        assert first["stage"] == "masked"
        assert tiny.same(first["weights"], second["weights"]), "ranks must agree bit for bit"
    one = ranks.play(scenarios[0])
    assert difference(one["weights"], both["eager"][0]["weights"]) < 5e-4
    assert difference(one["weights"], both["default"][0]["weights"]) < 2e-2


@needs_a_gpu
def test_a_step_does_not_wait_for_the_gpu() -> None:
    """In both stages: an ``.item()`` in the step would leave the GPU idle between kernels."""
    trainer = tiny.trainer(method("cuda"), device="cuda")
    for until in (2, 6):
        # the first steps of a stage compile, make the optimisers' state and end an epoch
        tiny.train(trainer, until)
        batch = tiny.next_batch(trainer)
        batch = batch._replace(a=batch.a.pin_memory(), b=batch.b.pin_memory())
        assert not trainer.plan.starts_epoch(batch.step)
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_on(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.stages.stage.value == "masked"
