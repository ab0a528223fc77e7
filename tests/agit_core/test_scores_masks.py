"""Attention against true masks, and change outside of them."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from agit_core.scores import attention, images


def squares() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth: the upper half. Attention: the left half at 0.9, elsewhere 0.2. Second image: no object."""
    truth = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    truth[0, :, :4] = True
    mask = torch.full((2, 1, 8, 8), 0.2)
    mask[:, :, :, :4] = 0.9
    return mask, truth


def test_agreement_with_a_mask_by_hand() -> None:
    mask, truth = squares()
    scores = attention.agreement(mask, truth)
    assert scores["iou"][0].item() == pytest.approx(16 / 48)
    assert scores["precision"][0].item() == 0.5
    assert scores["recall"][0].item() == 0.5
    assert all(values[1].isnan() for values in scores.values())
    assert attention.everywhere(truth)[0].item() == 0.5
    assert attention.everywhere(truth)[1].isnan()


def test_the_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(3, 1, 9, 9, generator=generator) * 5).round() / 5  # with ties
    truth = torch.rand(3, 1, 9, 9, generator=generator) < 0.3
    for found, attended, objects in zip(attention.auc(mask, truth), mask, truth, strict=True):
        inside, outside = attended[objects], attended[~objects]
        pairs = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside)
        assert found.item() == pytest.approx(pairs.mean().item())
    assert attention.auc(truth.float(), truth).tolist() == [1.0] * 3
    assert attention.auc(torch.full_like(mask, 0.7), truth).tolist() == [0.5] * 3
    assert attention.auc(mask, torch.ones_like(truth)).isnan().all()
    assert attention.auc(mask, torch.zeros_like(truth)).isnan().all()


def test_a_blob_finds_what_lies_in_the_middle_and_nothing_else() -> None:
    truth = torch.zeros(3, 1, 40, 40, dtype=torch.bool)
    y, x = torch.meshgrid(*[torch.arange(40) - 19.5] * 2, indexing="ij")
    truth[0, 0] = (x / 16) ** 2 + (y / 8) ** 2 <= 1  # half axes 0.4 and 0.2 of the side
    truth[1, 0, :4, :4] = True
    iou = attention.blob_iou(truth)
    assert iou.shape == (3, attention.BLOBS)
    assert iou[0].max() == 1.0
    assert iou[1].max() < 0.05
    assert iou[2].isnan().all()
    everything = torch.ones(1, 1, 40, 40, dtype=torch.bool)
    assert attention.blob_iou(everything).max() > 0.95
    auc = attention.centre_auc(truth)
    assert auc[0] > 0.9
    assert auc[1] < 0.05
    assert auc[2].isnan()


def test_the_threshold_counts() -> None:
    mask, truth = squares()
    assert attention.agreement(mask, truth, threshold=0.1)["recall"][0].item() == 1.0
    nothing = attention.agreement(mask, truth, threshold=0.95)
    assert nothing["iou"][0].item() == 0.0
    assert nothing["precision"][0].isnan()


def test_attention_exactly_at_the_threshold_counts() -> None:
    mask = torch.tensor([0.5, 0.4999, 0.5001, 0.0]).view(1, 1, 2, 2)
    truth = torch.tensor([True, False, False, False]).view(1, 1, 2, 2)
    assert attention.agreement(mask, truth)["iou"].tolist() == [0.5]
    assert attention.agreement(mask, truth, threshold=0.25)["precision"].tolist() == pytest.approx([1 / 3])


def test_attention_inside_and_outside_needs_no_threshold() -> None:
    mask, truth = squares()
    mask[0, :, :4] *= 0.5
    scores = attention.inside_outside(mask, truth)
    assert scores["inside"][0].item() == pytest.approx((0.45 + 0.1) / 2)
    assert scores["outside"][0].item() == pytest.approx((0.9 + 0.2) / 2)
    assert scores["inside"][1].isnan()
    assert scores["outside"][1].isnan()
    full = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert attention.inside_outside(mask[:1], full)["outside"].isnan().all()


def test_coverage_is_the_mean_per_image() -> None:
    mask, _ = squares()
    assert attention.coverage(mask).tolist() == pytest.approx([0.55, 0.55])


def test_health_names_what_training_watches() -> None:
    figures = attention.health(squares()[0], tau=0.1)
    assert figures["coverage"] == pytest.approx(0.55)
    assert figures["above_tau"] == 1.0
    assert figures["spread"] > 0


def test_background_change_ignores_the_object() -> None:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    outside = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    outside[:, :, :16] = False
    changed = image.clone()
    changed[:, :, :8] = 1.0  # far enough from the border for the SSIM window
    same = images.background(image, changed, outside)
    assert same["l1"].tolist() == [0.0, 0.0]
    assert same["psnr"].tolist() == [images.PSNR_CAP] * 2
    assert same["ssim"].tolist() == pytest.approx([1.0, 1.0])
    changed[1, :, 24:] += 0.2
    differing = images.background(image, changed, outside)
    assert differing["l1"][0].item() == 0.0
    assert differing["l1"][1].item() == pytest.approx(0.05, abs=1e-6)  # 0.1 on half of the background
    assert differing["psnr"][1].item() == pytest.approx(
        10 * torch.log10(torch.tensor(1 / 0.005)).item(), abs=1e-3
    )
    assert differing["ssim"][1].item() < 1.0


def test_ssim_over_the_whole_image_is_the_usual_one() -> None:
    image = torch.rand(2, 3, 40, 40) * 2 - 1
    other = (image + 0.1 * torch.randn_like(image)).clamp(-1, 1)
    expected = structural_similarity_index_measure(
        image / 2 + 0.5, other / 2 + 0.5, data_range=1.0, reduction="none"
    )
    scores = images.background(image, other, torch.ones(2, 1, 40, 40, dtype=torch.bool))
    torch.testing.assert_close(scores["ssim"].float(), expected, atol=0.02, rtol=0)


def test_an_image_without_background_has_no_score() -> None:
    image = torch.zeros(1, 3, 16, 16)
    scores = images.background(image, image, torch.zeros(1, 1, 16, 16, dtype=torch.bool))
    assert all(values.isnan().all() for values in scores.values())


def test_cycle_error() -> None:
    image = torch.zeros(2, 3, 8, 8)
    restored = image.clone()
    restored[1] += 0.5
    assert images.cycle_l1(image, restored).tolist() == [0.0, 0.25]
