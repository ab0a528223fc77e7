"""The presets are what the reference says: parameter counts, output sizes, padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from agit_core.config import MethodConfig, NetworkConfig
from agit_core.errors import BadInput
from agit_core.layers import FromImage, InstanceNorm, ToImage, TransposedConvolution
from agit_core.networks import Networks, build


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("preset", "generator", "attention", "discriminator", "patches"),
    [
        ("agit", 2_855_811, 104_001, 2_766_657, 35),
        ("uaggan", 11_659_648, 602_368, 728_064, 15),
        ("cyclegan", 11_378_179, None, 2_764_737, 30),
    ],
)
def test_presets_have_the_published_sizes(
    preset: str, generator: int, attention: int | None, discriminator: int, patches: int
) -> None:
    networks = Networks(NetworkConfig(preset=preset))  # type: ignore[arg-type]
    assert count(networks.generator_ab) == count(networks.generator_ba) == generator
    assert count(networks.discriminator_a) == count(networks.discriminator_b) == discriminator
    if attention is None:
        assert networks.attention_a is None
        assert networks.attention_b is None
    else:
        assert count(networks.attention_a) == count(networks.attention_b) == attention
    with torch.no_grad():
        scores = networks.discriminator_a(torch.zeros(1, 3, 256, 256))
    assert scores.shape == (1, 1, patches, patches)


@pytest.mark.parametrize("preset", ["agit", "uaggan", "cyclegan"])
@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
@pytest.mark.parametrize("decoder", ["1x1", "3x3"])
def test_maps_keep_the_size_of_any_image(preset: str, upsampling: str, decoder: str) -> None:
    config = NetworkConfig(
        preset=preset,  # type: ignore[arg-type]
        generator_width=4,
        generator_blocks=1,
        attention=True,
        attention_width=4,
        attention_decoder=decoder,  # type: ignore[arg-type]
        upsampling=upsampling,  # type: ignore[arg-type]
    )
    networks = build(config)
    image = torch.rand(2, 3, 36, 52) * 2 - 1
    with torch.no_grad():
        out, mask = networks.generator_ab(image), networks.attention_a(image)  # type: ignore[misc]
    assert out.shape == image.shape
    assert out.abs().max() <= 1
    assert mask.shape == (2, 1, 36, 52)
    assert 0 <= mask.min() <= mask.max() <= 1


def test_instance_norm_is_the_textbook_one() -> None:
    x = torch.randn(3, 5, 8, 6) * 4 + 2
    norm = InstanceNorm(5, affine=True)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    expected = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_discriminator_without_norm_uses_the_same_convolutions() -> None:
    d = build(NetworkConfig(discriminator_width=4)).discriminator_a
    x = torch.randn(1, 3, 32, 32)
    for layer in d.norms:
        nn.init.constant_(layer.weight, 0.0)
        nn.init.constant_(layer.bias, 0.0)
    normed, plain = d(x), d(x, normalise=False)
    assert normed.var() == 0, "dead norms must silence the input when they are on"
    assert plain.var() > 0, "and must not be in the path when they are off"


def test_the_seed_decides_the_initial_weights() -> None:
    config = NetworkConfig(generator_width=4, generator_blocks=1)
    one, two, other = build(config, 1), build(config, 1), build(config, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_initialisation_is_the_authors() -> None:
    """A normal of deviation 0.02 cut at two deviations, for convolutions and for the norms' scales."""
    nets = build(NetworkConfig())
    convolutions = [m for m in nets.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    scales = torch.cat([m.weight for m in nets.modules() if isinstance(m, InstanceNorm)])
    weights = torch.cat([c.weight.flatten() for c in convolutions])
    assert weights.mean().item() == pytest.approx(0, abs=1e-4)
    assert weights.std().item() == pytest.approx(0.0176, abs=1e-4)
    assert weights.abs().max().item() == pytest.approx(0.04, abs=1e-5)
    assert scales.mean().item() == pytest.approx(1, abs=1e-3)
    assert scales.std().item() == pytest.approx(0.0176, abs=1e-3)
    assert 0.038 < (scales - 1).abs().max().item() <= 0.04
    assert all(not c.bias.any() for c in convolutions if c.bias is not None)


def deviations(config: NetworkConfig) -> list[float]:
    """Standard deviations of the convolutions' weights, network by network."""
    nets = build(config)
    found = []
    for net in (nets.generator_ab, nets.attention_a, nets.discriminator_a):
        layers = (
            [] if net is None else [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        )
        found += [torch.cat([m.weight.flatten() for m in layers]).std().item()] if layers else []
    return found


def test_a_preset_chooses_its_initialisation() -> None:
    # measured on the port: PyTorch's default, narrower the more inputs a layer has
    assert deviations(NetworkConfig(preset="uaggan")) == pytest.approx([0.0125, 0.0188, 0.0153], abs=1e-4)
    assert deviations(NetworkConfig(preset="cyclegan")) == pytest.approx([0.02, 0.02], abs=1e-4)
    chosen = deviations(NetworkConfig(preset="uaggan", initialisation="normal"))
    assert chosen == pytest.approx([0.02, 0.02, 0.02], abs=2e-4)


def test_a_plain_normal_is_the_one_of_earlier_versions() -> None:
    nets = build(NetworkConfig(initialisation="normal"))
    scales = torch.cat([m.weight for m in nets.modules() if isinstance(m, InstanceNorm)])
    weights = torch.cat([m.weight.flatten() for m in nets.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.02, abs=1e-4)
    assert weights.abs().max() > 0.08
    assert scales.mean().item() == pytest.approx(1, abs=1e-3)
    assert scales.std().item() == pytest.approx(0.02, abs=1e-3)


def test_pytorchs_initialisation_is_pytorchs() -> None:
    """Uniform between the same bounds, biases as well; norms as they are built."""
    torch.manual_seed(0)
    config = NetworkConfig(initialisation="pytorch", generator_blocks=1)
    ours, theirs = build(config), Networks(config)
    for layer, own in zip(ours.modules(), theirs.modules(), strict=True):
        if isinstance(layer, InstanceNorm):
            assert torch.equal(layer.weight, own.weight)  # type: ignore[arg-type]
            assert torch.equal(layer.bias, own.bias)  # type: ignore[arg-type]
        elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            bound = layer.weight[0].numel() ** -0.5
            for values in (layer.weight, layer.bias, own.weight, own.bias):
                assert values.abs().max() <= bound  # type: ignore[union-attr]
                if values.numel() >= 32:  # type: ignore[union-attr]
                    assert values.abs().max() > 0.85 * bound  # type: ignore[union-attr]
                if values.numel() >= 5000:  # type: ignore[union-attr]
                    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)  # type: ignore[union-attr]


def test_attention_upsampled_last_is_the_authors_decoder() -> None:
    """Layer by layer as published, upsampling before each 1x1 convolution: the same mask, the same gradients."""
    torch.manual_seed(0)
    quick = build(NetworkConfig(attention_width=8)).attention_a
    assert isinstance(quick, nn.Sequential)
    for layer in quick.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, 0.3)
    layers = [nn.Upsample(scale_factor=2) if isinstance(m, nn.Identity) else m for m in quick]
    published = nn.Sequential(*layers[:-1])  # without the last upsampling
    image = torch.rand(2, 3, 36, 52) * 2 - 1
    outputs, gradients = [], []
    for network in (published, quick):
        mask = network(image)
        network.zero_grad()
        (mask * torch.linspace(0, 1, mask.numel()).view_as(mask)).sum().backward()
        outputs.append(mask)
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert float(outputs[0].std()) > 0.05
    assert torch.allclose(*outputs, atol=1e-5)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-2) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("images", [1, 3])
