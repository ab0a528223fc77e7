"""A metric is one entry of the catalogue: nothing else is edited here, and it is looked for everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from agit_core import networks
from agit_core.scores.images import PSNR_CAP
from agit_core.stages import HEALTH_KEYS
from pipeline import config as configs
from pipeline import storage, tasks
from pipeline.cli import scores, show
from pipeline.config import GateConfig
from pipeline.data.prepare.stage import prepare
from pipeline.metrics import catalog, table
from pipeline.metrics.catalog import Distance, PerImage
from pipeline.metrics.measure import Estimate
from pipeline.records import RESULT, Data, Run
from pipeline.registry import gate, tracking
from pipeline.registry.registration import register
from pipeline.report.build import build
from tests.pipeline.evaluate import tiny_models

pytestmark = pytest.mark.usefixtures("small_inception")

CONTRAST = PerImage(
    name="contrast",
    label="Contrast of the translation",
    hint="its standard deviation",
    better="higher",
    digits=3,
    on="test",
    identity=0.25,
    compute=lambda batch: batch.translated.double().flatten(1).std(dim=1),
)
MEANS = Distance(
    name="means",
    label="Distance of the mean features",
    hint="lower is closer",
    better="lower",
    judged=True,
    compute=lambda sets: Estimate(float((sets.translated.mean(0) - sets.target.mean(0)).norm())),
)


def test_a_metric_added_by_one_entry_is_found_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = configs.parse(
        tiny_models.settings_tree(tmp_path)
        | {"register": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    )
    prepared = prepare(settings)
    data = Data(prepared.uri, prepared.manifest, reused=True)
    uri = tiny_models.write_run(settings, "tiny-new", networks.build(tiny_models.METHOD.networks, seed=1))
    run = Run("tiny-new", uri, RESULT.read(uri))  # type: ignore[arg-type]
    before = tasks.evaluate(settings, data, run)
    assert tasks.evaluate(settings, data, run) == before
    monkeypatch.setattr(catalog, "METRICS", (*catalog.METRICS, CONTRAST, MEANS))

    # the run is scored already, and is scored again
    evaluation = tasks.evaluate(settings, data, run)
    metrics, intervals = evaluation.metrics, evaluation.intervals
    for name in ("contrast_a2b", "contrast_b2a", "means", "means_a2b", "means_b2a"):
        assert isinstance(metrics[name], float)
        assert name not in before.metrics
    assert 0 < metrics["contrast_a2b"] < 1
    assert metrics["do_nothing_contrast_a2b"] == evaluation.baseline["contrast_a2b"] == 0.25
    assert metrics["do_nothing_means_a2b"] > 0
    assert metrics["means"] == pytest.approx((metrics["means_a2b"] + metrics["means_b2a"]) / 2)
    assert intervals["contrast_a2b"]["do_nothing"]["verdict"] in {"better", "worse", "noise"}
    assert {key: metrics[key] for key in before.metrics} == before.metrics

    registered = register(settings, uri, evaluation)
    logged = tracking.client(tracking.tracking_uri(settings)).get_run(registered.mlflow.run_id)
    assert logged.data.metrics["contrast_b2a"] == metrics["contrast_b2a"]
    show._scores(metrics)
    scores.show(evaluation)
    shown = " ".join(capsys.readouterr().out.split())
    pages = {
        "report": storage.read_text(build(settings, uri, data.uri)),
        "Prefect's table": table.markdown("Scores", metrics, evaluation.counts, evaluation.inception),
        "command line": shown,
        "model card": storage.read_text(storage.join(registered.source, "README.md")),
    }
    for metric in (CONTRAST, MEANS):
        for where, text in pages.items():
            assert metric.label in text, f"{metric.name} is missing: {where}"
            assert metric.text(metrics[metric.key("a2b")]) in text, f"{metric.name} has no value: {where}"
    gate.check(GateConfig(metric="contrast", maximum_regression={"means": 0.1}))


def test_what_the_catalogue_says_once_is_what_the_method_says() -> None:
    """Whatever training watches is in the evaluation, too, and constants that are written twice agree."""
    assert all(catalog.find(f"attention_{key}") for key in HEALTH_KEYS)
    psnr = catalog.get("background_psnr_a2b")
    assert isinstance(psnr, PerImage)
    assert psnr.identity == PSNR_CAP
    labels = [metric.label for metric in catalog.METRICS]
    assert len(set(labels)) == len(labels)


def test_the_key_of_an_evaluation_knows_which_metrics_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    before = catalog.digest()
    monkeypatch.setattr(catalog, "METRICS", (*catalog.METRICS, CONTRAST))
    assert catalog.digest() != before
