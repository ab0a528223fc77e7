"""Evaluation with tiny networks and a few generated images: its arithmetic on small features, once on Inception's."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from agit_core import checkpoint, model_folder, networks, saved_method
from agit_core.checkpoint import Snapshot
from agit_core.config import MethodConfig, NetworkConfig
from agit_core.errors import BadInput
from agit_core.scores import attention as masks
from agit_core.scores import inception as inceptions
from agit_core.scores.inception import Inception
from agit_core.stages import HEALTH_KEYS
from pipeline import config_reader as configs
from pipeline import run_status, storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.prepare.stage import prepare
from pipeline.data.read.held_out import Rows
from pipeline.evaluate import compare, scored_images
from pipeline.evaluate.compare import Judge
from pipeline.evaluate.feature_cache import Arrays
from pipeline.evaluate.scoring import evaluate, figures
from pipeline.evaluate.shares import Share, compute
from pipeline.registry.identity import weights_digest
from pipeline.registry.registration import register
from tests.pipeline import features

pytestmark = pytest.mark.usefixtures("small_inception")

SIDE = 32
IMAGES = 8
METHOD = MethodConfig(
    networks=NetworkConfig(generator_width=4, generator_blocks=1, attention_width=4, discriminator_width=4)
)


def _tree(root: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "storage": str(root / "state"),
        "data": {
            "image_size": SIDE,
            "load_size": SIDE + 8,
            "encoding": "png",
            "builtin": {"train": 6, "test": IMAGES, "size": SIDE + 8},
            "workers": 1,
        },
        "evaluate": {"subsets": 4, "subset_size": 6, "bootstrap": 50, "device": "cpu"},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return configs.parse(_tree(root))


@pytest.fixture(scope="module")
def data_uri(config: Config) -> str:
    return prepare(config).uri


@pytest.fixture(scope="module")
def run_uri(config: Config) -> str:
    return _run(config, "tiny-first", networks.build(METHOD.networks, seed=1))


@pytest.fixture(scope="module")
def first(config: Config, run_uri: str, data_uri: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The evaluation that most tests look at, and the events it told on its way."""
    events: list[dict[str, Any]] = []
    return evaluate(config, run_uri, data_uri, lambda event: events.append(dict(event))), events


def _run(config: Config, run_id: str, net: nn.Module, method: MethodConfig = METHOD) -> str:
    uri = storage.join(config.storage, "runs", run_id)
    folder = storage.local_path(storage.join(uri, "checkpoint"))
    info = {"step": 1, "epoch": 0, "stage": "full", "image_size": SIDE}
    info["method"] = saved_method.to_dict(method)
    checkpoint.write(folder, Snapshot(info, net.state_dict(), {}, {}, {}))
    result = {"run_id": run_id, "steps": 1, "checkpoint": str(folder)}
    storage.write_json(storage.join(uri, "result.json"), result)
    return uri


