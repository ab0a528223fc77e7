from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from agit_core.errors import BadInput
from pipeline import records, storage
from pipeline.config_reader import load
from pipeline.metrics import format as report_scores
from pipeline.metrics import table
from pipeline.redact import redact
from pipeline.registry import audit
from pipeline.report import build, charts, published, tiles
from pipeline.report import verdict as report_verdict
from pipeline.report.run_data import Run, read_run
from tests.browser import Browser
from tests.pipeline.fabricated_run import HOSTILE, SWITCH, TOTAL, fabricate, png, strip
from tests.pipeline.s3 import S3Server

PLAY_MS = 450
"""How long a checkpoint stands while the report plays them."""
SECRETS = ("hunter2", "s3cr3t", "deadbeef", "hf_abc123")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, run, data = fabricate(tmp_path_factory.mktemp("report"), small=False)
    uri = build.build(config, run, data)
    assert uri == storage.join(run, "report.html")
    return Path(uri)


@pytest.fixture(scope="module")
def html(built: Path) -> str:
    return built.read_text()


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", html, flags=re.S))


# ---------------------------------------------------------------- what the page says


def test_headline_answers_the_two_questions_in_one_sentence(html: str) -> None:
    assert "Better than doing nothing in both directions, and promoted to champion." in html
    assert "kid_mean 0.0663 against 0.0688 of the champion" in html


def test_figures_stand_beside_doing_nothing_and_the_champion_with_intervals(html: str) -> None:
    row = re.search(r'<tr role="row"><th[^>]*>KID to the target.*?</tr>', html, re.S)
    assert row is not None
    said = text_of(row[0])
    for part in ("7.10 6.30 to 7.90", "20.24", "better", "−13.94 to −12.34", "8.50", "−2.20 to −0.60"):
        assert part in said, said


def test_protocol_lineage_and_data_are_told(html: str) -> None:
    said = text_of(html)
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
        assert part in said, part


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


@pytest.mark.parametrize(
    "lacking",
    [
        {
            "evaluation": "The model has not been evaluated, so there are no scores",
            "samples": "There are no sample pictures",
            "spec": "How this came to be",
        },
        {
            "registration": "The model has not been registered",
            "metrics": "There are no curves",
            "manifest": "The data card cannot be shown",
            "result": "The training has not finished",
            "events": "How this came to be",
        },
    ],
)
def test_missing_parts_are_said_and_the_rest_is_shown(tmp_path: Path, lacking: dict[str, str]) -> None:
    config, run, data = fabricate(tmp_path, **dict.fromkeys(lacking, True))
    said = text_of(Path(build.build(config, run, data)).read_text())
    assert [sentence for sentence in lacking.values() if sentence not in said] == []
    everything = {
        "evaluation": "KID to the target × 100",
        "samples": "The same images at every saved checkpoint",
        "registration": "The decision",
        "metrics": "Generator loss",
        "manifest": "1,000 images of plain and striped",
    }
    assert [part for part, words in everything.items() if (words in said) == (part in lacking)] == []


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    parts = ("evaluation", "registration", "samples", "metrics", "manifest", "result", "events")
    config, run, data = fabricate(tmp_path, **dict.fromkeys(parts, True))
    html = Path(build.build(config, run, data)).read_text()
    assert "The training has not begun." in html
    assert 'id="plotly"' not in html  # nothing to draw, nothing to carry


