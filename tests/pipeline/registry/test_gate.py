from __future__ import annotations

from typing import Any

import pytest

from agit_core.errors import BadInput
from pipeline import config as configs
from pipeline import tasks
from pipeline.config import Config, GateConfig
from pipeline.records import Evaluation
from pipeline.registry import gate
from tests.pipeline.registry.finished_runs import against, evaluation


class TestGate:
    def test_the_first_model_that_passes_becomes_champion(self) -> None:
        decision = gate.decide(GateConfig(), evaluation(), None)
        assert (decision.passed, decision.promoted) == (True, True)

    @pytest.mark.parametrize(
        ("told", "reason"),
        [
            (evaluation(kid=0.21), "no better than doing nothing"),
            (evaluation(coverage=0.99), "collapsed to all ones"),
            (evaluation(coverage=0.001), "collapsed to nothing"),
            (
                evaluation(attention_iou_b=0.31, attention_iou_blob_b=0.35),
                "attention_iou_b 0.310 is no better than that of a fixed blob in the middle (0.350)",
            ),
        ],
    )
    def test_forbidden_outcomes_are_neither_challenger_nor_champion(
        self, told: Evaluation, reason: str
    ) -> None:
        decision = gate.decide(GateConfig(), told, None)
        assert (decision.passed, decision.promoted) == (False, False)
        assert reason in decision.reasons[0]

    def test_figures_that_are_not_finite_are_forbidden(self) -> None:
        told = evaluation()
        told.metrics["cycle_l1_a"] = None
        decision = gate.decide(GateConfig(), told, None)
        assert not decision.passed
        assert "cycle_l1_a" in decision.reasons[0]

    def test_a_precision_that_nothing_attended_leaves_undefined_is_no_broken_figure(self) -> None:
        told = evaluation()
        told.metrics.update({"attention_precision_a": None, "attention_recall_a": 0.0})
        assert gate.decide(GateConfig(), told, None).passed
        told.metrics["attention_recall_a"] = 0.5
        assert not gate.decide(GateConfig(), told, None).passed

    def test_no_background_to_keep_is_no_broken_figure(self) -> None:
        """No true masks, and a model without attention (or with a wide one): no pixel counts as background."""
        told = evaluation()
        told.metrics.update({f"background_{key}_a2b": None for key in ("l1", "psnr", "ssim")})
        assert gate.decide(GateConfig(), told, None).passed
        # images that are not finite have no distances either
        told.metrics["kid_target_a2b"] = None
        assert not gate.decide(GateConfig(), told, None).passed

    def test_a_champion_is_beaten_by_more_than_the_margin_and_noise(self) -> None:
        champion = {"version": 4}
        better = against(evaluation(kid=0.05), 4, 0.08)
        assert gate.decide(GateConfig(), better, champion).promoted
        assert not gate.decide(GateConfig(margin=0.03), better, champion).promoted
        noise = against(evaluation(kid=0.05), 4, 0.08, "noise")
        refused = gate.decide(GateConfig(), noise, champion)
        assert (refused.passed, refused.promoted) == (True, False)
        assert "within noise" in refused.reasons[0]
        assert gate.decide(GateConfig(beyond_noise=False), noise, champion).promoted
        worse = gate.decide(GateConfig(), against(evaluation(kid=0.09), 4, 0.08, "worse"), champion)
        assert "is not better" in worse.reasons[0]

    def test_a_regression_beyond_what_the_policy_allows_refuses(self) -> None:
        policy = GateConfig(maximum_regression={"attention_iou": 0.1})
        told = against(evaluation(kid=0.05), 4, 0.08)
        assert gate.decide(policy, told, {"version": 4}).promoted
        told.metrics["attention_iou_b"] = 0.45
        refused = gate.decide(policy, told, {"version": 4})
        assert not refused.promoted
        assert any("attention_iou_b" in reason for reason in refused.reasons)

    def test_a_champion_that_was_not_measured_alongside_stays(self) -> None:
        decision = gate.decide(GateConfig(), against(evaluation(), 3, 0.1), {"version": 4})
        assert not decision.promoted
        assert "was not compared with the current champion" in decision.reasons[0]

    def test_a_metric_of_one_direction_or_where_more_is_better_decides_too(self) -> None:
        told = against(evaluation(kid=0.05), 4, 0.08)
        assert told.champion is not None
        told.champion.metrics.update({"attention_iou_a": 0.5, "attention_iou_b": 0.5, "fid_a2b": 80.0})
        iou = GateConfig(metric="attention_iou")
        for verdicts, says in (
            ((), "no interval"),
            (("better",), "no interval"),
            (("better", "noise"), "within noise"),
            (("better", "better"), "better by more than noise"),
        ):
            each = dict.fromkeys(("attention_iou_a", "attention_iou_b"))
            tested = {
                name: {"champion": {"verdict": verdict}}
                for name, verdict in zip(each, verdicts, strict=False)
            }
            told = told.but(intervals=each | tested)
            decision = gate.decide(iou, told, {"version": 4})
            assert decision.promoted == (set(verdicts) == {"better"} and len(verdicts) == 2)
            assert says in " ".join(decision.reasons)
        told = told.but(intervals={})
        assert gate.decide(
            GateConfig(metric="attention_iou", beyond_noise=False), told, {"version": 4}
        ).promoted
        assert not gate.decide(GateConfig(metric="fid_a2b"), told, {"version": 4}).promoted
        unknown = gate.decide(GateConfig(metric="kid_men"), told, {"version": 4})
        assert "was not measured" in unknown.reasons[0]

    @pytest.mark.parametrize(
        ("policy", "wrong"),
        [
            ({"metric": "kid_men"}, "register.gate.metric 'kid_men'"),
            ({"metric": "kid_mean_ab"}, "'kid_mean_ab'"),
            ({"metric": "attention_iou_everywhere"}, "'attention_iou_everywhere'"),
            ({"metric": "attention_coverage"}, "no better end"),
            ({"maximum_regression": {"attention_io": 0.1}}, "maximum_regression 'attention_io'"),
        ],
    )
    def test_a_policy_that_no_evaluation_can_meet_is_refused_before_the_run(
        self, bare_config: Config, policy: dict[str, Any], wrong: str
    ) -> None:
        tree = {**bare_config.plain(), "register": {"gate": policy}}
        with pytest.raises(BadInput, match=wrong):
            tasks.check_registration(configs.parse(tree))

    def test_every_score_with_a_better_end_may_decide(self) -> None:
        for metric in (
            "kid_mean",
            "fid_a2b",
            "attention_iou",
            "attention_iou_b",
            "cycle_l1_a",
            "background_ssim",
        ):
            gate.check(GateConfig(metric=metric, maximum_regression={metric: 0.1}))
