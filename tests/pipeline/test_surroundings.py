"""What a user's machine and working folder say: proxies, and where Prefect's server is."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.flows.embedded import configured_url


@pytest.mark.parametrize("exceptions", [{}, {"no_proxy": ""}, {"NO_PROXY": "example.com"}, {"no_proxy": "*"}])
def test_servers_of_this_machine_are_asked_past_a_proxy(exceptions: dict[str, str]) -> None:
    answer = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=answer.serve_forever, daemon=True).start()
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"} | proxies | exceptions
    code = "import sys; from pipeline import http_health; print(http_health.ask(sys.argv[1], 30)[0])"
    url = f"http://127.0.0.1:{answer.server_address[1]}/"
    done = subprocess.run([sys.executable, "-c", code, url], env=environment, capture_output=True, text=True)
    answer.shutdown()
    answer.server_close()
    assert done.stdout.strip() == "501", done.stderr  # no method of it is implemented: it was asked


def test_prefects_address_is_found_where_prefect_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    assert configured_url() is None
    (tmp_path / "home").mkdir()
    profile = 'active = "team"\n[profiles.team]\nPREFECT_API_URL = "http://profile/api"\n'
    for file, text, url in (
        ("home/profiles.toml", profile, "http://profile/api"),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://project/api"\n', "http://project/api"),
        ("prefect.toml", '[api]\nurl = "http://settings/api"\n', "http://settings/api"),
        (".env", "# ours\nexport PREFECT_API_URL='http://dotenv/api'\n", "http://dotenv/api"),
    ):
        (tmp_path / file).write_text(text)
        assert configured_url() == url
    monkeypatch.setenv("PREFECT_API_URL", "http://environment/api")
    assert configured_url() == "http://environment/api"
