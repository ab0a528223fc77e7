"""Images that checkpoints are scored on are trained on in no form."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config
from pipeline.data.prepare.stage import Prepared, prepare
from pipeline.data.read import held_out
from pipeline.data.read.held_out import Subset
from pipeline.data.read.reader import ShardImages
from pipeline.data.read.sample_order import sample_plan
from tests.pipeline.data.prepare.test_stage import config, names
from tests.pipeline.pictures import encoded, folder

COUNTS = {"trainA": 30, "trainB": 25, "testA": 3, "testB": 2}


def chosen(made: Prepared, settings: Config, images: int) -> dict[str, tuple[list[str], list[str]]] | None:
    """Names of the images that are trained on, and of those that are held out, by domain."""
    validation = settings.validation.model_copy(update={"images": images})
    found = held_out.rows(settings.model_copy(update={"validation": validation}), made.uri, made.manifest)
    if found is None:
        return None
    every = {domain: names(made, f"train{domain.upper()}") for domain in "ab"}
    return {
        domain: ([every[domain][i] for i in rows.trained], [every[domain][i] for i in rows.held])
        for domain, rows in found.items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("in"), COUNTS)


@pytest.fixture(scope="module")
def plain(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Config]:
    settings = config(source, tmp_path_factory.mktemp("plain"))
    return prepare(settings), settings


def test_a_share_is_held_out_and_the_rest_is_trained_on(plain: tuple[Prepared, Config]) -> None:
    made, settings = plain
    found = chosen(made, settings, 4)
    assert found is not None
    for domain, (trained, held) in found.items():
        assert len(held) == 4
        assert sorted(trained + held) == sorted(names(made, f"train{domain.upper()}"))
    assert chosen(made, settings, 4) == found
    most = chosen(made, settings, 1000)
    assert most is not None
    assert (len(most["a"][1]), len(most["b"][1])) == (6, 5), "a fifth at most"
    assert set(found["a"][1]) < set(most["a"][1])


def test_a_plan_goes_over_what_is_left(plain: tuple[Prepared, Config]) -> None:
    made, settings = plain
    rows = held_out.rows(
        settings.model_copy(update={"validation": settings.validation.model_copy(update={"images": 4})}),
        made.uri,
        made.manifest,
    )
    assert rows is not None
    plan = sample_plan(settings, made.uri, made.manifest, rows)
    assert (plan.length_a, plan.length_b) == (26, 21)
    images = ShardImages(made.uri, "trainA", Path("unused"), 0)
    subset = Subset(images, rows["a"].trained)
    assert len(subset) == 26
    read = [subset.read(index).numpy() for index in range(len(subset))]
    for row in rows["a"].held:
        held = images.read(row).numpy()
        assert not any(np.array_equal(held, other) for other in read)


def test_copies_of_held_images_are_trained_on_nowhere(
    source: Path, plain: tuple[Prepared, Config], tmp_path: Path
) -> None:
    """Equal files, near copies and a copy in the other domain; a copy of a test image is not held out."""
    found = chosen(*plain, 4)
    assert found is not None
    equal, near, crossing, tested = found["a"][1]
    changed = tmp_path / "in"
    shutil.copytree(source, changed)
    shutil.copy(changed / "trainA" / equal, changed / "trainA" / "zz-equal.jpg")
    with Image.open(changed / "trainA" / near) as picture:
        (changed / "trainA" / "zz-near.jpg").write_bytes(encoded(picture, "JPEG", quality=80))
    shutil.copy(changed / "trainA" / crossing, changed / "trainB" / "zz-crossing.jpg")
    shutil.copy(changed / "trainA" / tested, changed / "testB" / "zz-tested.jpg")
    settings = config(changed, tmp_path / "out")
    made = prepare(settings)
    assert len(made.manifest.duplicates.near) == 1
    again = chosen(made, settings, 4)
    assert again is not None
    trained, held = again["a"]
    assert {equal, crossing} < set(held)
    assert len(held) == 4
    assert tested in trained
    assert tested not in held
    # of the two near copies one is held out
    assert len({near, "zz-near.jpg"} & set(held)) == 1
    for copy in ("zz-equal.jpg", near, "zz-near.jpg"):
        assert copy not in trained
    assert "zz-crossing.jpg" not in again["b"][0]


def test_the_choice_survives_other_names(
    source: Path, plain: tuple[Prepared, Config], tmp_path: Path
) -> None:
    found = chosen(*plain, 4)
    assert found is not None
    renamed = tmp_path / "in"
    shutil.copytree(source, renamed)
    for path in (renamed / "trainA").iterdir():
        os.rename(path, path.with_name(f"other-{path.name}"))
    settings = config(renamed, tmp_path / "out")
    again = chosen(prepare(settings), settings, 4)
    assert again is not None
    assert {name.removeprefix("other-") for name in again["a"][1]} == set(found["a"][1])


def test_a_small_set_has_nothing_to_spare(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", {"trainA": 30, "trainB": 9, "testA": 2, "testB": 2})
    settings: Any = config(source, tmp_path / "out")
    made = prepare(settings)
    assert chosen(made, settings, 4) is None
    sentence = held_out.too_few(settings, made.manifest)
    assert (
        "of 30 and 9 training images at most 20% are held out, fewer than the 2 that scores need" in sentence
    )
