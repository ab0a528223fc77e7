"""Training from Python on folders of images: the example of the package's docstring as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import agit_core
from agit_core import FolderImages
from agit_core.errors import BadInput
from tests.agit_core import models, tiny


def test_the_example_of_the_docstring_trains_and_translates(tmp_path: Path) -> None:
    for name, seed in (("horses", 0), ("zebras", 100)):
        for i in range(4):
            models.save(tmp_path / name / f"{i}.jpg", 60, 80, seed=seed + i)
    models.save(tmp_path / "horse.jpg", 50, 70)
    (block,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", agit_core.__doc__ or "")
    code = textwrap.dedent(block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 22, "about twenty lines are promised"
    # as it stands, but small and short
    networks = "generator_width=4, generator_blocks=1, attention_width=4, discriminator_width=4"
    changes = {
        "MethodConfig()": f"MethodConfig(networks=NetworkConfig({networks}))",
        "epochs=50": "epochs=2",
        "step % 100": "step % 1",
        "import torch\n": "import torch\nfrom agit_core.config import NetworkConfig\n",
    }
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    root = str(Path(agit_core.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code + "assert zebra.size == (70, 50)\n"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2"]
    assert (tmp_path / "checkpoint" / "checkpoint.json").is_file()


def test_a_loss_of_ones_own_moves_the_weights_by_its_gradient() -> None:
    plain, again, own = (
        tiny.trainer(tiny.calm(tiny.method()), extra_loss=loss)
        for loss in (
            None,
            lambda passes: 0.0 * passes.to_b.output.mean(),
            lambda passes: passes.to_b.output.mean(),
        )
    )
    for trainer in (plain, again, own):
        tiny.train(trainer, 1)
    plain_weights, same, moved = (
        dict(trainer.networks.named_parameters()) for trainer in (plain, again, own)
    )
    assert tiny.same(plain_weights, same)
    changed = {n.split(".")[0] for n, value in plain_weights.items() if not torch.equal(value, moved[n])}
    assert {"generator_ab", "attention_a"} <= changed
    assert "generator_ba" not in changed, "a to b alone was charged"


def test_a_folder_is_read_in_the_order_of_names_as_upright_squares(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a.jpg", "b/10.png", ".hidden/x.png", "notes.txt"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("no image")
        else:
            models.save(tmp_path / name, 30, 50, seed=len(name))
    images = FolderImages(tmp_path, 40)
    assert [path.relative_to(tmp_path).as_posix() for path in images.paths] == [
        "a.jpg",
        "b/10.png",
        "b/2.PNG",
    ]
    assert len(images) == 3
    read = images.read(2)
    assert (read.shape, read.dtype) == ((3, 40, 40), torch.uint8)
    expected = Image.open(tmp_path / "b/2.PNG").convert("RGB").resize((40, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(read.permute(1, 2, 0).numpy(), np.asarray(expected))

    turned = Image.new("RGB", (20, 40), "red")
    turned.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = FolderImages(tmp_path, 40).read(0)
    assert upright[0, 5, 5] > 200, "red is on top once it is upright"
    assert upright[2, 35, 5] > 200


def test_what_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no folder"):
        FolderImages(tmp_path / "none", 40)
    with pytest.raises(BadInput, match="there is no image in"):
        FolderImages(tmp_path, 40)
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(BadInput, match=r"half.png cannot be read .*; remove it"):
        FolderImages(tmp_path, 40).read(0)
