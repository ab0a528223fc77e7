"""Models for inference: half precision, no discriminators; and those that come with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agit_core import Translator, model_folder, pretrained
from agit_core.errors import BadInput
from tests.agit_core import models


def slim(folder: Path, **changed: torch.Tensor) -> Path:
    model = model_folder.read(models.write_model(folder / "full"))
    weights = model_folder.slimmed(model.weights) | changed
    return model_folder.write(folder / "slim", "slim", model.method, 64, weights)


def test_half_precision_differs_by_a_grey_level_or_two(tmp_path: Path) -> None:
    small = Translator.load(slim(tmp_path))
    full = Translator.load(tmp_path / "full")
    assert full.model.has_discriminators
    assert not small.model.has_discriminators
    image = models.photograph(64, 48)
    for direction in ("a2b", "b2a"):
        there, here = (t.translate(image, direction).image.astype(int) for t in (full, small))
        assert np.abs(there - image).mean() > 0, "an untouched image would prove nothing"
        assert np.abs(there - here).max() <= 2


def test_any_other_weights_must_be_there(tmp_path: Path) -> None:
    weights = model_folder.slimmed(models.weights())
    lost = {k: v for k, v in weights.items() if not k.startswith("attention_b.")}
    model = model_folder.read(models.write_model(tmp_path / "full"))
    for broken in (lost, weights | {"generator_cd.weight": torch.zeros(1)}):
        model_folder.write(tmp_path / "broken", "broken", model.method, 64, broken)
        with pytest.raises(BadInput, match="do not fit its configuration"):
            Translator.load(tmp_path / "broken")


def test_an_unknown_pretrained_model_is_refused() -> None:
    with pytest.raises(BadInput, match="no pretrained model 'h2z512'"):
        Translator.load("pretrained:h2z512")


@pytest.mark.parametrize("name", pretrained.names())
def test_a_packaged_model_translates_and_says_what_it_is(name: str) -> None:
    folder = pretrained.folder(f"pretrained:{name}")
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 12 * 10**6
    translator = Translator.load(f"pretrained:{name}")
    assert {v.dtype for v in translator.model.weights.values()} == {torch.float16}
    image = models.photograph(97, 130)
    for direction in translator.directions:
        translated = translator.translate(image, direction)
        assert translated.image.shape == image.shape
        assert 0.01 < translated.mask.mean() / 255 < 0.9
        assert np.abs(translated.image.astype(int) - image).mean() > 0.5
    card = (folder / "README.md").read_text()
    assert "ImageNet" in card
    assert "research" in card
