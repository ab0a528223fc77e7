from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from agit_core import Translator
from pipeline.serve import page as demo_ui
from tests.agit_core import models
from tests.browser import Browser
from tests.pipeline.served import started

PATIENCE = 60_000
"""Milliseconds for a translation on a busy machine."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("demo-ui") / "model")


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cwd = tmp_path_factory.mktemp("cwd")
    call = ("pipeline.cli", "demo-ui", "--model", folder, "--port", "0", "--max-side", "200")
    with started(*call, cwd=cwd) as address:
        yield address


def shown(page: Page, selector: str) -> np.ndarray:
    data = page.locator(selector).screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_an_image_is_dropped_and_its_mask_and_result_are_seen(
    browser: Browser, url: str, tmp_path: Path, screenshots: Path, folder: Path
) -> None:
    photo = models.save(tmp_path / "horse.png", 120, 180, seed=3)
    page = browser.open(url)
    result = page.locator("#result")
    assert not result.is_visible()
    # as a person drops it: a file in a DataTransfer
    transfer = page.evaluate_handle(
        "bytes => { const t = new DataTransfer(); "
        "t.items.add(new File([new Uint8Array(bytes)], 'horse.png', { type: 'image/png' })); return t; }",
        list(photo.read_bytes()),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("#status")).to_contain_text("180 x 120 pixels", timeout=PATIENCE)
    expected = Translator.load(folder, device="cpu").translate(Image.open(photo))
    coverage = round(float(np.asarray(expected.mask).mean() / 255) * 100)
    assert page.locator("#coverage").inner_text() == f"covers {coverage} %"
    page.screenshot(path=screenshots / "demo-ui-desktop.png", full_page=True)

    divider = page.get_by_label("Divider between before and after")
    divider.focus()
    page.keyboard.press("Home")
    after = shown(page, ".compare")
    page.keyboard.press("End")
    assert np.abs(after - shown(page, ".compare")).mean() > 3
    page.get_by_label("Mask", exact=True).focus()
    page.keyboard.press("Home")
    bare = shown(page, ".stack:has(#mask)")
    page.keyboard.press("End")
    assert np.abs(bare - shown(page, ".stack:has(#mask)")).mean() > 3

    first = page.locator("[data-part=image]").get_attribute("src")
    page.locator(".segmented label").nth(1).click()
    expect(page.locator("[data-part=image]")).not_to_have_attribute("src", str(first), timeout=PATIENCE)
    with page.expect_download() as download:
        page.locator("#download").click()
    other = Translator.load(folder, device="cpu").translate(Image.open(photo), "b2a").image
    saved = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert np.abs(saved - np.asarray(other)).max() <= 1


def test_a_bad_image_is_said_and_the_next_one_works(browser: Browser, url: str, tmp_path: Path) -> None:
    bad = tmp_path / "notes.png"
    bad.write_text("no picture")
    page = browser.open(url)
    page.set_input_files("#file", bad)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This is not an image that can be read", timeout=PATIENCE)
    assert not page.locator("#result").is_visible()
    browser.errors.clear()  # Chromium reports the answer 400 in its console
    page.set_input_files("#file", models.save(tmp_path / "large.jpg", 300, 500))
    expect(page.locator("#status")).to_contain_text(
        "200 x 120 pixels, scaled down from 500 x 300", timeout=PATIENCE
    )
    assert not alert.is_visible()


def test_a_phone_shows_all_of_it(browser: Browser, url: str, screenshots: Path, tmp_path: Path) -> None:
    page = browser.open(url, 390, 844)
    page.set_input_files("#file", models.save(tmp_path / "tall.png", 150, 100))
    expect(page.locator("#status")).to_contain_text("100 x 150 pixels", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "demo-ui-phone.png", full_page=True)


def test_the_server_refuses_what_it_should(url: str) -> None:
    too_large = httpx.post(f"{url}/translate", content=b"x" * (21 * 2**20), timeout=120)
    assert too_large.status_code == 413
    other_site = httpx.post(f"{url}/translate", content=b"", headers={"Sec-Fetch-Site": "cross-site"})
    assert other_site.status_code == 403
    assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 400
    assert httpx.get(f"{url}/assets/..%2Fdemo_ui.py").status_code == 404
    direction = httpx.post(f"{url}/translate?direction=c2d", content=b"x", timeout=120)
    assert direction.json()["error"] == "there is no direction 'c2d'; use a2b or b2a"
    page = httpx.get(url)
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_an_image_with_broken_exif_is_refused_in_json(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", exif=b"Exif\0\0nonsense")
    client = TestClient(demo_ui.application(str(folder), device="cpu"), raise_server_exceptions=False)
    answer = client.post("/translate", content=buffer.getvalue())
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the image is damaged")


@pytest.mark.parametrize("kind", ["16 bits", "float", "transparent palette"])
def test_the_original_is_shown_as_it_is_read(folder: Path, kind: str) -> None:
    grey = models.photograph(40, 60)[..., 0]
    image = {
        "16 bits": Image.fromarray(grey.astype(np.uint16) * 257),
        "float": Image.fromarray(grey.astype(np.float32) / 255),
        "transparent palette": Image.fromarray(grey).convert("P"),
    }[kind]
    buffer = io.BytesIO()
    image.save(
        buffer, "TIFF" if kind == "float" else "PNG", **({"transparency": 3} if "palette" in kind else {})
    )
    client = TestClient(demo_ui.application(str(folder), device="cpu", max_side=30))
    answer = client.post("/translate", content=buffer.getvalue()).json()
    original = Image.open(io.BytesIO(base64.b64decode(answer["original"].partition(",")[2])))
    assert original.size == (30, 20)
    assert (original.mode == "RGBA") == ("palette" in kind)
    expected = Image.fromarray(grey).resize((30, 20), Image.Resampling.LANCZOS).convert("RGB")
    assert np.abs(np.asarray(original.convert("RGB")).astype(int) - np.asarray(expected)).mean() < 3


def test_a_hostile_name_stays_text(folder: Path) -> None:
    model = replace(Translator.load(folder).model, name="<script>alert(1)</script>")
    page = demo_ui._page(model, 100)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
