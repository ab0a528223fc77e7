"""The benchmark for a GPU, on this processor with small networks and seconds of time."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from agit_core import Translator, model_folder
from tests.agit_core import models
from tests.benchmarks import alone, gpu
from tests.threads import one_thread  # noqa: F401

METHOD = {
    "networks": {
        "generator_width": 4,
        "generator_blocks": 1,
        "attention_width": 4,
        "discriminator_width": 4,
        "attention_activation": "identity",
    },
    "coverage": {"band_a": [0.2, 0.4]},
    "optimizer": {"average_decay": 0.9},
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images a domain, with masks for domain a."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(12):
        name = f"train{'AB'[number % 2]}"
        models.save(folder / name / f"{number:02d}.jpg", 48, 48, seed=number)
        if number % 2 == 0:
            (folder / "masks" / name).mkdir(parents=True, exist_ok=True)
            mask = np.zeros((48, 48), np.uint8)
            mask[12:36, 12:36] = 255
            Image.fromarray(mask).save(folder / "masks" / name / f"{number:02d}.png")
    return folder


def run(data: Path, out: Path, minutes: float = 0.2) -> int:
    settings = ["--size", "32", "--batch", "2", "--held-out", "2", "--method", json.dumps(METHOD)]
    return gpu.main(["--data", str(data), "--minutes", str(minutes), "--out", str(out), *settings])


def test_time_ends_with_a_model_in_half_precision_and_more_time_goes_on(
    photographs: Path, tmp_path: Path
) -> None:
    assert run(photographs, tmp_path) == 0
    first = json.loads((tmp_path / "bench.json").read_text())
    assert first["gpu_tests"]
    assert first["step"]
    assert first["trained_steps"] > 0
    model = model_folder.read(tmp_path)
    assert {v.dtype for v in model.weights.values()} == {torch.float16}
    assert not model.has_discriminators
    image = models.photograph(40, 56)
    assert Translator.load(tmp_path)(image, "b2a").shape == image.shape
    assert run(photographs, tmp_path, 0.1) == 0
    assert json.loads((tmp_path / "bench.json").read_text())["trained_steps"] > first["trained_steps"]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == sorted({r["step"] for r in rows})
    assert 0 <= rows[-1]["iou_a"] <= 1
    assert "iou_b" not in rows[-1], "domain b has no masks"


def test_schedule_is_fitted_to_the_time(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every look takes a second: the rate is near 0 when the time is up."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(alone, "time", clock)
    training = alone.Training(photographs, tmp_path, alone.method_with(METHOD), 32, 10**9, 2, held_out=2)
    gpu._train(training, end=60.0)
    assert next(ticks) < 70
    assert 10 < training.trainer.step < 60
    assert training.trainer.learning_rate < 0.2 * training.trainer.config.optimizer.learning_rate


def test_a_folder_without_images_is_a_wrong_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "out") == 2
    assert "no JPEG or PNG images in" in capsys.readouterr().err


def test_training_alone_can_be_lengthened(photographs: Path, tmp_path: Path) -> None:
    """Stopped, resumed and lengthened, it holds the steps it was given; held-out images are not trained on."""

    def training(steps: int) -> alone.Training:
        return alone.Training(photographs, tmp_path, alone.method_with(METHOD), 32, steps, 2, held_out=2)

    first = training(3)
    assert first.trainer.plan.length_a == 4
    assert list(first.run(2)) == [1, 2, 3]
    assert first.trainer.learning_rate < first.trainer.config.optimizer.learning_rate
    longer = training(8)
    assert longer.trainer.step == 3
    assert list(longer.run(2))[-1] == 8
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000007", "00000008"]
