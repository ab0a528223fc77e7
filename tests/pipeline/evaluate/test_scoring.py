"""Evaluation with tiny networks and a few generated images: its arithmetic on small features, once on Inception's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from agit_core import model_folder, networks
from agit_core.config import MethodConfig, NetworkConfig
from agit_core.errors import BadInput
from agit_core.scores import attention as masks
from agit_core.scores import inception as inceptions
from agit_core.stages import HEALTH_KEYS
from pipeline import config as configs
from pipeline import storage
from pipeline.config import Config
from pipeline.data.format import manifest
from pipeline.data.prepare.stage import prepare
from pipeline.data.read.held_out import Rows
from pipeline.evaluate import scored_images
from pipeline.evaluate.scoring import evaluate, figures
from pipeline.records import Evaluation
from pipeline.registry.registration import register
from tests.pipeline import features
from tests.pipeline.evaluate.tiny_models import IMAGES, METHOD, SIDE, attending, settings_tree, write_run

pytestmark = pytest.mark.usefixtures("small_inception")


def test_all_figures_of_the_contract_are_there_and_finite(first: tuple[Evaluation, Any]) -> None:
    evaluation, _ = first
    _expect_all_figures(evaluation)
    assert evaluation.inception["sha256"] == features.SmallInception.sha256


def test_inception_scores_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inceptions, "load", features.REAL_LOAD)
    config = configs.parse(settings_tree(tmp_path))
    uri = write_run(config, "tiny-real", networks.build(METHOD.networks, seed=1))
    evaluation = evaluate(config, uri, prepare(config).uri)
    _expect_all_figures(evaluation)
    assert evaluation.inception["sha256"] == inceptions.SHA256


def _expect_all_figures(evaluation: Evaluation) -> None:
    metrics = evaluation.metrics
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
    assert evaluation.baseline["kid_target_a2b"] == metrics["do_nothing_kid_target_a2b"]
    assert evaluation.champion is None


def test_it_is_written_with_its_protocol_and_network(first: tuple[Evaluation, Any], run_uri: str) -> None:
    evaluation, _ = first
    assert storage.read_json(storage.join(run_uri, "evaluation.json")) == evaluation.plain()
    counts = evaluation.counts
    assert (counts["test_a"], counts["test_b"], counts["kid_subsets"]) == (IMAGES, IMAGES, 4)
    assert counts["kid_subset_size_target_a2b"] == 6
    assert "true masks of testA" in evaluation.protocol["background_a"]
    assert "warnings" not in evaluation.protocol


def test_intervals_surround_their_figures_and_judge_against_doing_nothing(
    first: tuple[Evaluation, Any],
) -> None:
    evaluation, _ = first
    for name in ("kid_target_a2b", "kid_mean_b2a", "fid_a2b", "kid_mean", "attention_iou_a", "cycle_l1_b"):
        told = evaluation.intervals[name]
        assert told["low"] < told["value"] < told["high"]
        assert told["value"] == evaluation.metrics[name]
        against = told["do_nothing"]
        assert against["verdict"] in {"better", "worse", "noise"}
        assert against["low"] <= against["difference"] <= against["high"]
    # an untrained network paints over everything
    assert evaluation.intervals["background_l1_a2b"]["do_nothing"]["verdict"] == "worse"
    assert evaluation.intervals["kid_source_a2b"]["do_nothing"]["verdict"] == "worse"


def test_progress_counts_to_the_end(first: tuple[Evaluation, list[dict[str, Any]]]) -> None:
    _, events = first
    done = [event["done"] for event in events]
    assert done == sorted(done)
    assert events[-1]["done"] == events[-1]["total"]
    assert {event["unit"] for event in events} == {"images"}
    assert any("real images" in event["message"] for event in events)


def test_images_have_scores_and_the_extremes_have_pictures(
    first: tuple[Evaluation, Any], run_uri: str
) -> None:
    evaluation, _ = first
    rows = evaluation.per_image
    assert len(rows) == 2 * IMAGES
    assert {row["direction"] for row in rows} == {"a2b", "b2a"}
    assert all(row["name"] and np.isfinite(row["score"]) for row in rows)
    pictures = {storage.name(uri): uri for uri in storage.list_(storage.join(run_uri, "evaluation"))}
    assert {row["strip"] for row in rows if "strip" in row} == set(pictures)
    with Image.open(io.BytesIO(storage.read_bytes(next(iter(pictures.values()))))) as picture:
        assert picture.size == (4 * SIDE, SIDE)


def test_a_model_that_changes_nothing_scores_like_doing_nothing(config: Config, data_uri: str) -> None:
    """An attention of zero makes Eq 1 the identity: every figure must be that of the baseline."""
    evaluation = evaluate(config, write_run(config, "tiny-idle", attending(1e-7)), data_uri)
    metrics, baseline = evaluation.metrics, evaluation.baseline
    for name in ("kid_target_a2b", "kid_source_b2a", "fid_a2b", "fid_b2a"):
        assert metrics[name] == pytest.approx(baseline[name], abs=1e-3)
        assert evaluation.intervals[name]["do_nothing"]["verdict"] == "noise"
    assert metrics["background_l1_a2b"] == pytest.approx(0, abs=1e-6)
    assert metrics["cycle_l1_a"] == pytest.approx(0, abs=1e-6)
    assert metrics["attention_coverage_a"] == pytest.approx(0, abs=1e-6)
    assert metrics["attention_iou_a"] == 0.0
    assert metrics["attention_inside_a"] == pytest.approx(0, abs=1e-6)
    assert baseline["attention_inside_a"] == baseline["attention_outside_a"] == 0.0
    scores = [row["score"] for row in evaluation.per_image if row["direction"] == "a2b"]
    assert np.mean(scores) == pytest.approx(1.0, abs=0.05)


def test_a_mask_of_ones_has_the_trivial_iou(config: Config, data_uri: str) -> None:
    metrics = evaluate(config, write_run(config, "tiny-all", attending(0.999)), data_uri).metrics
    assert metrics["attention_iou_a"] == pytest.approx(metrics["attention_iou_everywhere_a"])
    assert 0 < metrics["attention_iou_a"] < 0.6
    assert metrics["attention_recall_b"] == 1.0
    assert metrics["attention_auc_a"] == 0.5
    for name in ("inside", "outside", "opacity"):
        assert metrics[f"attention_{name}_a"] == pytest.approx(0.999, abs=1e-3)


def test_the_best_blob_is_one_for_all_images(config: Config, first: Any, data_uri: str) -> None:
    """One shape for a whole domain: no more than the mean of each image's own best, no less than any other's."""
    metrics = first[0].metrics
    for domain in "ab":
        masked = scored_images.open_domain(config, data_uri, manifest.read(data_uri), domain).masked
        assert masked is not None
        each = torch.cat([masks.blob_iou(batch.masks) for batch in masked.batches(3)])  # type: ignore[arg-type]
        assert metrics[f"attention_iou_blob_{domain}"] == pytest.approx(float(each.mean(dim=0).max()))
        assert metrics[f"attention_iou_blob_{domain}"] < float(each.max(dim=1).values.mean())
        assert first[0].intervals[f"attention_iou_blob_{domain}"]["low"] > 0


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


def test_any_model_folder_can_be_evaluated(
    config: Config, first: tuple[Evaluation, Any], run_uri: str, data_uri: str, root: Path
) -> None:
    model = model_folder.read(storage.join(run_uri, "checkpoint"))
    folder = model_folder.write(root / "somewhere", "x", model.method, model.image_size, model.weights)
    told = evaluate(config, str(folder), data_uri)
    assert told.metrics == first[0].metrics
    assert told.uri.startswith(storage.join(config.storage, "evaluations"))
    assert storage.exists(storage.join(told.uri, "evaluation.json"))


def test_the_champion_stands_beside_the_next_model(
    config: Config, first: tuple[Evaluation, Any], run_uri: str, data_uri: str, root: Path
) -> None:
    """Registers the first as champion (with an open gate) and evaluates both against it."""
    tree = settings_tree(root)
    tree["register"] = {
        "gate": {"better_than_nothing": False, "better_than_blob": False},
        "tracking_uri": f"sqlite:///{root}/champion.db",
    }
    settings = configs.parse(tree)
    assert register(settings, run_uri, first[0]).aliases == ["challenger", "champion"]
    itself = evaluate(settings, run_uri, data_uri)
    assert itself.champion is None
    other_uri = write_run(config, "tiny-second", attending(1e-7))
    other = evaluate(settings, other_uri, data_uri)
    assert other.champion.version == 1
    alone = {k: v for k, v in first[0].metrics.items() if not k.startswith("do_nothing_")}
    assert other.champion.metrics == alone
    assert other.champion.intervals["kid_mean"]["low"] < other.champion.metrics["kid_mean"]
    # changing nothing keeps the background better than an untrained network does
    judged = other.intervals["background_l1_a2b"]["champion"]
    assert judged["verdict"] == "better"
    assert judged["difference"] == pytest.approx(-first[0].metrics["background_l1_a2b"], rel=1e-3)
    decision = register(settings, other_uri, other).decision
    assert decision.passed is False  # its masks cover nothing
    evaluated = evaluate(settings, "models:/tiny@champion", data_uri)
    assert evaluated.metrics == first[0].metrics


def test_a_model_without_attention_has_no_attention_figures(config: Config, data_uri: str) -> None:
    method = MethodConfig(
        networks=NetworkConfig(
            preset="cyclegan", attention=False, generator_width=4, generator_blocks=1, discriminator_width=4
        )
    )
    net = networks.build(method.networks, seed=2)
    evaluation = evaluate(config, write_run(config, "tiny-plain", net, method), data_uri)
    assert not [name for name in evaluation.metrics if "attention" in name]
    assert evaluation.metrics["background_l1_a2b"] > 0
    assert "attention" not in evaluation.protocol


def test_a_model_that_is_not_finite_is_not_scored(config: Config, data_uri: str) -> None:
    net = networks.build(METHOD.networks, seed=3)
    nn.init.constant_(next(net.generator_ab.parameters()), torch.nan)
    with pytest.raises(BadInput, match=r"are not finite \(generator_ab"):
        evaluate(config, write_run(config, "tiny-diverged", net), data_uri)


def test_a_broken_model_has_no_figures_and_says_so(config: Config, data_uri: str) -> None:
    """Its weights are numbers, but so large that its images are not."""
    net = networks.build(METHOD.networks, seed=3)
    for parameter in net.generator_ab.parameters():
        nn.init.constant_(parameter, 3e38)
    evaluation = evaluate(config, write_run(config, "tiny-broken", net), data_uri)
    assert evaluation.metrics["kid_target_a2b"] is None
    assert evaluation.metrics["background_l1_a2b"] is None
    assert evaluation.metrics["kid_mean"] is None
    assert evaluation.metrics["do_nothing_kid_target_a2b"] is not None
    assert evaluation.counts["not_finite_a2b"] == IMAGES
    assert "kid_target_a2b" not in evaluation.intervals


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
    tree = settings_tree(root)
    tree["evaluate"]["inception"] = str(tmp_path / "absent.pt")
    with pytest.raises(BadInput, match="no Inception file at"):
        evaluate(configs.parse(tree), run_uri, data_uri)
    described = manifest.read(data_uri)
    splits = described.splits | {"testB": described.splits["testB"].but(rows=1)}
    with pytest.raises(BadInput, match="at least 2"):
        scored_images.open_domain(config, data_uri, described.but(splits=splits), "b")
