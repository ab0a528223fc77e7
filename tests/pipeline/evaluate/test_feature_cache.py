from __future__ import annotations

import logging
from typing import Any

import pytest

from agit_core import model_folder
from agit_core.scores.inception import Inception
from pipeline import storage
from pipeline.config import Config
from pipeline.evaluate.scoring import evaluate
from pipeline.records import Evaluation
from pipeline.registry.identity import weights_digest

pytestmark = pytest.mark.usefixtures("small_inception")


def test_the_second_evaluation_computes_no_features(
    config: Config,
    first: tuple[Evaluation, Any],
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
    first: tuple[Evaluation, Any],
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
    assert again.metrics == pytest.approx(first[0].metrics, rel=1e-5)


def test_the_key_of_a_model_is_what_it_does(run_uri: str) -> None:
    model = model_folder.read(storage.join(run_uri, "checkpoint"))
    digest = weights_digest(model)
    assert weights_digest(model_folder.read(storage.join(run_uri, "checkpoint"))) == digest
    model.weights["generator_ab.1.bias"] = model.weights["generator_ab.1.bias"] + 1e-3
    assert weights_digest(model) != digest
