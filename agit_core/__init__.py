'''The method in plain PyTorch.

Inference: ``from agit_core import Translator``. Training on two folders of images, with a loss of your own::

    import torch
    from PIL import Image

    from agit_core import FolderImages, Loader, MethodConfig, Passes, SamplePlan, Trainer, Translator


    def keep_brightness(passes: Passes) -> torch.Tensor:
        """Mean difference in brightness between each image and its translation; scalar."""
        pairs = ((passes.a, passes.to_b), (passes.b, passes.to_a))
        return sum((there.output.mean(1) - image.mean(1)).abs().mean() for image, there in pairs)


    images = {"a": FolderImages("horses", size=72), "b": FolderImages("zebras", size=72)}
    plan = SamplePlan(seed=0, length_a=len(images["a"]), length_b=len(images["b"]), batch_size=4)
    steps = plan.steps(epochs=50)
    trainer = Trainer(MethodConfig(), plan, image_size=64, total_steps=steps, extra_loss=keep_brightness)
    for done in trainer.run(Loader(images, plan, image_size=64)):
        if done.step % 100 == 0:
            print(done.step, trainer.window().losses)
    trainer.save("checkpoint")

    zebra = Translator.load("checkpoint")(Image.open("horse.jpg"))

``Trainer.load`` resumes from a checkpoint, bit for bit; :mod:`agit_core.config` has all settings.
'''

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agit_core.config import MethodConfig
    from agit_core.folder_images import FolderImages
    from agit_core.loader import Loader
    from agit_core.sampling import SamplePlan
    from agit_core.step import Passes
    from agit_core.trainer import Trainer
    from agit_core.translator import Result, Translator

# imported on first use: training needs neither numpy nor pillow, and the configuration not even torch
_MODULES = {
    "FolderImages": "folder_images",
    "Loader": "loader",
    "MethodConfig": "config",
    "Passes": "step",
    "Result": "translator",
    "SamplePlan": "sampling",
    "Trainer": "trainer",
    "Translator": "translator",
}

__all__ = [
    "FolderImages",
    "Loader",
    "MethodConfig",
    "Passes",
    "Result",
    "SamplePlan",
    "Trainer",
    "Translator",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"agit_core.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
