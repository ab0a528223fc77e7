from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from agit_core import Result, Translator, checkpoint, model_folder, tiling
from agit_core.augment import to_float
from agit_core.config import NetworkConfig, OptimizerConfig
from agit_core.errors import BadInput
from agit_core.translation import translate
from tests.agit_core import models, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def translator(folder: Path) -> Translator:
    return Translator.load(folder, device="cpu")


def test_equation_1_at_a_size_that_needs_no_padding(translator: Translator) -> None:
    photo = torch.from_numpy(models.photograph(32, 48)).permute(2, 0, 1)
    networks = translator.model.networks()
    for direction, maps in {
        "a2b": (networks.generator_ab, networks.attention_a),
        "b2a": (networks.generator_ba, networks.attention_b),
    }.items():
        with torch.no_grad():
            expected = translate(to_float(photo)[None], *maps)
        given = translator.translate(photo.float() / 255, direction)
        torch.testing.assert_close(given.image, (expected.output[0] + 1) / 2, atol=1e-5, rtol=0)
        torch.testing.assert_close(given.mask, expected.mask[0], atol=1e-5, rtol=0)
        assert (given.image - photo / 255).abs().mean() > 0.02  # it does something


def test_each_kind_of_image_is_answered_in_kind(translator: Translator) -> None:
    photo = models.photograph(33, 50)
    array = translator.translate(photo)
    assert isinstance(array, Result)
    assert array.image.shape == (33, 50, 3)
    assert array.image.dtype == np.uint8
    assert array.mask.shape == (33, 50)

    pil = translator.translate(Image.fromarray(photo))
    assert (pil.image.mode, pil.mask.mode, pil.image.size) == ("RGB", "L", (50, 33))
    assert np.array_equal(np.asarray(pil.image), array.image)
    assert np.array_equal(np.asarray(pil.mask), array.mask)

    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    uint8 = translator.translate(tensor)
    assert uint8.image.dtype == uint8.mask.dtype == torch.uint8
    assert np.array_equal(uint8.image.permute(1, 2, 0).numpy(), array.image)
    batch = translator.translate(torch.stack([tensor, tensor.flip(-1)]).float() / 255)
    assert batch.image.shape == (2, 3, 33, 50)
    assert batch.mask.shape == (2, 1, 33, 50)
    assert ((batch.image[0] * 255).round() - uint8.image).abs().max() <= 1
    half = translator(tensor.half() / 255)
    assert half.dtype == torch.float16


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_every_size_comes_back_the_same_size(height: int, width: int, folder: Path) -> None:
    translator = _cached(folder)
    result = translator.translate(models.photograph(height, width))
    assert result.image.shape == (height, width, 3)
    assert result.mask.shape == (height, width)


_LOADED: dict[Path, Translator] = {}


def _cached(folder: Path) -> Translator:
    return _LOADED.setdefault(folder, Translator.load(folder, device="cpu"))


def test_padding_is_reflection_and_cropped(translator: Translator) -> None:
    photo = models.photograph(30, 46)
    padded = np.pad(photo, ((0, 2), (0, 2), (0, 0)), mode="reflect")
    assert np.array_equal(translator(photo), translator(padded)[:30, :46])


def test_grey_and_deep_and_palette_images(translator: Translator) -> None:
    photo = models.photograph(20, 24)
    grey = Image.fromarray(photo).convert("L")
    expected = translator(np.asarray(grey.convert("RGB")))
    assert np.array_equal(np.asarray(translator(grey)), expected)
    assert np.array_equal(translator(np.asarray(grey)), expected)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode.startswith("I;16")
    assert np.array_equal(np.asarray(translator(deep)), expected)
    palette = Image.fromarray(photo).convert("P")
    assert translator(palette).mode == "RGB"
    assert translator(Image.fromarray(photo).convert("CMYK")).mode == "RGB"
    for scale in (255, 1, 1 / 257):  # 32-bit grey in [0, 1], [0, 255] and [0, 65535]
        wide = Image.fromarray(np.asarray(grey).astype(np.float32) / scale)
        assert np.array_equal(np.asarray(translator(wide)), expected)
    dark = Image.fromarray(np.full((20, 24), 200, np.uint16))  # eight bits in sixteen, not black
    assert np.array_equal(np.asarray(translator(dark)), translator(np.full((20, 24), 200, np.uint8)))
    with pytest.raises(BadInput, match="outside"):
        translator(Image.fromarray(np.full((20, 24), -1, np.float32)))


