"""A model as a repository of the Hugging Face Hub: written, published and read back through huggingface_hub."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id
from PIL import Image

from agit_core import Translator, model_folder
from agit_core.errors import BadInput, RunFailed
from infra.stack_state import free_port
from pipeline.inference import export as exporting
from pipeline.inference import hub as of_hub
from tests.agit_core import models
from tests.pipeline.command import agit, environment
from tests.pipeline.hub_server import TOKEN, Hub, running

REPO = "somebody/zebras-of_v1.2"
SECRETS = ("/home/somebody", "s3://inner", "tracking.inner", "bucket-of-checkpoints", "s3cr3t")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows places which are nobody's business."""
    folder = models.write_model(tmp_path_factory.mktemp("hub") / "model")
    read = model_folder.read(folder)
    lineage = {
        "run_id": "tiny-1",
        "steps": 200,
        "run_uri": "s3://inner/runs/tiny-1",
        "data_uri": "/home/somebody/data",
        "checkpoint": "s3://bucket-of-checkpoints/7",
        "sources": {"source": "/home/somebody/photos"},
        "config": {
            "name": "tiny",
            "seed": 3,
            "storage": "s3://inner",
            "data": {"source": "/home/somebody/photos", "masks": "/home/somebody/masks"},
            "train": {"max_steps": 200, "start_from": "s3://inner/model"},
            "register": {"tracking_uri": "http://tracking.inner"},
            "cluster": {"env": {"KEY": "s3cr3t"}},
        },
    }
    scores = {"metrics": {"kid_target_a2b": 0.07}, "model": {"uri": "s3://inner/x"}, "uri": "s3://inner/y"}
    extra = {"evaluation.json": json.dumps(scores).encode()}
    model_folder.write(folder, "tiny", read.method, read.image_size, read.weights, lineage, extra)
    return folder


@pytest.fixture(scope="module")
def hub() -> Hub:
    with running() as hub:
        yield hub  # type: ignore[misc]


def in_hub(hub: Hub, home: Path, token: str = TOKEN) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": token}


@pytest.fixture(scope="module")
def published(model: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``agit export --format hub --push`` has written."""
    here = tmp_path_factory.mktemp("published")
    done = agit(
        *("export", "--model", model, "--format", "hub", "out", "--images", "1"),
        *("--push", REPO, "--private", "--json"),
        cwd=here,
        **in_hub(hub, here / "home"),
    )
    assert done.status == 0, done.err
    assert done.answer["pushed"].startswith(f"{hub.url}/{REPO}/commit/")
    assert done.answer["worst"] == 0
    return here / "out"


def test_the_folder_is_published_as_it_is(published: Path, hub: Hub) -> None:
    validate_repo_id(REPO)
    names = {"README.md", "config.json", "evaluation.json", "export.json", "model.json", "model.safetensors"}
    assert {path.name for path in published.iterdir()} == names
    assert hub.files[REPO] == {name: (published / name).read_bytes() for name in names}
    assert hub.private[REPO] is True
    assert [message.split(",")[0] for message in hub.messages] == ["tiny"]


def test_the_hubs_own_tools_understand_it(published: Path, hub: Hub) -> None:
    card = ModelCard.load(published / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("agit", "image-to-image")
    assert f'Translator.load("hf://{REPO}")' in card.text
    assert [result.metric_name for result in card.data.eval_results] == ["kid_target_a2b"]
    (validated,) = hub.cards
    assert validated["pipeline_tag"] == "image-to-image"
    # the shapes that the Hub's page shows: read by ranges out of model.safetensors
    found = HfApi(endpoint=hub.url, token=TOKEN).get_safetensors_metadata(REPO)
    weights = model_folder.read(published).weights
    assert sum(found.parameter_count.values()) == sum(value.numel() for value in weights.values())


def test_it_names_no_place_of_the_machine_that_trained_it(published: Path) -> None:
    for path in published.iterdir():
        content = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], path.name
    lineage = json.loads((published / "model.json").read_text())["lineage"]
    assert (lineage["run_id"], lineage["config"]["data"]["source"]) == ("tiny-1", "photos")


def test_it_is_loaded_by_its_name_and_then_without_the_hub(published: Path, hub: Hub, tmp_path: Path) -> None:
    photo = models.save(tmp_path / "photo.png", 40, 52)
    setting = in_hub(hub, tmp_path / "home")
    done = agit(
        "translate",
        photo,
        "out.png",
        "--model",
        f"hf://{REPO}",
        "--device",
        "cpu",
        "--json",
        cwd=tmp_path,
        **setting,
    )
    assert done.status == 0, done.err
    assert (done.answer["run_id"], done.answer["model"]["uri"]) == ("tiny-1", f"hf://{REPO}")
    expected = Translator.load(published, device="cpu")(Image.open(photo))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(expected))

    code = f"from agit_core import Translator; print(Translator.load('hf://{REPO}@main', device='cpu'))"
    gone = {**setting, "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    again = subprocess.run(
        [sys.executable, "-c", code], env=environment(**gone), capture_output=True, text=True, cwd=tmp_path
    )
    assert again.stdout.startswith("Translator('tiny'"), again.stderr


def test_what_the_hub_refuses_is_one_sentence(
    model: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(BadInput, match=r"cannot push to a/b: the Hub refuses the token; log in"):
        of_hub.push(tmp_path, "a/b", False, "x")
    with pytest.raises(BadInput, match=r"cannot read hf://a/b: there is no such repository or revision"):
        of_hub.resolve("hf://a/b")
    with pytest.raises(BadInput, match="write hf://USER/REPO or hf://USER/REPO@REVISION"):
        of_hub.resolve("hf://a/b/c")
    hub.files["a/other"] = {"config.json": b"{}"}
    with pytest.raises(BadInput, match="is no model of agit"):
        of_hub.resolve("hf://a/other")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(RunFailed, match="does not answer"):
        of_hub.resolve("hf://a/b")
    for repo in ("justone", "a/b/c", "a/-b-"):
        with pytest.raises(BadInput, match="no name of a repository"):
            exporting.run(str(model), str(tmp_path / "out"), "hub", push=repo)
    with pytest.raises(BadInput, match="--push is for --format hub"):
        exporting.run(str(model), str(tmp_path / "out"), "onnx", push="a/b")
    assert not (tmp_path / "out").exists()
