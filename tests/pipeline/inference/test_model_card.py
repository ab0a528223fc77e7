from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from agit_core import model_folder
from agit_core.model_folder import Model
from pipeline.inference import model_card
from pipeline.records import Evaluation, Manifest
from tests.agit_core import models

EVALUATION = Evaluation.model_validate(
    {
        "metrics": {
            "kid_target_a2b": 0.071,
            "kid_mean_a2b": 0.11,
            "fid_a2b": 122.4,
            "kid_target_b2a": 0.3,
            "attention_iou_a": 0.71,
            "attention_iou_everywhere_a": 0.22,
            "attention_iou_blob_a": 0.71,
            "attention_iou_b": 0.2,
            "attention_iou_everywhere_b": 0.25,
            "fid_b2a": None,
        },
        "baseline": {"kid_target_a2b": 0.2024, "kid_mean_a2b": 0.1013, "kid_target_b2a": 0.2011},
        "intervals": {
            "kid_target_a2b": {"low": 0.063, "high": 0.079, "do_nothing": {"verdict": "better"}},
            "kid_target_b2a": {"do_nothing": {"verdict": "noise"}},
        },
        "counts": {"test_a": 120, "test_b": 140, "kid_subsets": 10},
        "protocol": {"kid": "10 subsets of 50 images"},
        "inception": {"name": "2015-12-05", "sha256": "7ff4a85c"},
    }
)
MANIFEST = Manifest.model_validate(
    {
        "domains": {"a": {"name": "horse"}, "b": {"name": "zebra <b>|"}},
        "splits": {"trainA": {"rows": 1067, "quarantined": [{}]}, "testA": {"rows": 120, "quarantined": []}},
        "leaks": [["trainA/7.jpg", "testA/8.jpg"]],
    }
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    model = model_folder.read(models.write_model(tmp_path_factory.mktemp("card") / "m"))
    model.lineage.update(
        run_id="h2z-1",
        steps=200,
        config={"seed": 3, "data": {"source": "https://reader:s3cr3t@example.org/set.zip"}},
        code={"git_commit": "0123abcd"},
    )
    return model


def test_the_hub_reads_the_card(model: Model) -> None:
    card = ModelCard(model_card.render(model, EVALUATION, manifest=MANIFEST))
    assert card.data.pipeline_tag == "image-to-image"
    results = {(r.task_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert results["horse → zebra <b>|", "kid_target_a2b"] == 0.071
    assert card.data.model_name == "tiny"


def test_it_says_what_a_user_must_know(model: Model) -> None:
    text = model_card.render(model, EVALUATION, manifest=MANIFEST)
    for part in (
        "Translator.load",
        "| KID to the target × 100 | 7.10 (6.30 to 7.90) | 20.24 |",
        "| Attention, IoU with the masks | 71 % |",
        "(test a 120, test b 140)",
        "| trainA | 1067 |",
        "1 files were refused as images; 1 test images are also training images",
        "10 subsets of 50 images",
        "It was trained for 200 steps only",
        "horse → zebra &lt;b>\\|: by the mean of both KIDs it is worse than leaving the images",
        "zebra &lt;b>\\| → horse: by KID to the target it cannot be distinguished from leaving",
        "horse → zebra &lt;b>\\|: its attention finds the object no better than a fixed blob in the middle",
        "zebra &lt;b>\\| → horse: its attention finds the object no better than a mask of ones",
        "| code | 0123abcd |",
    ):
        assert part in text, part
    assert "s3cr3t" not in text
    body = text.split("---", 2)[2]
    assert "<b>" not in body.replace("&lt;b>", "")
    assert "horse → zebra &lt;b>\\|: by KID to the target" not in text


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    bare = model_folder.read(models.write_model(tmp_path / "m"))
    text = model_card.render(bare, Evaluation())
    assert ModelCard(text).data.eval_results is None
    assert "This model has not been scored." in text
    assert "Not recorded in this folder." in text
    assert "None" not in text


def test_the_card_of_an_export_tells_the_difference(model: Model) -> None:
    check = {"images": 20, "worst": 4.2e-6, "worst_other_size": 5e-6, "worst_mask": 1e-6, "source": "testA"}
    text = model_card.render(model, Evaluation(), {"format": "onnx", "opset": 18, "checks": {"a2b": check}})
    assert "| a2b | 20 | 4.2e-06 | 5e-06 | 1e-06 | testA |" in text
    assert "ONNX opset 18" in text