def test_ink_is_converted_by_its_profile_and_lab_is_understood(translator: Translator) -> None:
    photo = Image.fromarray(models.photograph(20, 24))
    lab = ImageCms.profileToProfile(
        photo, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    given, expected = np.asarray(translator(lab)).astype(int), np.asarray(translator(photo))
    assert np.abs(given - expected).mean() < 8
    ink = photo.convert("CMYK")
    plain = translator(ink)
    ink.info["icc_profile"] = b"damaged"
    assert np.array_equal(np.asarray(translator(ink)), np.asarray(plain))


def test_alpha_is_kept_as_it_is(translator: Translator) -> None:
    photo = models.photograph(20, 24)
    alpha = np.arange(480, dtype=np.uint8).reshape(20, 24)
    rgba = np.dstack([photo, alpha])
    result = translator(Image.fromarray(rgba))
    assert result.mode == "RGBA"
    assert np.array_equal(np.asarray(result)[..., 3], alpha)
    assert np.array_equal(np.asarray(result)[..., :3], translator(photo))
    assert np.array_equal(translator(rgba), np.asarray(result))


def test_exif_orientation_turns_the_image_upright(translator: Translator, tmp_path: Path) -> None:
    photo = models.photograph(20, 28)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise for display
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        result = translator(turned)
    assert result.size == (20, 28)
    assert np.array_equal(np.asarray(result), translator(np.ascontiguousarray(np.rot90(photo, -1))))
    assert 0x0112 not in result.getexif()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("horse.jpg", "cannot translate a str"),
        (np.zeros((3, 3, 3), np.float32), "float32"),
        (np.zeros((2, 3, 3, 3), np.uint8), "shape"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (torch.zeros(1, 8, 8), "shape"),
        (torch.full((3, 8, 8), -1.0), r"must lie in \[0, 1\]"),
        (torch.full((3, 8, 8), float("nan")), r"must lie in \[0, 1\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_refused(translator: Translator, image: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        translator(image)


def test_unknown_direction(translator: Translator) -> None:
    with pytest.raises(BadInput, match="a2b or b2a"):
        translator(models.photograph(16, 16), "sideways")


def test_threshold_at_test_is_applied(tmp_path: Path) -> None:
    soft = Translator.load(models.write_model(tmp_path / "soft"), device="cpu")
    hard = Translator.load(models.write_model(tmp_path / "hard", threshold_at_test=0.7), device="cpu")
    photo = models.photograph(32, 32)
    mask = soft.translate(photo).mask
    assert mask.min() < 127 < mask.max(), "the test's own model separates nothing"
    result = hard.translate(photo)
    assert np.array_equal(result.mask, np.where(mask >= 179, mask, 0))
    assert np.array_equal(result.image[result.mask == 0], photo[result.mask == 0])
    told = Translator.load(tmp_path / "soft", device="cpu", threshold=0.7)
    assert np.array_equal(told.translate(photo).image, result.image)
    assert np.array_equal(
        Translator.load(tmp_path / "hard", device="cpu", threshold=0.0).translate(photo).mask, mask
    )
    with pytest.raises(BadInput, match=r"\[0, 1\], not 1.5"):
        Translator.load(tmp_path / "soft", threshold=1.5)


# tiles


@given(tile=st.sampled_from([384, 512, 1024]), extra=st.integers(0, 1500).map(lambda n: 4 * n))
@settings(deadline=None)
def test_weights_of_the_tiles_add_up_to_one(tile: int, extra: int) -> None:
    length = tile - 40 + extra
    total, covered = torch.zeros(length), torch.zeros(length)
    for span in tiling.spans(length, tile):
        assert span.start % 4 == 0
        assert span.stop - span.start <= tile
        total[span.start : span.stop] += span.weights
        covered[span.start : span.stop] += 1
    torch.testing.assert_close(total, torch.ones(length))
    assert covered.max() <= 2


def _tiled_and_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch, statistics: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Translations of 480 x 800 pixels in six tiles and in one piece."""
    photo = models.photograph(480, 800, seed=2)
    if statistics == "exact":  # one patch: the whole image, rim and all
        monkeypatch.setattr(tiling, "PATCH", 800)
        monkeypatch.setattr(tiling, "RIM", 0)
        original = tiling.with_pooled_norms

        def measured(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
            pooled = original(network, device)
            with torch.no_grad():
                pooled(to_float(torch.from_numpy(photo).permute(2, 0, 1)[None]))
            tiling.hold_statistics(pooled)
            return pooled

        monkeypatch.setattr(tiling, "with_pooled_norms", measured)
    elif statistics == "own":  # each tile for itself, as a naive tiling would do
        monkeypatch.setattr(tiling, "with_pooled_norms", lambda network, device: network)
    tiled = Translator.load(folder, device="cpu", tile_pixels=tiling.OVERLAP**2 * 9)(photo)
    whole = Translator.load(folder, device="cpu")(photo)
    return tiled, whole


@pytest.mark.parametrize("preset", ["agit", "uaggan", "cyclegan"])
def test_with_the_images_own_statistics_tiles_are_invisible(
    preset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = NetworkConfig(
        preset=preset, generator_width=8, generator_blocks=2, attention_width=8, attention=True
    )
    folder = models.write_model(tmp_path / "m", config)
    tiled, whole = _tiled_and_whole(folder, monkeypatch, "exact")
    assert np.abs(tiled.astype(int) - whole.astype(int)).max() <= 1


def test_sampled_statistics_come_closer_than_each_tiles_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def difference(kind: str) -> float:
        with monkeypatch.context() as patch:
            tiled, whole = _tiled_and_whole(folder, patch, kind)
        return float(np.abs(tiled.astype(int) - whole.astype(int)).mean())

    assert difference("sampled") < 0.5 * difference("own")


def test_tiles_take_batches_alpha_and_odd_sizes(folder: Path) -> None:
    translator = Translator.load(folder, device="cpu", tile_pixels=384 * 384)
    photo = models.photograph(401, 603)
    rgba = np.dstack([photo, photo[..., :1]])
    result = translator.translate(Image.fromarray(rgba), "b2a")
    assert result.image.size == result.mask.size == (603, 401)
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    batch = translator(torch.stack([tensor, tensor]), "b2a")
    assert torch.equal(batch[0], batch[1])
    expected = np.asarray(result.image)[..., :3]
    assert np.abs((batch[0] * 255).round().permute(1, 2, 0).numpy() - expected.astype(int)).max() <= 1


def test_tiling_leaves_the_model_as_it_was(folder: Path) -> None:
    translator = Translator.load(folder, device="cpu", tile_pixels=384 * 384)
    small = models.photograph(40, 40)
    before = translator(small)
    translator(models.photograph(400, 500))
    assert np.array_equal(translator(small), before)


def test_a_work_side_changes_the_full_image_by_the_small_ones_change(folder: Path) -> None:
    """a + up(translated - small): fine detail that the networks never saw is in the answer."""
    photo = models.photograph(120, 200, seed=3)
    checkers = (np.indices((120, 200)).sum(0) % 2 * 24 - 12)[..., None]
    fine = np.clip(photo.astype(int) + checkers, 12, 243).astype(np.uint8)
    reduced = Translator.load(folder, device="cpu", work_side=100)
    result = reduced.translate(fine)
    assert result.image.shape == (120, 200, 3)
    assert result.mask.shape == (120, 200)
    small = np.asarray(Image.fromarray(fine).resize((100, 60), Image.Resampling.BICUBIC))
    seen = Translator.load(folder, device="cpu").translate(small)
    back = np.asarray(Image.fromarray(result.image).resize((100, 60), Image.Resampling.BICUBIC))
    inside = (slice(4, -4), slice(4, -4))
    change = np.abs(seen.image.astype(int) - small)[inside].mean()
    assert np.abs(back.astype(int) - seen.image)[inside].mean() < 0.6 * change
    assert (result.image.astype(int) * checkers).mean() > 0.4 * (fine.astype(int) * checkers).mean() > 0
    # what is not larger is translated as it is, and floats and batches work alike
    assert np.array_equal(reduced(small), seen.image)
    floats = torch.from_numpy(fine).permute(2, 0, 1)[None].float() / 255
    batch = reduced.translate(torch.cat([floats, floats]))
    assert batch.mask.shape == (2, 1, 120, 200)
    assert np.abs((batch.image[1] * 255).permute(1, 2, 0).numpy() - result.image).max() <= 1
    with pytest.raises(BadInput, match="work_side"):
        Translator.load(folder, work_side=3)


def test_a_work_side_and_tiles_together(folder: Path) -> None:
    photo = models.photograph(500, 1000)
    both = Translator.load(folder, device="cpu", work_side=600, tile_pixels=384 * 384)
    assert both.translate(photo).image.shape == (500, 1000, 3)


def test_too_small_tiles_are_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="tile_pixels"):
        Translator.load(folder, tile_pixels=100)


@pytest.mark.long
def test_a_12_megapixel_photograph_fits_into_4_gib(tmp_path: Path) -> None:
    """The widths of the preset ``agit`` at full size; fewer blocks, which only take time."""
    models.write_model(tmp_path / "m", NetworkConfig(generator_blocks=1))
    code = """
import resource, sys
import numpy as np
from agit_core import Translator
from tests.agit_core.models import photograph
photo = photograph(3000, 4000)
result = Translator.load(sys.argv[1], device="cpu").translate(photo)
assert result.image.shape == (3000, 4000, 3) and result.mask.shape == (3000, 4000)
assert np.abs(result.image.astype(int) - photo)[::50, ::50].mean() > 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    gib = int(done.stdout) / 2**20
    print(f"peak resident memory: {gib:.2f} GiB")
    assert gib < 4


def test_bfloat16_stays_close(folder: Path, translator: Translator) -> None:
    photo = models.photograph(400, 500)
    reduced = Translator.load(folder, device="cpu", autocast="bf16")
    small = photo[:64, :64]
    assert np.abs(reduced(small).astype(int) - translator(small).astype(int)).mean() < 3
    tiled = [
        Translator.load(folder, device="cpu", autocast=autocast, tile_pixels=384 * 384)(photo).astype(int)
        for autocast in ("off", "bf16")
    ]
    assert np.abs(tiled[0] - tiled[1]).mean() < 3


# loading


def test_loads_a_checkpoint_and_prefers_averaged_generators(tmp_path: Path) -> None:
    config = tiny.method()
    averaging = type(config)(
        networks=config.networks, stages=config.stages, optimizer=OptimizerConfig(average_decay=0.9)
    )
    trainer = tiny.trainer(averaging)
    tiny.train(trainer, 2)
    trainer.save(tmp_path / "step-2")
    (tmp_path / "step-2" / "training.pt").unlink()  # inference does not need it
    model = model_folder.read(tmp_path / "step-2")
    assert model.image_size == tiny.SIZE
    assert model.lineage["step"] == 2
    key, averaged = next(iter(trainer.averaged.items()))
    assert torch.equal(model.weights[key], averaged)
    assert not torch.equal(model.weights[key], trainer.networks.state_dict()[key])
    assert Translator.load(tmp_path / "step-2").directions == ("a2b", "b2a")


def test_a_model_folder_round_trip(folder: Path) -> None:
    model = model_folder.read(str(folder))
    assert model.name == "tiny"
    assert model.lineage == {"run_id": "tiny-1"}
    assert tiny.same(models.weights(), model.weights)
    assert model.digest == checkpoint.sha256(folder / "model.json")


def test_without_safetensors_pt_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_folder, "_safetensors", lambda: None)
    written = models.write_model(tmp_path / "m")
    assert sorted(p.name for p in written.iterdir()) == ["model.json", "networks.pt"]
    assert model_folder.read(written).weights.keys() == models.weights().keys()


def test_a_uaggan_model_of_the_first_version_keeps_its_layers(tmp_path: Path) -> None:
    """The weights fit both revisions, and only the one they were trained in gives the same pictures."""
    photo = models.photograph(64, 64)

    def translated(name: str, revision: Literal[1, 2], forget: bool = False) -> np.ndarray:
        network = replace(models.SMALL, preset="uaggan", revision=revision)
        folder = models.write_model(tmp_path / name, network)
        if forget:
            method = json.loads((folder / "model.json").read_text())["method"]
            del method["networks"]["revision"], method["networks"]["initialisation"]
            _edit(folder, method=method)
        return np.asarray(Translator.load(folder, device="cpu")(photo))

    first, old, present = translated("first", 1), translated("old", 1, forget=True), translated("present", 2)
    assert np.array_equal(first, old)
    assert np.abs(first.astype(int) - present.astype(int)).mean() > 5


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.json").unlink(), "neither model.json nor checkpoint.json"),
        (lambda f: (f / "model.json").write_text("{"), "not a model's manifest"),
        (lambda f: (f / "networks.safetensors").unlink(), "does not match its checksum"),
        (lambda f: (f / "networks.safetensors").write_bytes(b"x"), "does not match its checksum"),
        (lambda f: _edit(f, format=99), "reads format 1"),
        (lambda f: _edit(f, files={}), "lists none of"),
        (lambda f: _edit(f, method={"networks": {"colour": 1}}), "not a method configuration"),
        (
            lambda f: _edit(
                f,
                method=json.loads((f / "model.json").read_text())["method"]
                | {"networks": {"preset": "uaggan"}},
            ),
            "do not fit its configuration",
        ),
        (lambda f: (f / "model.json").write_text("[" * 100_000), "not a model's manifest"),
        (lambda f: (f / "model.json").write_text("null"), "not a model's manifest"),
        (lambda f: _edit(f, files=None), r"not a model's manifest \(files is 'None'\)"),
        (lambda f: _edit(f, directions=5), r"not a model's manifest \(directions is '5'\)"),
        (lambda f: _edit(f, image_size=-3), r"not a model's manifest \(image_size is '-3'\)"),
        (lambda f: _edit_networks(f, generator_width=10**9), "generator_width must lie in"),
        (lambda f: _edit_networks(f, generator_blocks=10**9), "generator_blocks must lie in"),
        (lambda f: _edit_networks(f, generator_width=1000), "do not fit its configuration"),
        (lambda f: _edit_networks(f, preset="other"), "preset is 'other'"),
        (lambda f: _edit_networks(f, upsampling=[1]), "upsampling is"),
        (lambda f: _rewrite(f, lambda data: data[: len(data) // 2]), "cannot be read safely"),
        (lambda f: _rewrite(f, lambda data: b""), "cannot be read safely"),
        (lambda f: _rewrite(f, lambda data: b"[1, 2]", "networks.pt"), "cannot be read safely"),
        (lambda f: _rewrite(f, lambda data: _saved([1, 2]), "networks.pt"), "not hold a state of networks"),
    ],
)
def test_damaged_folders_are_refused_in_one_sentence(tmp_path: Path, damage: Any, message: str) -> None:
    damage(models.write_model(tmp_path / "m"))
    with pytest.raises(BadInput, match=message) as caught:
        Translator.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


def _edit_networks(folder: Path, **changes: Any) -> None:
    method = json.loads((folder / "model.json").read_text())["method"]
    _edit(folder, method=method | {"networks": method["networks"] | changes})


def _rewrite(folder: Path, change: Callable[[bytes], bytes], name: str = "networks.safetensors") -> None:
    """Other contents for the weights, with the checksum that belongs to them."""
    data = change((folder / "networks.safetensors").read_bytes())
    (folder / name).write_bytes(data)
    _edit(folder, files={name: checkpoint.sha256(folder / name)})


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(manifest | changes))


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/hacked",)

    monkeypatch.setattr(model_folder, "_safetensors", lambda: None)
    folder = models.write_model(tmp_path / "m")
    torch.save({"x": Evil()}, folder / "networks.pt")
    _edit(folder, files={"networks.pt": checkpoint.sha256(folder / "networks.pt")})
    with pytest.raises(BadInput, match="cannot be read safely"):
        Translator.load(folder)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("uri", ["nothing/here", "models/@x", "nosuch://bucket/model", "nosuch:/model"])
def test_places_without_a_model(uri: str) -> None:
    with pytest.raises(BadInput):
        Translator.load(uri)


def test_file_uris_and_object_storage(folder: Path, s3: Any) -> None:
    from pipeline import storage

    assert Translator.load(f"file://{folder}").model.name == "tiny"
    storage.upload_folder(folder, f"{s3.uri}/models/tiny")
    assert Translator.load(f"{s3.uri}/models/tiny").model.name == "tiny"
    with pytest.raises(BadInput, match="neither"):
        Translator.load(f"{s3.uri}/models/other")


def test_registered_resolvers_translate_their_scheme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def load(self) -> Any:
            return lambda uri: str(folder) if uri == "zoo:/tiny" else "nowhere"

    def entry_points(group: str, name: str) -> list[Entry]:
        return [Entry()] if (group, name) == ("agit.resolvers", "zoo") else []

    monkeypatch.setattr(model_folder.metadata, "entry_points", entry_points)
    assert Translator.load("zoo:/tiny").model.name == "tiny"
