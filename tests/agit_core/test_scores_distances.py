from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from agit_core.errors import BadInput
from agit_core.scores import bootstrap, distances


def features(count: int, shift: float = 0.0, dimensions: int = 2048, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + count)
    return (torch.rand(count, dimensions, generator=generator) + shift).float()


def second_kid(x: Tensor, y: Tensor) -> float:
    """Binkowski et al. 2018, written down pair by pair: no line is shared with torchmetrics or ours."""
    a, b = x.numpy().astype(np.float64), y.numpy().astype(np.float64)

    def k(p: np.ndarray, q: np.ndarray) -> float:
        return float((np.dot(p, q) / len(p) + 1) ** 3)

    def within(s: np.ndarray) -> float:
        pairs = list(itertools.combinations(range(len(s)), 2))
        return sum(k(s[i], s[j]) for i, j in pairs) / len(pairs)

    cross = [k(p, q) for p in a for q in b]
    return within(a) + within(b) - 2 * sum(cross) / len(cross)


def second_fid(x: Tensor, y: Tensor) -> float:
    a, b = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s) + np.trace(t) - 2 * np.trace(root))


def test_kid_agrees_with_a_second_implementation() -> None:
    x, y = features(24), features(24, 0.1, seed=5)
    ours = distances.kid(x, y, subsets=1, subset_size=24)
    assert ours.mean == pytest.approx(second_kid(x, y), rel=1e-9)
    assert ours.mean > 0.01


def test_kid_over_subsets_agrees_on_the_same_draws() -> None:
    x, y = features(30, 0.05), features(36, seed=9)
    ours = distances.kid(x, y, subsets=4, subset_size=10, seed=3)
    draw = torch.Generator().manual_seed(3)
    expected = []
    for _ in range(4):
        real = torch.randperm(36, generator=draw)[:10]
        fake = torch.randperm(30, generator=draw)[:10]
        expected.append(second_kid(x[fake], y[real]))
    assert ours.mean == pytest.approx(np.mean(expected), rel=1e-9)
    assert ours.std == pytest.approx(np.std(expected), rel=1e-6)
    assert (ours.subsets, ours.subset_size, ours.counts, ours.warning) == (4, 10, (30, 36), None)


def test_kid_is_the_mean_of_10_subsets_of_50_unless_told_otherwise() -> None:
    """The paper's protocol: figures of other numbers of subsets do not stand beside published ones."""
    x, y = features(60, dimensions=8), features(70, 0.1, 8, seed=5)
    estimate = distances.kid(x, y)
    assert (estimate.subsets, estimate.subset_size) == (10, 50)
    assert estimate == distances.kid(x, y, subsets=10, subset_size=50)