def test_damaged_files_are_said_and_skipped(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    (Path(run) / "evaluation.json").write_text('{"metrics": ')
    (Path(run) / "samples" / "step-00000600" / "a2b-0.png").write_bytes(b"not a picture")
    with (Path(run) / "metrics" / "00000600.jsonl").open("a") as rows:
        rows.write('{"step": 601, "los')
    html = Path(build.build(config, run, data)).read_text()
    assert "evaluation.json: it is not valid JSON" in html
    assert "1 rows of the metrics could not be read" in html
    assert "What it does" in html


def test_no_run_at_all_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no run at"):
        build.build(load("demo"), str(tmp_path / "runs" / "none"), str(tmp_path))


def test_the_same_report_from_object_storage(tmp_path: Path, s3: S3Server) -> None:
    config, run, data = fabricate(tmp_path)
    for local in (run, data):
        storage.upload_folder(local, storage.join(s3.uri, Path(local).relative_to(tmp_path).as_posix()))
    run_uri = storage.join(s3.uri, "runs", Path(run).name)
    uri = build.build(config, run_uri, storage.join(s3.uri, "data", Path(data).name))
    assert uri == f"{run_uri}/report.html"
    there, here = storage.read_text(uri), Path(build.build(config, run, data)).read_text()
    assert text_of(there).split("Lineage Run")[0] == text_of(here).split("Lineage Run")[0]


def test_attention_that_was_off_is_not_called_collapsed(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    collapsed = {"metrics": {"attention_coverage_a": 0.999, "attention_coverage_b": 0.3}}
    (Path(run) / "evaluation.json").write_text(json.dumps(collapsed))
    without = load("demo", ["method.networks.attention=false"])
    said = text_of(Path(build.build(without, run, data)).read_text())
    assert "This model has no attention" in said
    assert "has collapsed to" not in said
    said = text_of(Path(build.build(config, run, data)).read_text())
    assert "The attention on plain has collapsed to all ones" in said
    assert "The attention on striped" not in said


def test_attention_that_never_took_sides_is_said(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    flat = {"attention_coverage_a": 0.18, "attention_spread_a": 0.037}
    decided = {"attention_coverage_b": 0.18, "attention_spread_b": 0.31}
    (Path(run) / "evaluation.json").write_text(json.dumps({"metrics": flat | decided}))
    said = text_of(Path(build.build(config, run, data)).read_text())
    assert "The attention on plain has picked nothing out: about 18% everywhere in the image" in said
    assert "The attention on striped" not in said


def test_faint_attention_is_said(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    faint = {"attention_coverage_a": 0.2, "attention_spread_a": 0.14, "attention_opacity_a": 0.31}
    strong = {"attention_coverage_b": 0.2, "attention_spread_b": 0.3, "attention_opacity_b": 0.92}
    (Path(run) / "evaluation.json").write_text(json.dumps({"metrics": faint | strong}))
    said = text_of(Path(build.build(config, run, data)).read_text())
    assert "The attention on plain is faint: 0.31 on average where it is above τ" in said
    assert "The attention on striped" not in said
    # a discriminator of whole images has judged the blend as it is
    result = json.loads((Path(run) / "result.json").read_text())
    (Path(run) / "result.json").write_text(json.dumps(result | {"stage": "full"}))
    assert "is faint" not in text_of(Path(build.build(config, run, data)).read_text())


def test_what_people_did_after_the_decision_is_told(tmp_path: Path) -> None:
    config, run, data = fabricate(tmp_path)
    for version, action, reason in (
        (3, "gate", ""),
        (4, "gate", ""),
        (3, "rollback", "stripes on the <b>sky"),
    ):
        audit.record(
            config.storage,
            "demo",
            f"{action}-{version}",
            action=action,
            version=version,
            champion=version,
            reason=reason,
        )
    # of a version 9 that this registry does not have
    audit.record(
        config.storage, "demo", "gate-9", action="gate", version=9, champion=9, mlflow_run_id="another's"
    )
    html = Path(build.build(config, run, data)).read_text()
    said = text_of(html)
    assert "Champion now version 3" in said
    assert "rollback of version 3 by" in said
    assert "stripes on the &lt;b&gt;sky" in html


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


def test_the_best_checkpoint_stands_beside_the_last(html: str, tmp_path: Path) -> None:
    assert "Scores while it trained" not in html
    config, run, data = fabricate(tmp_path)
    figures = {
        step: {
            "kid_target_a2b": kid,
            "kid_target_b2a": kid,
            "attention_iou_a": 0.4,
            "attention_iou_blob_a": 0.3,
        }
        for step, kid in ((200, 0.12), (400, 0.08), (600, 0.1))
    }
    for step, metrics in figures.items():
        records.score_file(step).write(
            storage.join(run, records.SCORES), records.Scores(step=step, metrics=metrics, seconds=20.0)
        )
    told = records.Validation(
        metric="kid_target",
        images={"train_a": 40, "train_b": 30},
        best_step=400,
        best=figures[400],
        last_step=600,
        last=figures[600],
        scored=3,
        seconds=60.0,
    )
    result = storage.read_json(storage.join(run, "result.json"))
    storage.write_json(storage.join(run, "result.json"), result | {"validation": told.plain()})
    said = Path(build.build(config, run, data)).read_text()
    assert "Held out of the training: 40 of " in said
    assert (
        "3 checkpoints were scored in 60 s. The model is the best checkpoint by kid_target, that of step 400"
        in said
    )
    assert "best, step 400" in said
    assert "last, step 600" in said
    assert '<td class="number">8.00</td><td class="number">10.00</td>' in said
    assert said.count('id="chart-validation-') == 2, "KID and IoU; nothing says how much background changed"
    # MLflow's curves and Prefect's table are of the same rows
    curve = {row["step"]: row["validation"] for row in records.metric_rows(run)[0] if "validation" in row}
    assert curve == figures
    assert "| **400** | 8.00 | 8.00 | 40 % |" in table.validation_markdown(curve, 400)


def test_attention_stands_beside_a_blob(html: str) -> None:
    assert "a blob: 31 % · 66 %" in html
    assert html.count("no better than a fixed blob in the middle of every image: IoU 64 % against 66 %") == 1


def test_published_numbers_only_beside_their_data_set(html: str, tmp_path: Path) -> None:
    assert "U-GAT-IT" not in html
    _, run, data = fabricate(tmp_path)
    horses = load("h2z")
    said = Path(build.build(horses, run, data)).read_text()
    assert "7.58 ± 0.71" in said
    assert "none of its figures may be compared" not in said
    assert "was scored on" in said
    assert said.count("[unverified]</strong>") == sum(not row.verified for row in published.ROWS) == 2


# ---------------------------------------------------------------- its parts


def scores(verdicts: dict[str, str]) -> report_scores.Scores:
    metrics = {f"kid_target_{d}": 0.1 for d in verdicts}
    intervals = {f"kid_target_{d}": {"do_nothing": {"verdict": v}} for d, v in verdicts.items() if v}
    empty = report_scores.Opponent({}, {})
    return report_scores.Scores(metrics, intervals, empty, empty, ("horse", "zebra"))


@pytest.mark.parametrize(
    ("verdicts", "registration", "sentence"),
    [
        (
            {"a2b": "better", "b2a": "better"},
            {"decision": {"passed": True, "promoted": False}},
            "Better than doing nothing in both directions, but not promoted.",
        ),
        (
            {"a2b": "better", "b2a": "noise"},
            None,
            "Better than doing nothing for horse → zebra, no different from it for zebra → horse, "
            "and not registered.",
        ),
        (
            {"a2b": "worse", "b2a": "worse"},
            {"decision": {"passed": False, "promoted": False}},
            "Worse than doing nothing, and refused by the gate.",
        ),
        (
            {"a2b": "noise", "b2a": "noise"},
            {"aliases": ["champion"]},
            "Not distinguishable from doing nothing, yet promoted to champion.",
        ),
        ({"a2b": "worse", "b2a": "noise"}, None, "Not better than doing nothing, and not registered."),
        ({"a2b": "", "b2a": ""}, None, "Scored, but not tested against doing nothing."),
        ({}, None, "The training has not begun."),
    ],
)
def test_verdicts(verdicts: dict[str, str], registration: dict[str, Any] | None, sentence: str) -> None:
    run = Run("runs/x", None, registration=registration)
    assert report_verdict.headline(run, scores(verdicts))["sentence"] == sentence


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("better", "Judged by KID to the target."),
        ("worse", "On the mean of target and source it is worse than doing nothing"),
        ("noise", "On the mean of target and source it is no different from doing nothing"),
    ],
)
def test_a_yardstick_that_disagrees_is_named_at_the_top(verdict: str, said: str) -> None:
    judged = scores({"a2b": "better", "b2a": "better"})
    judged.intervals["kid_mean"] = {"do_nothing": {"verdict": verdict}}  # type: ignore[index]
    because = report_verdict.headline(Run("runs/x", None), judged)["because"]
    assert said in because
    assert ("mean" in because) == (verdict != "better")


def test_a_failed_training_is_named() -> None:
    progress = {"state": "failed", "step": 40, "total_steps": 600}
    said = report_verdict.headline(Run("runs/x", None, progress=progress), scores({}))["sentence"]
    assert said == "The training failed: step 40 of 600."


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


def test_strips_are_cut_into_their_columns() -> None:
    pixels = strip("a", 3, 1.0)
    cut = tiles.cut(png(pixels))
    assert cut is not None
    real = decoded(cut.real)
    np.testing.assert_array_equal(real, pixels[:, :64])
    overlay = decoded(cut.overlay, "RGBA")
    np.testing.assert_array_equal(overlay[..., 3], pixels[:, 64:128, 0])
    assert cut.coverage == pytest.approx(pixels[:, 64:128].mean() / 255, abs=1e-3)


def test_a_strip_of_large_tiles_is_reduced_and_small_in_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 4 * 64, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((4 * 640, 640), Image.Resampling.BICUBIC)
    cut = tiles.cut(png(np.asarray(large)))
    assert cut is not None
    assert decoded(cut.translated).shape == (256, 256, 3)
    assert cut.bytes < 200_000


@pytest.mark.parametrize("data", [b"", b"no picture", png(np.zeros((4, 2, 3), np.uint8))])
def test_what_is_no_strip_is_none(data: bytes) -> None:
    assert tiles.cut(data) is None


def decoded(uri: str, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).convert(mode))


def test_steps_are_left_out_evenly_to_stay_below_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiles.thinned([1, 2, 3], 5) == [1, 2, 3]
    assert tiles.thinned(list(range(101)), 5) == [0, 25, 50, 75, 100]
    _, run, data = fabricate(tmp_path, small=False)
    monkeypatch.setattr(tiles, "VIEWER_BUDGET", 500_000)
    viewer = tiles.viewer(read_run(run, data), {"a2b": "x", "b2a": "y"})
    assert viewer.saved_steps == 6
    assert 2 <= len(viewer.steps) < 6
    assert viewer.steps[0] == 100
    assert viewer.steps[-1] == 600
    assert len(json.dumps(viewer.directions)) < 600_000


def test_rows_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    _, run, data = fabricate(tmp_path)
    again = Path(run) / "metrics" / "00000100.jsonl"
    again.write_text(again.read_text() * 2)
    steps = [row["step"] for row in read_run(run, data).metrics]
    assert steps == list(range(10, TOTAL + 1, 10))


def test_curves_are_thinned_and_smoothed_without_a_shift() -> None:
    points = [(step, float(step)) for step in range(10_000)]
    steps, values = charts.thin(points, 600)
    assert len(steps) <= 600
    assert steps[-1] == 9_999
    assert charts.smoothed([2.0] * 50) == [2.0] * 50
    middle = charts.smoothed(values)[len(values) // 2]
    assert middle == pytest.approx(values[len(values) // 2], rel=1e-3)


# ---------------------------------------------------------------- in a real browser


def opened(browser: Browser, built: Path, width: int = 1280, height: int = 900) -> Page:
    requested: list[str] = []
    browser.context.on("request", lambda request: requested.append(request.url))
    page = browser.open(built.as_uri(), width, height)
    # by selectors: the page's policy forbids the eval of wait_for_function
    page.wait_for_selector("html[data-charts]", state="attached")
    assert [url for url in requested if not url.startswith(("data:", "blob:"))] == [built.as_uri()]
    return page


def pixels(page: Page, selector: str) -> np.ndarray:
    # a new source is shown once it is decoded, which a screenshot does not wait for
    page.locator(selector).first.evaluate(
        "box => Promise.all([...box.querySelectorAll('img[src]')].map(image => image.decode()))"
    )
    data = page.locator(selector).first.screenshot(animations="disabled")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


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
    assert page.locator("#checkpoint-said").inner_text() == "step 600 of 600, attention frozen"
    checkpoint.focus()
    page.keyboard.press("Home")
    assert page.locator("#checkpoint-said").inner_text() == "step 100 of 600, attention learning"
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
    assert page.locator("#opacity-said").inner_text() == "100 %"
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
        assert page.locator("#checkpoint-said").inner_text() == f"step {step} of 600, attention learning"
        page.clock.run_for(PLAY_MS)
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(2 * PLAY_MS)
    assert page.locator("#checkpoint-said").inner_text() == "step 400 of 600, attention frozen"
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(9 * PLAY_MS)
    assert page.locator("#checkpoint-said").inner_text() == "step 600 of 600, attention frozen"
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
