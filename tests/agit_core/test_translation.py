"""Inference in portions that suit the device."""

from __future__ import annotations

import pytest
import torch

from agit_core.translation import passes


@pytest.mark.parametrize(("side", "portions"), [(32, [16]), (128, [4] * 4), (256, [1] * 16), (512, [1] * 16)])
def test_a_cpu_takes_few_large_images_at_a_time(side: int, portions: list[int]) -> None:
    images = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, side, side)
    taken = passes(images, torch.device("cpu"))
    assert [len(part) for part in taken] == portions
    assert torch.equal(torch.cat(list(taken)), images)


def test_a_gpu_takes_them_all() -> None:
    images = torch.zeros(16, 3, 256, 256)
    (taken,) = passes(images, torch.device("cuda"))
    assert taken is images
