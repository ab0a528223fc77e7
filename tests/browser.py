"""A real headless Chromium for tests, driven by Playwright.

``tests/conftest.py`` imports the fixtures::

    from tests.browser import browser, screenshots

A test opens pages with ``browser.open(url)``; errors that a page writes to its console, uncaught exceptions
and requests to other machines fail the test when it ends. Playwright keeps an event loop running in the
thread, which other libraries' ``asyncio.run`` would trip over, so the browser lives for one test only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Browser:
    """One Chromium with an empty profile.

    Attributes:
        context: Playwright's, for what :meth:`open` does not do.
        errors: what the pages complained about so far; a test that provokes an error clears it.
    """

    context: BrowserContext
    errors: list[str] = field(default_factory=list)

    def open(self, url: str, width: int = 1280, height: int = 900) -> Page:
        """A new tab of this size on ``url`` (http://, file://), after its ``load`` event."""
        page = self.context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        page.on("request", self._on_request)
        page.goto(url)
        return page

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"console: {message.text}")

    def _on_request(self, request: Request) -> None:
        address = urlparse(request.url)
        if address.scheme in {"http", "https", "ws", "wss"} and address.hostname not in {
            "127.0.0.1",
            "localhost",
        }:
            self.errors.append(f"request to another machine: {request.url}")


def find_chromium() -> str:
    """Path of the browser: ``AGIT_CHROMIUM`` or the system's."""
    named = os.environ.get("AGIT_CHROMIUM")
    if named:
        return named
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.fail(
        "this test drives a real Chromium and there is none: 'apt-get install chromium' "
        "(or set AGIT_CHROMIUM to the browser's path)",
        pytrace=False,
    )


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A Chromium with an empty profile; fails the test when a page had an error."""
    options: dict[str, Any] = {"executable_path": find_chromium(), "args": FLAGS, "headless": True}
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(tmp_path_factory.mktemp("profile"), **options)
        opened = Browser(context)
        try:
            yield opened
        finally:
            context.close()
    assert not opened.errors, "\n".join(opened.errors)


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Folder for pictures that people look at after the tests: ``AGIT_TEST_OUTPUT`` or .agit/test-output."""
    folder = Path(os.environ.get("AGIT_TEST_OUTPUT", ".agit/test-output")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
