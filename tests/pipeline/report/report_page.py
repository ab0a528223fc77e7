from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image
from playwright.sync_api import Page


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", html, flags=re.S))


def pixels(page: Page, selector: str) -> np.ndarray:
    # a new source is shown once it is decoded, which a screenshot does not wait for
    page.locator(selector).first.evaluate(
        "box => Promise.all([...box.querySelectorAll('img[src]')].map(image => image.decode()))"
    )
    data = page.locator(selector).first.screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
