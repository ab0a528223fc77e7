"""Trains on a folder of images with ``agit_core`` alone: torch, torchvision and Pillow, no pipeline.

``python -m tests.benchmarks.alone FOLDER OUT --size 64 --steps 1500 --method '{"losses": {"cycle_weight": 5}}'``

FOLDER holds ``trainA`` and ``trainB``, and may hold ``masks/trainA`` and ``masks/trainB``. The same command goes on
from the newest checkpoint in OUT, also with another number of steps, to which the learning rate's schedule is then
fitted: a run can be lengthened or brought to its end. The last ``--held-out`` images of each domain, in file order,
are never trained on; where they have masks, the attention is scored on them at each checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from agit_core import checkpoint, model_folder, saved_method
from agit_core.augment import to_float
from agit_core.config import MethodConfig
from agit_core.errors import BadInput
from agit_core.loader import Loader
from agit_core.precision import pick_device
from agit_core.preview import png, strips
from agit_core.sampling import Domain, SamplePlan
from agit_core.scores import attention
from agit_core.trainer import Trainer
from agit_core.translator import Translator

SUFFIXES = {".jpg", ".jpeg", ".png"}
DOMAINS: tuple[Domain, ...] = ("a", "b")


@dataclass(frozen=True)
class Images:
    """Images of one domain in memory, uint8 (3, S, S) each, and the masks of those that have one."""

    pixels: list[Tensor]
    masks: list[Tensor | None]

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> Tensor:
        return self.pixels[index]


def read_images(folder: Path, domain: Domain, size: int, taken: slice) -> Images:
    """The images of a training domain in file order, squashed to ``size``.

    Raises:
        BadInput: there are none.
    """
    name = f"train{domain.upper()}"
    every = (folder / name).iterdir() if (folder / name).is_dir() else ()
    files = sorted(p for p in every if p.suffix.lower() in SUFFIXES)
    if not files:
        raise BadInput(f"no JPEG or PNG images in {folder / name}; give a folder with trainA and trainB")
    pixels, masks = [], []
    for file in files[taken]:
        with Image.open(file) as image:
            pixels.append(pil_to_tensor(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)))
        beside = folder / "masks" / name / f"{file.stem}.png"
        masks.append(_read_mask(beside, size) if beside.is_file() else None)
    return Images(pixels, masks)


def _read_mask(file: Path, size: int) -> Tensor:
    """bool (1, S, S)."""
    with Image.open(file) as image:
        return pil_to_tensor(image.convert("L").resize((size, size), Image.Resampling.BILINEAR)) >= 128


def method_with(changes: Mapping[str, Any]) -> MethodConfig:
    """The default method with some of its settings changed, as ``{"losses": {"cycle_weight": 5}}``."""

    def merged(tree: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        nested = {k: merged(tree[k], v) if isinstance(tree.get(k), dict) else v for k, v in over.items()}
        return {**tree, **nested}

    return saved_method.from_dict(merged(asdict(MethodConfig()), changes))


class Training:
    """A resumable training of ``steps`` steps into the folder ``out``.

    It holds ``rows.jsonl`` (means since the row before, and scores), ``samples/STEP-DIRECTION-N.png``
    (:data:`agit_core.preview.COLUMNS`), ``checkpoints/STEP`` (the newest two).
    """

    def __init__(
        self,
        data: Path,
        out: Path,
        method: MethodConfig,
        size: int,
        steps: int,
        batch_size: int,
        held_out: int = 100,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.out, self.size = out, size
        self.seconds = 0.0
        load_size = size * 9 // 8
        train = {d: read_images(data, d, load_size, slice(None, -held_out or None)) for d in DOMAINS}
        self.held = (
            {d: read_images(data, d, size, slice(-held_out, None)) for d in DOMAINS} if held_out else {}
        )
        plan = SamplePlan(seed, len(train["a"]), len(train["b"]), batch_size)
        device = device or pick_device()
        self.trainer = Trainer(method, plan, size, steps, device, seed)
        threads = 2 if device.type == "cpu" else 8
        self.loader = Loader(train, plan, size, method.flip, threads, pin=device.type == "cuda")
        (out / "samples").mkdir(parents=True, exist_ok=True)
        if saved := self._checkpoints():
            snapshot = checkpoint.read(saved[-1])
            # the rate's schedule is a function of the step and the total, which a longer run may change
            self.trainer.restore(
                checkpoint.Snapshot(**{**vars(snapshot), "info": {**snapshot.info, "total_steps": steps}})
            )

    def run(self, every: int) -> Iterator[int]:
        """Trains to the end, yielding each step; checkpoints, samples and scores ``every`` steps."""
        while self.trainer.step < self.trainer.total_steps:
            yield from self.some(every)
            self.report()

    def some(self, steps: int) -> Iterator[int]:
        """Trains some steps, at most to the end."""
        begun, start = time.monotonic(), self.trainer.step
        for result in self.trainer.run(self.loader, start + steps):
            self.seconds = (time.monotonic() - begun) / (result.step - start)
            yield result.step

    def report(self) -> None:
        """Writes a checkpoint, a row and sample pictures of the present state."""
        trainer = self.trainer
        trainer.save(self.out / "checkpoints" / f"{trainer.step:08d}")
        for old in self._checkpoints()[:-2]:
            shutil.rmtree(old)
        figures = trainer.window()
        controller = trainer.training_step.coverage.weight.tolist()
        row = {
            "step": trainer.step,
            "seconds_per_step": round(self.seconds, 3),
            "rate": trainer.learning_rate,
            **figures.losses,
            **figures.mask_health,
            **dict(zip(("lambda_a", "lambda_b"), controller, strict=True)),
            **self._scores(),
        }
        with (self.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._sample()

    @torch.no_grad()
    def _scores(self) -> dict[str, float]:
        """Mean attention on and beside the objects, IoU, and the change of what is beside them, of the held-out."""
        scores: dict[str, float] = {}
        translator = Translator(self.model(), str(self.trainer.device), autocast="auto")
        for domain, direction in zip(DOMAINS, ("a2b", "b2a"), strict=True):
            held = self.held.get(domain)
            known = [i for i, m in enumerate(held.masks) if m is not None and m.any()] if held else []
            if held is None or not known:
                continue
            images = torch.stack([held.pixels[i] for i in known])
            truth = torch.stack([m for i in known if (m := held.masks[i]) is not None])
            translated = translator.translate(images, direction)
            mask = translated.mask.float() / 255
            scores |= {f"{k}_{domain}": _mean(v) for k, v in attention.inside_outside(mask, truth).items()}
            scores[f"iou_{domain}"] = _mean(attention.agreement(mask, truth)["iou"])
            tried = [_mean(attention.agreement(mask, truth, t / 20)["iou"]) for t in range(1, 20)]
            scores[f"best_iou_{domain}"] = max(tried)
            change = (translated.image.float() - images.float()).abs().mean(dim=1, keepdim=True) / 255
            scores[f"background_{direction}"] = float(change[~truth].mean())
        return {key: round(value, 4) for key, value in scores.items()}

    def _sample(self, count: int = 6) -> None:
        networks = self.model().networks().to(self.trainer.device)
        for domain, direction in zip(DOMAINS, ("a2b", "b2a"), strict=True):
            if domain in self.held:
                images = to_float(torch.stack(self.held[domain].pixels[:count])).to(self.trainer.device)
                strip = torch.cat(list(strips(networks, images, direction)), dim=1)
                (self.out / "samples" / f"{self.trainer.step:08d}-{direction}.png").write_bytes(png(strip))

    def model(self, name: str = "model") -> model_folder.Model:
        """The present weights, averaged generators in place."""
        trainer = self.trainer
        weights = {
            k: v.detach().float().cpu() for k, v in (trainer.networks.state_dict() | trainer.averaged).items()
        }
        return model_folder.Model(name, trainer.config, self.size, weights, "", {"step": trainer.step})

    def export(self, folder: Path, name: str) -> None:
        """Writes the present weights as a model folder for inference: half precision, no discriminators."""
        model = self.model(name)
        lineage = {"steps": self.trainer.step}
        weights = model_folder.slimmed(model.weights)
        model_folder.write(folder, name, model.method, model.image_size, weights, lineage)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.out / "checkpoints").glob("[0-9]*"))


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", type=json.loads, default={}, help="JSON of the settings that differ")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, help="checkpoint whose weights a new run begins with")
    parser.add_argument("--model", type=Path, help="model folder for inference to write at the end")
    chosen = parser.parse_args()
    try:
        training = Training(
            chosen.data,
            chosen.out,
            method_with(chosen.method),
            chosen.size,
            chosen.steps,
            chosen.batch,
            chosen.held_out,
            chosen.seed,
        )
        if chosen.start_from and not training.trainer.step:
            training.trainer.start_from(checkpoint.read_networks(chosen.start_from)[1])
        for step in training.run(chosen.every):
            if step % 50 == 0:
                print(step, flush=True)
        if chosen.model:
            training.export(chosen.model, chosen.model.name)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
