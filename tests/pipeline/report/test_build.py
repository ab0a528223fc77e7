from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.redact import redact
from pipeline.report import build
from tests.pipeline.fabricated_run import HOSTILE, fabricate
from tests.pipeline.report.report_page import text_of
from tests.pipeline.s3 import S3Server

SECRETS = ("hunter2", "s3cr3t", "deadbeef", "hf_abc123")


def test_headline_answers_the_two_questions_in_one_sentence(html: str) -> None:
    assert "Better than doing nothing in both directions, and promoted to champion." in html
    assert "kid_mean 0.0663 against 0.0688 of the champion" in html


def test_figures_stand_beside_doing_nothing_and_the_champion_with_intervals(html: str) -> None:
    row = re.search(r'<tr role="row"><th[^>]*>KID to the target.*?</tr>', html, re.S)
    assert row is not None
    text = text_of(row[0])
    for part in ("7.10 6.30 to 7.90", "20.24", "better", "−13.94 to −12.34", "8.50", "−2.20 to −0.60"):
        assert part in text, text


def test_protocol_lineage_and_data_are_told(html: str) -> None:
    text = text_of(html)
    for part in (
        "7ff4a85c3a6378f0dfc8433ffd789663b0",
        "10 subsets of 50 images",
        "commit 0123456789ab",
        "worker failed at step 210",
        "trainA/notes.txt.jpg: not an image",
        "trainB/1.jpg = trainB/2.jpg",
        "trainA/7.jpg = testA/8.jpg",
        "switch_at: 300",
        "1,000 images of plain and striped",
    ):
        assert part in text, part


def test_no_credential_reaches_the_page(html: str) -> None:
    assert [secret for secret in SECRETS if secret in html] == []
    assert "https://•••@example.org/set.zip" in html


def test_a_hostile_file_name_stays_text(html: str) -> None:
    assert HOSTILE not in html
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=" in html


def test_the_file_is_complete_and_of_a_sane_size(html: str, built: Path) -> None:
    assert not re.search(r"""(?:src|href)=["']?(?:https?:|//)""", html)
    assert "default-src 'none'" in html
    assert built.stat().st_size < 15_000_000


def test_the_policy_names_exactly_the_scripts_of_the_page(html: str) -> None:
    script = html.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in unescape(html)


def test_the_same_report_from_object_storage(tmp_path: Path, s3: S3Server) -> None:
    config, run, data = fabricate(tmp_path)
    for local in (run, data):
        storage.upload_folder(local, storage.join(s3.uri, Path(local).relative_to(tmp_path).as_posix()))
    run_uri = storage.join(s3.uri, "runs", Path(run).name)
    uri = build.build(config, run_uri, storage.join(s3.uri, "data", Path(data).name))
    assert uri == f"{run_uri}/report.html"
    there, here = storage.read_text(uri), Path(build.build(config, run, data)).read_text()
    assert text_of(there).split("Lineage Run")[0] == text_of(here).split("Lineage Run")[0]


@pytest.mark.parametrize(
    ("steps", "switch", "expected"),
    [
        ([100, 200, 300], 200, 50.0),
        ([100, 200, 400], 300, 75.0),
        ([100, 200], 200, 100.0),
        ([100, 200], 50, None),
        ([100, 200], None, None),
        ([100], 100, None),
    ],
)
def test_the_switch_stands_where_its_checkpoint_is(
    steps: list[int], switch: int | None, expected: float | None
) -> None:
    assert build._position(steps, switch) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://key:secret@host/a", "s3://•••@host/a"),
        ("https://h/x?X-Amz-Signature=abc&part=1", "https://h/x?X-Amz-Signature=•••&part=1"),
        ("https://h/x?sig=abc#f", "https://h/x?sig=•••#f"),
        ("https://user:it's-p@ss@h/x", "https://•••@h/x"),
        ("https://h?email=a@b", "https://h?email=a@b"),
        ("https://h/x?auth=a&jwt=b&passphrase=c'd", "https://h/x?auth=•••&jwt=•••&passphrase=•••"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer •••"),
        ("sent Bearer 0123456789abcdef.x", "sent Bearer •••"),
        ("the Bearer authentication failed", "the Bearer authentication failed"),
        ({"s3://user:word@host/a": 1}, {"s3://•••@host/a": 1}),
        ("AKIAIOSFODNN7EXAMPLE in a message", "••• in a message"),
        ({"api_key": "x", "keep": "y"}, {"api_key": "•••", "keep": "y"}),
        ({"nested": [{"password": 5}]}, {"nested": [{"password": "•••"}]}),
        ({"env": {"A": "b"}}, {"env": {"A": "•••"}}),
        ("s3://bucket/name@v2/x and a@b.c", "s3://bucket/name@v2/x and a@b.c"),
        ({"tokens_per_image": 3, "token": None}, {"tokens_per_image": 3, "token": None}),
    ],
)
def test_redaction(given: Any, expected: Any) -> None:
    assert redact(given) == expected
