"""What a method configuration stands for when nothing is chosen: the authors' code, as the paper describes it."""

from __future__ import annotations

from agit_core.config import HistoryConfig, LossConfig, MethodConfig, OptimizerConfig, StageConfig


def test_the_defaults_are_the_authors() -> None:
    """Spelt out: a default that changes by accident changes every training that does not name it."""
    method = MethodConfig()
    assert method.losses == LossConfig(adversarial="lsgan", cycle_weight=10.0, identity_weight=0.0)
    assert method.stages == StageConfig(
        masking="staged",
        switch_by="epoch",
        switch_at=30,
        tau=0.1,
        norm_after_switch="removed",
        fake_source="blend",
    )
    assert method.history == HistoryConfig(size=50, probability=0.5)
    assert method.optimizer == OptimizerConfig(
        learning_rate=1e-4,
        attention_learning_rate=None,
        beta1=0.5,
        beta2=0.999,
        constant_fraction=0.5,
        average_decay=0.0,
    )
    assert method.flip is True
    assert method.threshold_at_test is None
    networks = method.networks
    assert (networks.preset, networks.attention_decoder, networks.upsampling) == ("agit", "1x1", "transposed")
    assert (networks.generator_blocks, networks.has_attention, networks.initialiser) == (9, True, "truncated")
