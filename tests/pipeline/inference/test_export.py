from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from agit_core import Translator, export, model_folder
from agit_core.config import NetworkConfig
from agit_core.errors import BadInput
from pipeline import storage
from pipeline.cli import export as cli_export
from pipeline.inference import export as exporting
from pipeline.inference.check_images import choose
from tests.agit_core import models
from tests.pipeline.command import agit
from tests.pipeline.s3 import S3Server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both domains, of sizes that the networks cannot take as they are."""
    root = tmp_path_factory.mktemp("photos")
    for number, split in enumerate(("testA", "testA", "testB")):
        models.save(root / split / f"{number}.png", 45, 62, seed=number)
    return root


def padded(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As the contract says: float NCHW in [-1, 1], reflected to multiples of 4."""
    height, width = pixels.shape[:2]
    image = np.pad(pixels, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="reflect")
    return (image.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]


def as_pixels(output: np.ndarray[Any, Any], height: int, width: int) -> np.ndarray[Any, Any]:
    return np.round((output[0, :, :height, :width] + 1) * 127.5).transpose(1, 2, 0)


def test_onnx_from_the_command_line_answers_as_the_translator_does(
    folder: Path, photos: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = agit(
        *("export", "--model", folder, "--format", "onnx", "out", "--check", photos, "--json"),
        cwd=tmp_path,
        HOME=str(home),
    )
    assert done.status == 0, done.err
    assert not [path for path in home.rglob("*") if "onnx" in path.name], (
        "nothing is kept to be sent to Microsoft"
    )
    answer = done.answer
    assert answer["ok"] is True
    assert 0 < answer["worst"] < 1e-4
    assert {d: c["images"] for d, c in answer["checks"].items()} == {"a2b": 2, "b2a": 1}
    assert answer["checks"]["a2b"]["sizes"] == ["64x48"]
    assert {Path(f).name for f in answer["files"]} == {"a2b.onnx", "b2a.onnx", "README.md", "export.json"}

    translator = Translator.load(folder, device="cpu")
    for direction in ("a2b", "b2a"):
        path = tmp_path / "out" / f"{direction}.onnx"
        stored = onnx.load(path)
        assert [(o.domain, o.version) for o in stored.opset_import] == [("", export.OPSET)]
        told = {p.key: p.value for p in stored.metadata_props}
        assert json.loads(told["agit"])["direction"] == direction
        session = onnxruntime.InferenceSession(path)
        for height, width in ((37, 50), (120, 64)):
            photo = models.photograph(height, width)
            output, mask = session.run(["output", "mask"], {"image": padded(photo)})
            expected = translator.translate(photo, direction)
            assert np.abs(as_pixels(output, height, width) - expected.image).max() <= 1
            shown = np.round(mask[0, 0, :height, :width] * 255)
            assert np.abs(shown - expected.mask).max() <= 1
        batch = np.concatenate([padded(models.photograph(40, 48, seed)) for seed in range(3)])
        together = session.run(["output"], {"image": batch})[0]
        alone = session.run(["output"], {"image": batch[2:]})[0]
        np.testing.assert_allclose(together[2:], alone, atol=1e-5)


def test_torch_export_of_one_direction_as_one_file(folder: Path, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "plain.pt2"
    done = exporting.run(str(folder), str(target), "torch-export", direction="b2a", check=str(photos))
    assert done["ok"]
    assert done["files"] == [str(target)]
    assert list(tmp_path.iterdir()) == [target]
    extra = {export.NOTES: ""}
    program = torch.export.load(target, extra_files=extra)
    assert json.loads(extra[export.NOTES])["direction"] == "b2a"
    photo = models.photograph(36, 52)
    with torch.no_grad():
        output, _ = program.module()(torch.from_numpy(padded(photo)))
    expected = Translator.load(folder, device="cpu").translate(photo, "b2a").image
    assert np.abs(as_pixels(output.numpy(), 36, 52) - expected).max() <= 1


@pytest.mark.parametrize(
    "networks",
    [
        replace(models.SMALL, preset="uaggan"),
        replace(models.SMALL, preset="cyclegan", upsampling="resize"),
        replace(models.SMALL, upsampling="transposed", attention_decoder="3x3"),
    ],
    ids=["uaggan", "cyclegan-resize", "agit-transposed"],
)
def test_every_preset_becomes_onnx(networks: NetworkConfig, tmp_path: Path) -> None:
    model = models.write_model(tmp_path / "model", networks)
    done = exporting.run(str(model), str(tmp_path / "x.onnx"), "onnx", count=1)
    assert done["ok"], done
    assert done["checks"]["a2b"]["source"] == "generated images"


def test_what_differs_too_much_is_not_handed_out(folder: Path, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    answer = cli_export.export(
        str(target), str(folder), cli_export.Format.safetensors, check=str(photos), images=1, tolerance=-1.0
    )
    assert answer.value["ok"] is False
    assert answer.failure is not None
    assert "above the tolerance of -1; nothing was written" in answer.failure
    assert list(tmp_path.iterdir()) == []


def test_safetensors_to_object_storage(folder: Path, photos: Path, s3: S3Server) -> None:
    target = storage.join(s3.uri, "exported")
    done = exporting.run(str(folder), target, "safetensors", check=str(photos), count=1)
    assert done["worst"] == 0
    assert done["files"][-1] == storage.join(target, "model.json")
    model = model_folder.read(target)
    assert model.weights.keys() == model_folder.read(folder).weights.keys()
    assert json.loads(storage.read_text(storage.join(target, "export.json")))["directions"].keys() == {
        *("a2b", "b2a")
    }


@pytest.mark.parametrize("where", ["local", "s3"])
def test_nothing_of_an_earlier_export_stays(
    folder: Path, photos: Path, tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    target = (
        storage.join(request.getfixturevalue("s3").uri, "again") if where == "s3" else str(tmp_path / "out")
    )
    for name in ("a2b.onnx", "b2a.onnx", "networks.safetensors", "somebody's.txt"):
        storage.write_text(storage.join(target, name), "old")
    (tmp_path / "outside.onnx").write_text("not the export's, whatever its list says")
    listed = ("a2b.onnx", "b2a.onnx", "networks.safetensors", "../outside.onnx")
    storage.write_json(storage.join(target, "export.json"), {"files": dict.fromkeys(listed, "hash")})
    with pytest.raises(BadInput, match="already exists"):
        exporting.run(str(folder), target, "safetensors", check=str(photos), count=1)
    done = exporting.run(str(folder), target, "safetensors", check=str(photos), count=1, overwrite=True)
    assert sorted([*done["files"], storage.join(target, "somebody's.txt")]) == storage.list_(target)
    assert model_folder.read(target).weights.keys() == model_folder.read(folder).weights.keys()
    assert (tmp_path / "outside.onnx").exists()


def test_a_replacement_that_is_interrupted_leaves_nothing_that_looks_whole(
    folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    exporting.run(str(folder), str(target), "safetensors", check=str(photos), count=1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "upload_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exporting.run(str(folder), str(target), "safetensors", check=str(photos), count=1, overwrite=True)
    assert not {"export.json", "model.json"} & {path.name for path in target.iterdir()}
    with pytest.raises(BadInput, match="no model at"):
        model_folder.read(target)


def test_a_model_is_not_replaced_by_its_export(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(BadInput, match="is the model itself"):
        exporting.run(str(folder), f"{tmp_path}/link/", "onnx", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_threshold_goes_into_the_file(folder: Path, photos: Path, tmp_path: Path) -> None:
    done = exporting.run(str(folder), str(tmp_path / "out"), "safetensors", check=str(photos), threshold=0.6)
    assert done["ok"]
    assert model_folder.read(tmp_path / "out").method.threshold_at_test == 0.6
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["directions"]["a2b"]["threshold"] == 0.6
    photo = models.photograph(48, 64)
    mask = Translator.load(tmp_path / "out", device="cpu").translate(photo).mask
    assert np.array_equal(mask, Translator.load(folder, device="cpu", threshold=0.6).translate(photo).mask)
    assert 0 < (mask == 0).mean() < 1


def test_the_comparison_sees_another_model_and_nonsense(folder: Path, tmp_path: Path) -> None:
    model = model_folder.read(folder)
    other = model_folder.read(models.write_model(tmp_path / "other", seed=2))
    image = choose(model, "a2b", None, 1).images[0]
    measure = export.compare(model, "a2b")
    same = measure(image, export.OneDirection(model, "a2b").eval())
    assert (same.output, same.mask, same.undecided) == (0, 0, 0)
    assert measure(image, export.OneDirection(other, "a2b").eval()).output > 0.01
    assert measure(image, export.OneDirection(model, "b2a").eval()).output > 0.01
    nan = measure(image, lambda x: (x * torch.nan, x[:, :1]))
    assert nan.output == float("inf")
    assert measure(image, lambda x: (x[..., :-4], x[:, :1])).output == float("inf")


def test_pixels_at_the_threshold_do_not_count(tmp_path: Path) -> None:
    model = model_folder.read(models.write_model(tmp_path / "m", threshold_at_test=0.5))
    image = choose(model, "a2b", None, 1).images[0]
    module = export.OneDirection(model, "a2b").eval()
    assert module.attention is not None
    attention = module.attention(image)
    module.threshold = float(attention.flatten()[7])  # exactly at one pixel's value
    model = replace(model, method=replace(model.method, threshold_at_test=module.threshold))

    def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output, mask = module(x)
        at = attention == module.threshold
        return torch.where(at, x, output), torch.where(at, 0, mask)

    found = export.compare(model, "a2b")(image, rounded)
    assert (found.output, found.mask) == (0, 0)
    assert found.undecided >= 1


@pytest.mark.parametrize(
    ("output", "file_format", "message"),
    [
        ("x.pt2", "onnx", "does not fit --format onnx: give a folder or a name in .onnx"),
        ("x.safetensors", "safetensors", "give a folder"),
        ("taken", "onnx", "already exists"),
        ("taken/file", "onnx", "is a file"),
    ],
)
def test_outputs_that_cannot_be(
    folder: Path, tmp_path: Path, output: str, file_format: str, message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("somebody's")
    with pytest.raises(BadInput, match=message):
        exporting.run(str(folder), str(tmp_path / output), file_format)
    assert (tmp_path / "taken" / "file").read_text() == "somebody's"


def test_a_check_folder_without_images_is_a_wrong_call(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"no image in .* can be read"):
        choose(model_folder.read(folder), "a2b", str(tmp_path), 3)
