from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agit_core import Translator
from pipeline import demo_ui
from tests.agit_core import models
from tests.pipeline.served import started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_model(tmp_path_factory.mktemp("demo-ui") / "model")


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cwd = tmp_path_factory.mktemp("cwd")
    call = ("pipeline.cli", "demo-ui", "--model", folder, "--port", "0", "--max-side", "200")
    with started(*call, cwd=cwd) as address:
        yield address


@pytest.mark.slow
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


def test_a_hostile_name_stays_text(folder: Path) -> None:
    model = replace(Translator.load(folder).model, name="<script>alert(1)</script>")
    page = demo_ui._page(model, 100)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