def _attending(value: float, seed: int = 1) -> nn.Module:
    """Networks whose attention is the same everywhere, and near ``value``."""
    net = networks.build(METHOD.networks, seed)
    for attention in (net.attention_a, net.attention_b):
        assert attention is not None
        last = [m for m in attention.modules() if isinstance(m, nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.constant_(last.bias, float(torch.logit(torch.tensor(value))))
    return net


def test_all_figures_of_the_contract_are_there_and_finite(first: tuple[dict[str, Any], Any]) -> None:
    evaluation, _ = first
    _expect_all_figures(evaluation)
    assert evaluation["inception"]["sha256"] == features.SmallInception.sha256


def test_inception_scores_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inceptions, "load", features.REAL_LOAD)
    config = configs.parse(_tree(tmp_path))
    uri = _run(config, "tiny-real", networks.build(METHOD.networks, seed=1))
    evaluation = evaluate(config, uri, prepare(config).uri)
    _expect_all_figures(evaluation)
    assert evaluation["inception"]["sha256"] == inceptions.SHA256


def _expect_all_figures(evaluation: dict[str, Any]) -> None:
    metrics = evaluation["metrics"]
    for direction in ("a2b", "b2a"):
        for name in ("kid_target", "kid_source", "kid_mean"):
            assert f"{name}_{direction}" in metrics
            assert f"{name}_{direction}_std" in metrics
            assert f"do_nothing_{name}_{direction}" in metrics
        for name in ("fid", "background_l1", "background_psnr", "background_ssim"):
            assert f"{name}_{direction}" in metrics
            assert f"do_nothing_{name}_{direction}" in metrics
    for domain in "ab":
        for name in ("iou", "precision", "recall", "inside", "outside", *HEALTH_KEYS):
            assert f"attention_{name}_{domain}" in metrics
        assert f"cycle_l1_{domain}" in metrics
    assert all(isinstance(v, float) and np.isfinite(v) for v in metrics.values())
    mean = (metrics["kid_target_a2b"] + metrics["kid_source_a2b"]) / 2
    assert metrics["kid_mean_a2b"] == pytest.approx(mean)
    both = (metrics["kid_mean_a2b"] + metrics["kid_mean_b2a"]) / 2
    assert metrics["kid_mean"] == pytest.approx(both)
    assert evaluation["baseline"]["kid_target_a2b"] == metrics["do_nothing_kid_target_a2b"]
    assert evaluation["champion"] is None


def test_it_is_written_with_its_protocol_and_network(first: tuple[dict[str, Any], Any], run_uri: str) -> None:
    evaluation, _ = first
    assert storage.read_json(storage.join(run_uri, "evaluation.json")) == evaluation
    counts = evaluation["counts"]
    assert (counts["test_a"], counts["test_b"], counts["kid_subsets"]) == (IMAGES, IMAGES, 4)
    assert counts["kid_subset_size_target_a2b"] == 6
    assert "true masks of testA" in evaluation["protocol"]["background_a"]
    assert "warnings" not in evaluation["protocol"]


def test_intervals_surround_their_figures_and_judge_against_doing_nothing(
    first: tuple[dict[str, Any], Any],
) -> None:
    evaluation, _ = first
    for name in ("kid_target_a2b", "kid_mean_b2a", "fid_a2b", "kid_mean", "attention_iou_a", "cycle_l1_b"):
        told = evaluation["intervals"][name]
        assert told["low"] < told["value"] < told["high"]
        assert told["value"] == evaluation["metrics"][name]
        against = told["do_nothing"]
        assert against["verdict"] in {"better", "worse", "noise"}
        assert against["low"] <= against["difference"] <= against["high"]
    # an untrained network paints over everything
    assert evaluation["intervals"]["background_l1_a2b"]["do_nothing"]["verdict"] == "worse"
    assert evaluation["intervals"]["kid_source_a2b"]["do_nothing"]["verdict"] == "worse"


def test_progress_counts_to_the_end(first: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    _, events = first
    done = [event["done"] for event in events]
    assert done == sorted(done)
    assert events[-1]["done"] == events[-1]["total"]
    assert {event["unit"] for event in events} == {"images"}
    assert any("real images" in event["message"] for event in events)


def test_images_have_scores_and_the_extremes_have_pictures(
    first: tuple[dict[str, Any], Any], run_uri: str
) -> None:
    evaluation, _ = first
    rows = evaluation["per_image"]
    assert len(rows) == 2 * IMAGES
    assert {row["direction"] for row in rows} == {"a2b", "b2a"}
    assert all(row["name"] and np.isfinite(row["score"]) for row in rows)
    pictures = {storage.name(uri): uri for uri in storage.list_(storage.join(run_uri, "evaluation"))}
    assert {row["strip"] for row in rows if "strip" in row} == set(pictures)
    with Image.open(io.BytesIO(storage.read_bytes(next(iter(pictures.values()))))) as picture:
        assert picture.size == (4 * SIDE, SIDE)


def test_a_model_that_changes_nothing_scores_like_doing_nothing(config: Config, data_uri: str) -> None:
    """An attention of zero makes Eq 1 the identity: every figure must be that of the baseline."""
    evaluation = evaluate(config, _run(config, "tiny-idle", _attending(1e-7)), data_uri)
    metrics, baseline = evaluation["metrics"], evaluation["baseline"]
    for name in ("kid_target_a2b", "kid_source_b2a", "fid_a2b", "fid_b2a"):
        assert metrics[name] == pytest.approx(baseline[name], abs=1e-3)
        assert evaluation["intervals"][name]["do_nothing"]["verdict"] == "noise"
    assert metrics["background_l1_a2b"] == pytest.approx(0, abs=1e-6)
    assert metrics["cycle_l1_a"] == pytest.approx(0, abs=1e-6)
    assert metrics["attention_coverage_a"] == pytest.approx(0, abs=1e-6)
    assert metrics["attention_iou_a"] == 0.0
    assert metrics["attention_inside_a"] == pytest.approx(0, abs=1e-6)
    assert baseline["attention_inside_a"] == baseline["attention_outside_a"] == 0.0
    scores = [row["score"] for row in evaluation["per_image"] if row["direction"] == "a2b"]
    assert np.mean(scores) == pytest.approx(1.0, abs=0.05)


def test_a_mask_of_ones_has_the_trivial_iou(config: Config, data_uri: str) -> None:
    metrics = evaluate(config, _run(config, "tiny-all", _attending(0.999)), data_uri)["metrics"]
    assert metrics["attention_iou_a"] == pytest.approx(metrics["attention_iou_everywhere_a"])
    assert 0 < metrics["attention_iou_a"] < 0.6
    assert metrics["attention_recall_b"] == 1.0
    assert metrics["attention_auc_a"] == 0.5
    for name in ("inside", "outside", "opacity"):
        assert metrics[f"attention_{name}_a"] == pytest.approx(0.999, abs=1e-3)


def test_the_best_blob_is_one_for_all_images(config: Config, first: Any, data_uri: str) -> None:
    """One shape for a whole domain: no more than the mean of each image's own best, no less than any other's."""
    metrics = first[0]["metrics"]
    for domain in "ab":
        masked = scored_images.open_domain(config, data_uri, manifest.read(data_uri), domain).masked
        assert masked is not None
        each = torch.cat([masks.blob_iou(batch.masks) for batch in masked.batches(3)])  # type: ignore[arg-type]
        assert metrics[f"attention_iou_blob_{domain}"] == pytest.approx(float(each.mean(dim=0).max()))
        assert metrics[f"attention_iou_blob_{domain}"] < float(each.max(dim=1).values.mean())
        assert first[0]["intervals"][f"attention_iou_blob_{domain}"]["low"] > 0


def test_held_out_images_are_scored_and_no_others(config: Config, run_uri: str, data_uri: str) -> None:
    """Training images by their rows, with their own masks; the cache keeps them apart from test images."""
    rows: dict[Literal["a", "b"], Rows] = {
        "a": Rows(np.array([1]), [0, 2, 3]),
        "b": Rows(np.array([0]), [1, 4, 5]),
    }
    device = torch.device("cpu")
    inception = inceptions.load(None, Path("unused"), device)
    model_uri = storage.join(run_uri, "checkpoint")
    found = figures(config, model_uri, data_uri, inception, device, rows)
    on_test = figures(config, model_uri, data_uri, inception, device)
    assert found.keys() == on_test.keys()
    assert found["kid_target_a2b"] != on_test["kid_target_a2b"]
    assert found == figures(config, model_uri, data_uri, inception, device, rows)
    for domain, one in rows.items():
        held = scored_images.open_held_out(config, data_uri, manifest.read(data_uri), domain, one.held)
        assert held.masks_on_test
        batch = held.test.batch(held.test.indices)
        assert len(batch.images) == 3
        assert batch.masks is not None
        blobs = masks.blob_iou(batch.masks).mean(dim=0)
        assert found[f"attention_iou_blob_{domain}"] == pytest.approx(float(blobs.max()))


def test_the_second_evaluation_computes_no_features(
    config: Config,
    first: tuple[dict[str, Any], Any],
    run_uri: str,
    data_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(Inception, "features", forbidden)
    assert evaluate(config, run_uri, data_uri) == first[0]


def test_damaged_cached_features_are_computed_again(
    config: Config,
    first: tuple[dict[str, Any], Any],
    run_uri: str,
    data_uri: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # those of the other tests' models too
    kept = {u: storage.read_bytes(u) for u in storage.list_(storage.join(config.storage, "features"))}
    for uri, data in kept.items():
        storage.write_bytes(uri, data[: len(data) // 2])
    try:
        with caplog.at_level(logging.WARNING):
            again = evaluate(config, run_uri, data_uri)
        used = [uri for uri, data in kept.items() if storage.size(uri) == len(data)]
    finally:
        for uri, data in kept.items():
            storage.write_bytes(uri, data)
    assert caplog.text.count("computing them again") == len(used) == 4
    assert again["metrics"] == pytest.approx(first[0]["metrics"], rel=1e-5)


def test_any_model_folder_can_be_evaluated(
    config: Config, first: tuple[dict[str, Any], Any], run_uri: str, data_uri: str, root: Path
) -> None:
    model = model_folder.read(storage.join(run_uri, "checkpoint"))
    folder = model_folder.write(root / "somewhere", "x", model.method, model.image_size, model.weights)
    told = evaluate(config, str(folder), data_uri)
    assert told["metrics"] == first[0]["metrics"]
    assert told["uri"].startswith(storage.join(config.storage, "evaluations"))
    assert storage.exists(storage.join(told["uri"], "evaluation.json"))


def test_the_champion_stands_beside_the_next_model(
    config: Config, first: tuple[dict[str, Any], Any], run_uri: str, data_uri: str, root: Path
) -> None:
    """Registers the first as champion (with an open gate) and evaluates both against it."""
    tree = _tree(root)
    tree["register"] = {
        "gate": {"better_than_nothing": False, "better_than_blob": False},
        "tracking_uri": f"sqlite:///{root}/champion.db",
    }
    settings = configs.parse(tree)
    assert register(settings, run_uri, first[0])["aliases"] == ["challenger", "champion"]
    itself = evaluate(settings, run_uri, data_uri)
    assert itself["champion"] is None
    other_uri = _run(config, "tiny-second", _attending(1e-7))
    other = evaluate(settings, other_uri, data_uri)
    assert other["champion"]["version"] == 1
    alone = {k: v for k, v in first[0]["metrics"].items() if not k.startswith("do_nothing_")}
    assert other["champion"]["metrics"] == alone
    assert other["champion"]["intervals"]["kid_mean"]["low"] < other["champion"]["metrics"]["kid_mean"]
    # changing nothing keeps the background better than an untrained network does
    judged = other["intervals"]["background_l1_a2b"]["champion"]
    assert judged["verdict"] == "better"
    assert judged["difference"] == pytest.approx(-first[0]["metrics"]["background_l1_a2b"], rel=1e-3)
    decision = register(settings, other_uri, other)["decision"]
    assert decision["passed"] is False  # its masks cover nothing
    evaluated = evaluate(settings, "models:/tiny@champion", data_uri)
    assert evaluated["metrics"] == first[0]["metrics"]


def test_a_model_without_attention_has_no_attention_figures(config: Config, data_uri: str) -> None:
    method = MethodConfig(
        networks=NetworkConfig(
            preset="cyclegan", attention=False, generator_width=4, generator_blocks=1, discriminator_width=4
        )
    )
    net = networks.build(method.networks, seed=2)
    evaluation = evaluate(config, _run(config, "tiny-plain", net, method), data_uri)
    assert not [name for name in evaluation["metrics"] if "attention" in name]
    assert evaluation["metrics"]["background_l1_a2b"] > 0
    assert "attention" not in evaluation["protocol"]


def test_a_model_that_is_not_finite_is_not_scored(config: Config, data_uri: str) -> None:
    net = networks.build(METHOD.networks, seed=3)
    nn.init.constant_(next(net.generator_ab.parameters()), torch.nan)
    with pytest.raises(BadInput, match=r"are not finite \(generator_ab"):
        evaluate(config, _run(config, "tiny-diverged", net), data_uri)


def test_a_broken_model_has_no_figures_and_says_so(config: Config, data_uri: str) -> None:
    """Its weights are numbers, but so large that its images are not."""
    net = networks.build(METHOD.networks, seed=3)
    for parameter in net.generator_ab.parameters():
        nn.init.constant_(parameter, 3e38)
    evaluation = evaluate(config, _run(config, "tiny-broken", net), data_uri)
    assert evaluation["metrics"]["kid_target_a2b"] is None
    assert evaluation["metrics"]["background_l1_a2b"] is None
    assert evaluation["metrics"]["kid_mean"] is None
    assert evaluation["metrics"]["do_nothing_kid_target_a2b"] is not None
    assert evaluation["counts"]["not_finite_a2b"] == IMAGES
    assert "kid_target_a2b" not in evaluation["intervals"]


def _photos(root: Path, masks: dict[str, int]) -> str:
    """Five training and four or three test images; so many of a split have a mask, the first an empty one."""
    generator = np.random.default_rng(0)
    for split, count in (("trainA", 5), ("trainB", 5), ("testA", 4), ("testB", 3)):
        (root / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{index}.png")
            if index < masks.get(split, 0):
                mask = np.zeros((40, 40), np.uint8)
                mask[:20] = 255 if index else 0
                Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
    return str(root)


def test_masks_of_the_training_split_are_used_where_the_test_split_has_none(
    root: Path, tmp_path: Path
) -> None:
    """The layout of horse2zebra: photographs, masks for training images only, one of them empty."""
    tree = _tree(tmp_path)
    tree["data"] |= {"source": _photos(tmp_path / "photos", {"trainA": 4, "trainB": 4})}
    settings = configs.parse(tree)
    uri = prepare(settings).uri
    domain = scored_images.open_domain(settings, uri, storage.read_json(f"{uri}/manifest.json"), "a")
    assert domain.masked is not None
    assert (domain.masked.split, len(domain.masked), len(domain.test)) == ("trainA", 4, 4)
    batch = domain.masked.batch(domain.masked.indices)
    assert batch.images.shape == (4, 3, SIDE, SIDE)  # stored at SIDE + 8
    assert batch.masks is not None
    assert sorted(batch.masks.flatten(1).float().mean(1).tolist()) == pytest.approx(
        [0, 0.5, 0.5, 0.5], abs=0.05
    )
    evaluation = evaluate(settings, _run(settings, "photos", _attending(0.999)), uri)
    metrics, counts = evaluation["metrics"], evaluation["counts"]
    assert metrics["attention_iou_a"] == pytest.approx(0.5, abs=0.02)
    assert (counts["masks_trainA"], counts["masks_empty_trainA"], counts["masks_trainB"]) == (4, 1, 3)
    assert "trainB" in evaluation["protocol"]["background_b"]
    assert evaluation["protocol"]["warnings"]  # three images of domain B: smaller subsets than asked for
    assert counts["kid_subset_size_target_a2b"] == 3


@pytest.mark.parametrize(
    ("masks", "split", "count"),
    [
        ({"testA": 1, "trainA": 4}, "trainA", 4),
        ({"testA": 3, "trainA": 2}, "testA", 3),
        ({"testA": 2}, "testA", 2),
        ({"testA": 4, "trainA": 5}, "testA", 4),
    ],
)
def test_an_image_without_a_mask_is_not_all_background(
    masks: dict[str, int], split: str, count: int, tmp_path: Path
) -> None:
    tree = _tree(tmp_path)
    tree["data"] |= {"source": _photos(tmp_path / "photos", masks)}
    settings = configs.parse(tree)
    made = prepare(settings)
    domain = scored_images.open_domain(settings, made.uri, made.manifest, "a")
    assert domain.masked is not None
    assert (domain.masked.split, len(domain.masked), len(domain.test)) == (split, count, 4)
    assert domain.masks_on_test == (count == 4 and split == "testA")
    for batch in domain.masked.batches(3):
        assert batch.masks is not None
        for index, mask in zip(batch.indices, batch.masks, strict=True):
            assert mask.float().mean() == pytest.approx(
                0.5 if domain.masked.source.name(index) != "0.png" else 0, abs=0.05
            )
    domain.close()


def test_bad_calls_are_told_before_any_work(
    config: Config, run_uri: str, data_uri: str, tmp_path: Path, root: Path
) -> None:
    with pytest.raises(BadInput, match="no model at"):
        evaluate(config, str(tmp_path / "nothing"), data_uri)
    with pytest.raises(BadInput, match="no prepared data"):
        evaluate(config, run_uri, str(tmp_path / "nothing"))
    storage.write_json(str(tmp_path / "runs" / "spec.json"), {})
    with pytest.raises(BadInput, match="is not finished"):
        evaluate(config, str(tmp_path / "runs"), data_uri)
    tree = _tree(root)
    tree["evaluate"]["inception"] = str(tmp_path / "absent.pt")
    with pytest.raises(BadInput, match="no Inception file at"):
        evaluate(configs.parse(tree), run_uri, data_uri)
    manifest = storage.read_json(storage.join(data_uri, "manifest.json"))
    manifest["splits"]["testB"]["rows"] = 1
    with pytest.raises(BadInput, match="at least 2"):
        scored_images.open_domain(config, data_uri, manifest, "b")


def test_every_competitor_meets_the_same_subsets_and_resamples(config: Config) -> None:
    generator = torch.Generator().manual_seed(0)
    real_a, real_b = (torch.rand(12, 2048, generator=generator) for _ in range(2))
    judge = Judge(config.evaluate, 0, real_a, real_b)
    ones = torch.ones(12)
    arrays = {
        d: {"features": f, "finite": ones.bool(), "cycle_l1": ones.double()}
        for d, f in (("a2b", real_a), ("b2a", real_b))
    }
    model = judge.model(arrays)
    nothing = judge.nothing(model)
    assert {name: model.metrics[name] for name in ("kid_mean", "fid", "kid_source_b2a")} == {
        name: nothing.metrics[name] for name in ("kid_mean", "fid", "kid_source_b2a")
    }
    told = compare.intervals(model, {"do_nothing": nothing})["kid_mean"]["do_nothing"]
    assert told == {"difference": 0.0, "low": 0.0, "high": 0.0, "verdict": "noise"}


def test_a_difference_is_that_of_all_images_and_an_interval_knows_the_subsets_noise(config: Config) -> None:
    """Two models that are alike differ in the means over a few small subsets by more than their images do."""
    generator = torch.Generator().manual_seed(0)
    real_a, real_b, mine, theirs = (torch.rand(60, 8, generator=generator) for _ in range(4))
    judge = Judge(config.evaluate.model_copy(update={"subsets": 2, "subset_size": 5}), 0, real_a, real_b)
    ones = torch.ones(60)
    model, other = (
        judge.model({d: {"features": f, "finite": ones.bool()} for d in ("a2b", "b2a")})
        for f in (mine, theirs)
    )

    def kid(translated: torch.Tensor) -> float:
        def cubed(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x.double() @ y.double().T / 8 + 1) ** 3

        def within(x: torch.Tensor) -> torch.Tensor:
            return (cubed(x, x).sum() - cubed(x, x).trace()) / (60 * 59)

        return float(within(translated) + within(real_b) - 2 * cubed(translated, real_b).mean())

    told = compare.intervals(model, {"champion": other})["kid_target_a2b"]
    assert told["champion"]["difference"] == pytest.approx(kid(mine) - kid(theirs))
    metrics = (model.metrics["kid_target_a2b"], other.metrics["kid_target_a2b"])
    assert None not in metrics
    assert metrics[0] - metrics[1] != pytest.approx(told["champion"]["difference"], rel=0.5)  # type: ignore[operator]
    spread = float(model.replicates["kid_target_a2b"].std())
    subsets = model.metrics["kid_target_a2b_std"]
    assert subsets is not None
    wide = 1.96 * (spread**2 + subsets**2 / 2) ** 0.5
    assert told["high"] - told["value"] == pytest.approx(wide, rel=1e-3)


def test_the_key_of_a_model_is_what_it_does(run_uri: str) -> None:
    model = model_folder.read(storage.join(run_uri, "checkpoint"))
    digest = weights_digest(model)
    assert weights_digest(model_folder.read(storage.join(run_uri, "checkpoint"))) == digest
    model.weights["generator_ab.1.bias"] = model.weights["generator_ab.1.bias"] + 1e-3
    assert weights_digest(model) != digest


def test_any_number_of_workers_gives_the_same_scores(
    config: Config, run_uri: str, data_uri: str, tmp_path: Path
) -> None:
    """Equal to the bit: an image's batch does not depend on who computes it."""
    model = run_status.model_checkpoint(run_uri)
    assert model is not None
    told, parts = [], []
    for workers in (1, 2, 3, 100):
        # a storage each, so that nothing is found in the cache
        of = config.evaluate.model_copy(update={"batch_size": 3, "workers": workers})
        mine = config.model_copy(update={"storage": str(tmp_path / str(workers)), "evaluate": of})

        def spread(shares: Sequence[Share], mine: Config = mine) -> Iterator[Arrays]:
            parts.append([share.part for share in shares])
            return (compute(mine, data_uri, share) for share in shares)

        evaluation = evaluate(mine, model, data_uri, spread=spread if workers > 1 else None)
        told.append((evaluation["metrics"], evaluation["intervals"], evaluation["per_image"]))
    # three batches of the eight images: real ones of both domains and both directions
    assert parts == [[0, 1]] * 4 + [[0, 1, 2]] * 8
    assert told[1:] == told[:1] * 3
