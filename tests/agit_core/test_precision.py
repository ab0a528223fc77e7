"""How the same mathematics is computed: every switch against fp32, eager, channels first."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from agit_core.config import PrecisionConfig
from agit_core.precision import pick_device, processor_has_bf16, resolve
from tests.agit_core import ranks, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("switch_at", [9, 0], ids=["full", "masked"])
@pytest.mark.parametrize(
    ("change", "losses", "gradients"),
    [
        ({"channels_last": "on"}, 1e-5, 1e-4),
        ({"deterministic": False}, 1e-5, 1e-4),
        # 8 bits of mantissa through four networks in a row; the direction stays the same
        ({"autocast": "bf16"}, 2e-2, 0.3),
        pytest.param(
            {"compile": "on"},
            1e-5,
            1e-4,
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
            ],
        ),
    ],
    ids=["channels_last", "not deterministic", "bf16", "compile"],
)
def test_a_switch_computes_the_same(
    change: dict[str, object], losses: float, gradients: float, switch_at: int
) -> None:
    got = []
    for precision in (tiny.REFERENCE, replace(tiny.REFERENCE, **change)):  # type: ignore[arg-type]
        trainer = tiny.trainer(replace(tiny.method(switch_at=switch_at), precision=precision))
        trainer.train_on(tiny.next_batch(trainer))
        assert all(p.dtype is torch.float32 for p in trainer.networks.parameters())
        got.append((trainer.window(), ranks.gradients(trainer)))
    (expected, reference), (figures, changed) = got
    assert figures.losses == pytest.approx(expected.losses, rel=losses, abs=losses)
    assert figures.mask_health == pytest.approx(expected.mask_health, rel=losses, abs=losses)
    assert ranks.difference(reference, changed) < gradients


def test_bf16_is_really_used() -> None:
    trainer = tiny.trainer(replace(tiny.method(), precision=replace(tiny.REFERENCE, autocast="bf16")))
    dtypes: list[torch.dtype] = []
    trainer.networks.generator_ab[0].register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    trainer.train_on(tiny.next_batch(trainer))
    assert set(dtypes) == {torch.bfloat16}


@pytest.mark.parametrize("preset", ["agit", "uaggan"])
def test_a_saturated_output_can_come_back(preset: str) -> None:
    """bf16 has nothing between 0.996 and 1: a sigmoid's or tanh's gradient would be exactly 0 there."""
    config = tiny.method()
    nets = tiny.trainer(replace(config, networks=replace(config.networks, preset=preset))).networks
    assert nets.attention_a is not None
    for net in (nets.generator_ab, nets.attention_a):
        last = [m for m in net if isinstance(m, torch.nn.Conv2d)][-1]
        if last.bias is None:
            last.bias = torch.nn.Parameter(torch.empty(last.out_channels))
        torch.nn.init.constant_(last.bias, 7.0)
        torch.nn.init.zeros_(last.weight)
        with torch.autocast("cpu", torch.bfloat16):
            out = net(torch.rand(1, 3, 32, 32))
        assert out.dtype == torch.float32
        out.sum().backward()
        assert last.bias.grad is not None
        assert last.bias.grad.abs().min() > 0


def test_auto_is_decided_by_the_machine() -> None:
    numerics = resolve(PrecisionConfig(), CPU)
    assert (numerics.autocast is torch.bfloat16) == processor_has_bf16()
    assert numerics.channels_last == processor_has_bf16()
    assert not numerics.compile
    assert not resolve(PrecisionConfig(autocast="off"), CPU).channels_last
    assert resolve(PrecisionConfig(autocast="bf16"), CPU).describe().startswith("bf16 autocast")
    assert resolve(tiny.REFERENCE, CPU).describe() == "fp32, channels_first, eager"
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.long
def test_compiled_code_knows_every_state_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen and trained, two batch sizes, both stages: each is traced once, whole, and computes the same bits.

    With a backend that runs what was traced as it is. Past its limit of recompilations, Dynamo would go on in
    eager mode without a word.
    """
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, **how: compile_(net, **how, backend=backend))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weights = []
    for compile_it in ("off", "on"):
        config = tiny.method(switch_at=1, tau=0.5)
        config = replace(config, precision=replace(tiny.REFERENCE, compile=compile_it))
        trainer = tiny.trainer(config)
        tiny.train(trainer, 6)
        assert trainer.stages.switched_at_step == 4
        weights.append(tiny.weights(trainer))
    assert tiny.same(*weights)
    assert len(graphs) >= 6
    for batch_size in (1, 3):  # the next configurations in the same process
        tiny.train(tiny.trainer(config, batch_size), 6)
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