def test_subsets_are_seeded_and_leave_the_global_state_alone() -> None:
    x, y = features(40), features(40, 0.02, seed=1)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = distances.kid(x, y, subset_size=10, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert distances.kid(x, y, subset_size=10, seed=1) == first
    assert distances.kid(x, y, subset_size=10, seed=2) != first


def test_a_small_set_shrinks_the_subsets_and_says_so() -> None:
    estimate = distances.kid(features(12), features(30, seed=2), subset_size=50)
    assert estimate.subset_size == 12
    assert estimate.warning is not None
    assert "12 images instead of 50" in estimate.warning
    assert distances.kid(features(2), features(2, seed=2)).subset_size == 2


@pytest.mark.parametrize("distance", [distances.kid, distances.fid])
def test_fewer_than_two_images_and_damaged_features_are_refused(distance: object) -> None:
    assert callable(distance)
    with pytest.raises(BadInput, match="at least 2 images"):
        distance(features(1), features(9))
    broken = features(9)
    broken[3, 5] = torch.nan
    with pytest.raises(BadInput, match="not finite"):
        distance(broken, features(9, seed=1))


@pytest.mark.parametrize(("n", "m", "dimensions"), [(40, 50, 16), (12, 15, 64)])
def test_fid_agrees_with_a_second_implementation(n: int, m: int, dimensions: int) -> None:
    """With more images than dimensions, and with fewer, where our rotation changes what is computed."""
    x, y = features(n, dimensions=dimensions), features(m, 0.3, dimensions, seed=4)
    assert distances.fid(x, y) == pytest.approx(second_fid(x, y), rel=1e-5, abs=1e-5)


def test_the_same_images_have_no_distance() -> None:
    x = features(30)
    assert distances.fid(x, x) == pytest.approx(0.0, abs=1e-6)
    assert distances.kid(x, x, subsets=1, subset_size=30).mean < 0  # the pairs of an image with itself


def test_bootstrap_replicates_are_the_scores_of_the_resampled_images() -> None:
    """A resample in which every image is drawn once, and one that holds some images twice (FID)."""
    x, y = features(14, dimensions=32), features(11, 0.2, 32, seed=3)
    once = torch.ones(1, 14, dtype=torch.float64), torch.ones(1, 11, dtype=torch.float64)
    assert bootstrap.kid_replicates(x, y, *once).item() == pytest.approx(second_kid(x, y), rel=1e-9)
    assert bootstrap.fid_replicates(x, y, *once).item() == pytest.approx(distances.fid(x, y), rel=1e-6)
    w, v = bootstrap.resamples(14, 3, seed=1), bootstrap.resamples(11, 3, seed=2)
    assert (w.sum(1) == 14).all()
    assert w.max() > 1
    replicates = bootstrap.fid_replicates(x, y, w, v)
    for row in range(3):
        a = x.repeat_interleave(w[row].long(), dim=0)
        b = y.repeat_interleave(v[row].long(), dim=0)
        assert replicates[row].item() == pytest.approx(distances.fid(a, b), rel=1e-6)


def test_kid_replicates_never_pair_an_image_with_itself() -> None:
    x, y = features(6, dimensions=16), features(5, 0.2, 16, seed=3)
    w = torch.tensor([[2.0, 1, 0, 3, 0, 0]], dtype=torch.float64)
    v = torch.ones(1, 5, dtype=torch.float64)
    rows = [0, 0, 1, 3, 3, 3]
    pairs = [(i, j) for i in rows for j in rows if i != j]
    kernel = distances.kernel(x, x)
    within = torch.stack([kernel[i, j] for i, j in pairs]).mean()
    others = distances.kernel(y, y).fill_diagonal_(0).sum() / 20
    cross = distances.kernel(x[rows], y).mean()
    expected = float(within + others - 2 * cross)
    assert bootstrap.kid_replicates(x, y, w, v).item() == pytest.approx(expected, rel=1e-9)


def test_the_bootstrap_error_is_the_error_over_fresh_samples() -> None:
    """The standard error from one sample against the spread of KID over many independent samples."""
    generator = torch.Generator().manual_seed(0)

    def sample(shift: float) -> Tensor:
        return torch.randn(40, 24, generator=generator) + shift

    ones = torch.ones(1, 40, dtype=torch.float64)
    fresh = torch.cat([bootstrap.kid_replicates(sample(0.3), sample(0.0), ones, ones) for _ in range(200)])
    errors = [
        bootstrap.kid_replicates(
            sample(0.3), sample(0.0), bootstrap.resamples(40, 200, i), bootstrap.resamples(40, 200, 100 + i)
        ).std()
        for i in range(10)
    ]
    assert float(torch.stack(errors).mean() / fresh.std()) == pytest.approx(1.0, abs=0.35)


def test_verdicts() -> None:
    assert bootstrap.verdict(bootstrap.Interval(-1, -2, -0.1)) == "better"
    assert bootstrap.verdict(bootstrap.Interval(1, 0.1, 2)) == "worse"
    assert bootstrap.verdict(bootstrap.Interval(-1, -2.1, 0.1)) == "noise"
    assert bootstrap.verdict(bootstrap.Interval(1, 0.1, 2), lower_is_better=False) == "better"
    assert bootstrap.verdict(bootstrap.interval(1.0, torch.tensor([torch.nan]))) == "noise"
    nothing = bootstrap.mean_interval(torch.tensor([torch.nan, torch.nan]))
    assert bootstrap.verdict(nothing) == "noise"


def test_an_interval_of_a_mean() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, torch.nan])
    interval = bootstrap.mean_interval(values)
    assert interval.value == 2.0
    assert interval.high - 2.0 == pytest.approx(1.96 / 3**0.5, abs=1e-3)


def test_fid_is_resampled_less_often_for_large_sets() -> None:
    assert bootstrap.fid_repeats(200, 140) == 200
    assert bootstrap.fid_repeats(200, 2000) == 20
    assert bootstrap.fid_repeats(5, 2000) == 5


def test_single_images_are_placed_between_target_and_source() -> None:
    source, target = features(40, dimensions=32), features(40, 0.3, 32, seed=3)
    score = distances.distance_to_target(torch.cat([source, target]), source, target)
    assert score is not None
    assert score[:40].mean().item() == pytest.approx(1.0, abs=1e-9)
    assert score[40:].mean().item() == pytest.approx(0.0, abs=1e-9)
    halfway = distances.distance_to_target(source + 0.15, source, target)
    assert halfway is not None
    assert 0.3 < halfway.mean().item() < 0.7
    assert distances.distance_to_target(source, source, source) is None
