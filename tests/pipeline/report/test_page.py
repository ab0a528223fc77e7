"""The report in a browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from playwright.sync_api import Page

from pipeline.report import charts
from tests.browser import Browser
from tests.pipeline.fabricated_run import HOSTILE, SWITCH
from tests.pipeline.report.report_page import pixels

PLAY_MS = 450
"""How long a checkpoint stands while the report plays them."""


def opened(browser: Browser, built: Path, width: int = 1280, height: int = 900) -> Page:
    requested: list[str] = []
    browser.context.on("request", lambda request: requested.append(request.url))
    page = browser.open(built.as_uri(), width, height)
    # by selectors: the page's policy forbids the eval of wait_for_function
    page.wait_for_selector("html[data-charts]", state="attached")
    assert [url for url in requested if not url.startswith(("data:", "blob:"))] == [built.as_uri()]
    return page


def moved(before: np.ndarray, after: np.ndarray) -> float:
    """Mean absolute difference of two pictures of the same size, in grey levels."""
    return float(np.abs(before - after).mean())


def test_the_sliders_move_the_pictures(browser: Browser, built: Path, screenshots: Path) -> None:
    page = opened(browser, built)
    page.screenshot(path=screenshots / "report-desktop.png", full_page=True)
    attention, compare = "#viewer .stack:has([data-tile=overlay])", "#viewer .compare"

    # the checkpoint, by keyboard
    checkpoint = page.get_by_label("Checkpoint")
    source = page.locator("[data-tile=translated]").get_attribute("src")
    last, masked = pixels(page, compare), pixels(page, attention)
    assert page.locator("#checkpoint-value").inner_text() == "step 600 of 600, attention frozen"
    checkpoint.focus()
    page.keyboard.press("Home")
    assert page.locator("#checkpoint-value").inner_text() == "step 100 of 600, attention learning"
    assert page.locator("[data-tile=translated]").get_attribute("src") != source
    assert moved(last, pixels(page, compare)) > 3
    assert moved(masked, pixels(page, attention)) > 3
    page.keyboard.press("End")
    assert moved(last, pixels(page, compare)) < 0.5

    # the opacity of the attention
    page.get_by_label("Opacity").focus()
    page.keyboard.press("Home")
    bare = pixels(page, attention)
    page.keyboard.press("End")
    assert page.locator("#opacity-value").inner_text() == "100 %"
    assert moved(bare, pixels(page, attention)) > 10

    # the divider: all after, all before, and by dragging
    divider = page.get_by_label("Divider between before and after")
    divider.focus()
    page.keyboard.press("Home")
    after = pixels(page, compare)
    page.keyboard.press("End")
    before = pixels(page, compare)
    assert moved(after, before) > 5
    box = page.locator(compare).bounding_box()
    assert box is not None
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] - 3, height)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, height, steps=5)
    page.mouse.up()
    assert 15 < int(divider.input_value()) < 35
    assert moved(before, pixels(page, compare)) > 2

    # another image, the other direction
    shown = page.locator("[data-tile=real]").first.get_attribute("src")
    page.locator(".thumbs label").nth(2).click()
    assert page.locator("[data-tile=real]").first.get_attribute("src") != shown
    page.get_by_text("striped → plain", exact=True).first.scroll_into_view_if_needed()
    page.locator(".segmented label").nth(1).click()
    assert "striped → plain, image 3" in str(page.locator("[data-tile=translated]").get_attribute("alt"))

    # a step stands for less than half a second: the page's clock is ours, or a busy machine looks too late
    page.clock.install(time=0)
    page.clock.pause_at(1000)
    page.get_by_role("button", name="Play").click()
    for step in (100, 200, 300):
        assert page.locator("#checkpoint-value").inner_text() == f"step {step} of 600, attention learning"
        page.clock.run_for(PLAY_MS)
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(2 * PLAY_MS)
    assert page.locator("#checkpoint-value").inner_text() == "step 400 of 600, attention frozen"
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(9 * PLAY_MS)
    assert page.locator("#checkpoint-value").inner_text() == "step 600 of 600, attention frozen"
    assert page.locator("#play").inner_text() == "Play"


def test_charts_are_drawn_and_the_switch_is_marked(browser: Browser, built: Path) -> None:
    page = opened(browser, built)
    keys = page.evaluate(
        "Object.keys(JSON.parse(document.getElementById('charts-data').textContent).figures)"
    )
    assert {"kid", "generator", "discriminator", "cycle", "learning-rate", "mask-coverage"} <= set(keys)
    assert "identity" not in keys  # the loss is off
    for key in keys:
        assert page.locator(f"#chart-{key} .main-svg").count() > 0, key
    line = page.evaluate("document.getElementById('chart-cycle').layout.shapes[0].x0")
    assert line == SWITCH
    assert page.locator("#chart-cycle").get_attribute("aria-label") is not None


def test_a_hostile_name_is_shown_and_does_nothing(browser: Browser, built: Path) -> None:
    page = opened(browser, built)
    assert page.locator("figcaption .name", has_text="onerror").first.inner_text() == HOSTILE
    assert "owned" not in page.title()
    # and were it ever to slip through, the page's policy runs no script but its own
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')")
    page.wait_for_timeout(200)
    assert page.title() != "1"
    assert any("Content Security Policy" in error for error in browser.errors)
    browser.errors.clear()


def test_nothing_overflows_on_a_phone(browser: Browser, built: Path, screenshots: Path) -> None:
    page = opened(browser, built, 390, 844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.screenshot(path=screenshots / "report-phone.png", full_page=True)
    for selector in ("#checkpoint", "#opacity", "#split", "#play", ".segmented label", ".thumbs label"):
        box = page.locator(selector).first.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= 390 - box["width"], selector
        assert box["height"] >= 24, f"{selector} is too low for a finger"


CONTRAST = """() => {
  const style = getComputedStyle(document.documentElement);
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = (name) => {
    canvas.fillStyle = style.getPropertyValue(name); canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = ['--page', '--surface'].flatMap((b) =>
    ['--ink', '--muted', '--link', '--good', '--bad', '--even'].map((f) => [f, b]));
  pairs.push(['--good', '--good-soft'], ['--bad', '--bad-soft'], ['--even', '--even-soft'],
    ['--ink', '--bad-soft'], ['--ink', '--sunken'], ['--muted', '--even-soft']);
  return pairs.map(([f, b]) => {
    const [x, y] = [light(f), light(b)].sort((p, q) => q - p);
    return [`${f} on ${b}`, (x + 0.05) / (y + 0.05)];
  });
}"""


def test_dark_and_light_are_readable_and_follow_the_system(
    browser: Browser, built: Path, screenshots: Path
) -> None:
    page = opened(browser, built)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.wait_for_selector(f"html[data-charts={scheme}]", state="attached")
        weak = [pair for pair, ratio in page.evaluate(CONTRAST) if ratio < 4.5]
        assert weak == [], scheme
    drawn = page.evaluate("document.getElementById('chart-cycle').data[0].line.color")
    assert drawn in charts.DARK.values()
    page.screenshot(path=screenshots / "report-dark.png", full_page=True)
