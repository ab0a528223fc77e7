"""Export of one direction as a program that runs without this package: ONNX or ``torch.export``.

Both formats contain the generator, the attention network and Eq 1::

    image   float32 (N, 3, H, W), RGB in [-1, 1] (pixel / 127.5 - 1); N free, H and W multiples of 4, at least 16
    output  float32 (N, 3, H, W) in [-1, 1]; pixel = (output + 1) * 127.5
    mask    float32 (N, 1, H, W) in [0, 1]: attention, 1 where the translation shows (ones without attention)

Callers pad images of other sizes by reflection at the right and bottom and crop the output, as
:class:`agit_core.Translator` does. The contract is embedded in each file (:func:`contract`).
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agit_core.errors import BadInput
from agit_core.model_folder import Model
from agit_core.networks import STRIDE
from agit_core.translation import translate

# by default ONNX Runtime logs usage to ~/.cache and sends it to Microsoft
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

OPSET = 18
"""ONNX operator set that PyTorch's exporter writes without conversion; ONNX Runtime reads it since 1.14."""
SMALLEST = 4 * STRIDE
"""Smallest side in pixels: the networks use reflection padding at a quarter of the size."""
SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
NOTES = "agit.json"
"""Name of the contract inside a ``.pt2`` file; in ONNX it is the metadata entry ``agit``."""
_TRACED = (2, 3, 64, 80)  # two images, unequal sides: tracing must not specialise a size to a constant
_NEAR = 1e-4  # attention this close to the threshold may fall on either side by rounding

Run = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(N, 3, H, W) to (output, mask)."""


class OneDirection(nn.Module):
    """One direction as a module: image -> (output, mask) by Eq 1."""

    def __init__(self, model: Model, direction: str) -> None:
        super().__init__()
        networks = model.networks()
        forth = direction == "a2b"
        self.generator = networks.generator_ab if forth else networks.generator_ba
        self.attention = networks.attention_a if forth else networks.attention_b
        self.threshold = model.method.threshold_at_test

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        translation = translate(image, self.generator, self.attention, self.threshold)
        return translation.output, translation.mask


def contract(model: Model, direction: str) -> dict[str, Any]:
    """Input and output specification for callers of an exported file, JSON-ready."""
    return {
        "model": model.name,
        "model_sha256": model.digest,
        "direction": direction,
        "trained_at": model.image_size,
        "layout": "NCHW, RGB, float32",
        "side_multiple_of": STRIDE,
        "smallest_side": SMALLEST,
        "image": {"range": [-1, 1], "from_uint8": "pixel / 127.5 - 1"},
        "output": {"range": [-1, 1], "to_uint8": "round((output + 1) * 127.5)"},
        "mask": {"range": [0, 1], "meaning": "1: translated, 0: kept"},
        "threshold": model.method.threshold_at_test,
    }


def write(model: Model, direction: str, file_format: str, path: Path) -> None:
    """Export one direction to a file.

    Args:
        file_format: ``onnx`` or ``torch-export``.

    Raises:
        BadInput: a package that the format needs is missing.
    """
    module = OneDirection(model, direction).eval()
    batch, height, width = (
        torch.export.Dim("batch", min=1),
        torch.export.Dim("height", min=SMALLEST // STRIDE),
        torch.export.Dim("width", min=SMALLEST // STRIDE),
    )
    shapes = {"image": {0: batch, 2: STRIDE * height, 3: STRIDE * width}}
    with torch.no_grad():
        program = torch.export.export(module, (torch.zeros(_TRACED),), dynamic_shapes=shapes)
    notes = json.dumps(contract(model, direction))
    if file_format == "onnx":
        _write_onnx(program, path, notes)
    else:
        torch.export.save(program, path, extra_files={NOTES: notes})


def load(path: Path, file_format: str) -> Run:
    """Load an exported file as a function that runs it on the CPU in the format's runtime."""
    if file_format == "torch-export":
        module = torch.export.load(path).module()

        def run(image: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                output, mask = module(image)
            return output, mask

        return run
    session = _package("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run_onnx(image: Tensor) -> tuple[Tensor, Tensor]:
        output, mask = session.run(["output", "mask"], {"image": image.numpy()})
        return torch.from_numpy(output), torch.from_numpy(mask)

    return run_onnx


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference over all pixels of a batch between an exported file and the PyTorch model."""

    output: float
    """On the output's scale, [-1, 1]; multiply by 127.5 for grey levels."""
    mask: float
    undecided: int
    """Pixels left out because their attention is so close to ``threshold_at_test`` that rounding decides."""


def compare(model: Model, direction: str) -> Callable[[Tensor, Run], Difference]:
    """Build a function that measures an exported file against the PyTorch model, in fp32 on the CPU."""
    module = OneDirection(model, direction).eval()

    @torch.no_grad()
    def measure(image: Tensor, run: Run) -> Difference:
        (output, mask), (theirs, their_mask) = module(image), run(image)
        if theirs.shape != output.shape or their_mask.shape != mask.shape:
            return Difference(float("inf"), float("inf"), 0)
        counted = torch.ones_like(mask, dtype=torch.bool)
        if module.threshold is not None and module.attention is not None:
            counted = (module.attention(image) - module.threshold).abs() > _NEAR
        return Difference(
            _worst((output - theirs).abs().amax(1, keepdim=True)[counted]),
            _worst((mask - their_mask).abs()[counted]),
            int((~counted).sum()),
        )

    return measure


def _worst(differences: Tensor) -> float:
    """Largest value; NaN counts as infinity."""
    if not differences.numel():
        return 0.0
    return float(differences.max()) if bool(differences.isfinite().all()) else float("inf")


def _write_onnx(program: torch.export.ExportedProgram, path: Path, notes: str) -> None:
    onnx = _package("onnx")
    _package("onnxscript")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # the exporter logs every internal step
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    finally:
        log.setLevel(level)
    assert exported is not None
    proto = exported.model_proto
    _name(proto.graph)
    onnx.helper.set_model_props(proto, {"agit": notes})
    onnx.checker.check_model(proto, full_check=True)
    onnx.save_model(proto, str(path))


def _name(graph: Any) -> None:
    """Replace the tracer's names of inputs, outputs and axes by stable ones."""
    names = {graph.input[0].name: "image", graph.output[0].name: "output", graph.output[1].name: "mask"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del graph.value_info[:]  # shapes of intermediate values, under the tracer's axis names
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        batch, _, height, width = value.type.tensor_type.shape.dim
        batch.dim_param, height.dim_param, width.dim_param = "batch", "height", "width"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise BadInput(f"ONNX needs the package {name}: pip install 'agit[pipeline]'") from None