def test_instance_norm_is_the_same_in_channels_last(images: int) -> None:
    x = torch.randn(images, 5, 8, 6) * 4 + 2
    norm = InstanceNorm(5, affine=True)
    nn.init.normal_(norm.weight)  # type: ignore[arg-type]
    nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    got = norm(x.contiguous(memory_format=torch.channels_last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(norm(x), got, atol=1e-5)


@pytest.mark.parametrize(("kernel", "padding", "extra"), [(3, 0, 0), (3, 1, 1), (4, 1, 0)])
def test_a_transposed_convolution_is_pytorchs_own(kernel: int, padding: int, extra: int) -> None:
    ours = TransposedConvolution(6, 4, kernel, 2, padding, output_padding=extra)
    x = torch.randn(2, 6, 5, 7)
    expected = nn.functional.conv_transpose2d(x, ours.weight, ours.bias, 2, padding, extra)
    assert torch.allclose(ours(x), expected, atol=1e-5)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [ToImage, FromImage])
def test_convolutions_of_images_are_pytorchs_own(
    padding_mode: str, layout: torch.memory_format, bias: bool, kind: type[nn.Conv2d]
) -> None:
    channels, stride = ((6, 3), 1) if kind is ToImage else ((3, 6), 2)
    ours = kind(*channels, 7, stride=stride, padding=3, padding_mode=padding_mode, bias=bias).double()
    x = torch.randn(2, channels[0], 8, 12, dtype=torch.double).contiguous(memory_format=layout)
    results = [ours(x.requires_grad_()), nn.Conv2d.forward(ours, x)]
    weight = torch.linspace(-1, 1, results[0].numel(), dtype=torch.double).view_as(results[0])
    gradients = [torch.autograd.grad((y * weight).sum(), [x, *ours.parameters()]) for y in results]
    for got, expected in zip((results[0], *gradients[0]), (results[1], *gradients[1]), strict=True):
        assert torch.allclose(got, expected, atol=1e-10)
    assert results[0].is_contiguous(memory_format=layout), "another layout slows what follows"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"networks": NetworkConfig(preset="uaggan", attention_decoder="3x3")},
            "applies to the preset agit, not to uaggan",
        ),
        ({"networks": NetworkConfig(generator_width=0)}, r"generator_width must lie in \[1, 1024\]"),
        ({"networks": NetworkConfig(discriminator_width=-4)}, r"discriminator_width must lie in \[1, 1024\]"),
        ({"threshold_at_test": 1.5}, r"threshold_at_test must lie in \[0, 1\]"),
        ({"threshold_at_test": float("nan")}, r"threshold_at_test must lie in \[0, 1\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        MethodConfig(**changed)


@pytest.mark.parametrize("preset", ["agit", "uaggan"])
def test_last_relu_of_attention_is_a_ceiling_and_can_be_left_out(preset: str) -> None:
    """With negative last weights, as every weaker mask brings them, a mask can exceed 0.5 only without the ReLU."""
    brightest = {}
    for activation in ("relu", "identity"):
        config = NetworkConfig(preset=preset, attention_width=4, attention_activation=activation)  # type: ignore[arg-type]
        network = build(config).attention_a
        assert network is not None
        last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
        with torch.no_grad():
            last.weight.copy_(-last.weight.abs() * 50)
            brightest[activation] = float(network(torch.rand(1, 3, 32, 32) * 2 - 1).max())
    assert brightest["relu"] <= 0.5
    assert brightest["identity"] > 0.6


@pytest.mark.parametrize("size", [(32, 48), (36, 44)], ids=["of 8", "of 4"])
def test_attention_at_half_size_is_the_same_network_on_a_smaller_image(size: tuple[int, int]) -> None:
    full, half = (build(NetworkConfig(attention_width=4, attention_scale=s)) for s in (1, 2))  # type: ignore[arg-type]
    assert full.state_dict().keys() == half.state_dict().keys()
    assert full.attention_a is not None
    assert half.attention_a is not None
    image = torch.rand(2, 3, *size) * 2 - 1
    mask = half.attention_a(image)
    assert mask.shape == (2, 1, *size)
    if not size[0] % 8:
        small = full.attention_a(torch.nn.functional.avg_pool2d(image, 2))
        upsampled = torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(mask, upsampled)
