"""The losses of six steps across the stage switch, as they were once: whoever changes them must mean it.

``python -m tests.agit_core.test_golden_losses`` writes them anew.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agit_core.config import LossConfig, MethodConfig
from tests.agit_core import tiny

FILE = Path(__file__).with_name("golden_losses.json")
STEPS = 6
PRESETS = ("agit", "uaggan", "cyclegan")


def method(preset: str) -> MethodConfig:
    config = tiny.calm(tiny.method(switch_at=1, tau=0.5))
    identity = LossConfig(identity_weight=0.5 if preset == "cyclegan" else 0.0)
    return replace(config, networks=replace(config.networks, preset=preset), losses=identity)  # type: ignore[arg-type]


def losses(preset: str) -> list[dict[str, float | str]]:
    trainer = tiny.trainer(method(preset))
    rows: list[dict[str, float | str]] = []
    for result in trainer.run(tiny.loader(trainer.plan), STEPS):
        figures = trainer.window()
        means = {k: round(v, 6) for k, v in (figures.losses | figures.mask_health).items()}
        rows.append({"stage": result.stage.value, **means})
    return rows


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_are_what_they_were(preset: str) -> None:
    expected = json.loads(FILE.read_text())[preset]
    assert [row["stage"] for row in expected].count("masked") == (0 if preset == "cyclegan" else 2)
    for step, (got, golden) in enumerate(zip(losses(preset), expected, strict=True)):
        assert got.pop("stage") == golden.pop("stage")
        # fp32 sums in another order, on another processor or another PyTorch
        assert got == pytest.approx(golden, rel=2e-3, abs=2e-4), f"step {step}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({preset: losses(preset) for preset in PRESETS}, indent=1) + "\n")
