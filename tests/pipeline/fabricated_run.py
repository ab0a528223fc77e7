"""A run folder as the stages leave it, fabricated in a second: pictures, metrics, scores, registration."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import records, storage
from pipeline.config import Config, load
from pipeline.data.sources import builtin

HOSTILE = "<img src=x onerror=\"document.title='owned'\">&amp;.jpg"
SIZE = 64
SWITCH, TOTAL = 300, 600
RUN_ID = "demo-0a1b2c3d"


def configuration(storage: Path | str) -> Config:
    return load(
        "demo",
        [f"storage={storage}", "cluster.env={HF_TOKEN: hf_abc123}", f"method.stages.switch_at={SWITCH}"],
    )


def fabricate(root: Path, small: bool = True, **without: bool) -> tuple[Config, str, str]:
    """Write ``runs/`` and ``data/`` below ``root``; return the config, the run's URI and the data's.

    Args:
        small: two checkpoints with one picture per direction, instead of six with four.
        without: parts to leave out, such as ``evaluation=True``.
    """
    run, data = root / "runs" / RUN_ID, root / "data" / "demo-ffffeeee"
    config = configuration(root)
    parts = {
        "spec": lambda: _write(records.SPEC, run, _spec(run, data, config)),
        "metrics": lambda: metrics(run),
        "samples": lambda: samples(run, every=300 if small else 100, images=1 if small else 4),
        "result": lambda: _write(records.RESULT, run, _result(run)),
        "evaluation": lambda: _evaluation(run, kept=1 if small else 6),
        "registration": lambda: _write(records.REGISTRATION, run, _registration(run, data, config)),
        "manifest": lambda: _write(records.MANIFEST, data, _manifest()),
        "events": lambda: events(run),
    }
    unknown = set(without) - set(parts)
    assert not unknown, f"no such part: {unknown}"
    for name, write in parts.items():
        if not without.get(name):
            write()
    return config, str(run), str(data)


def strip(domain: str, index: int, learnt: float) -> NDArray[np.uint8]:
    """uint8 (S, 4 S, 3): real, attention, translated, reconstructed of a model that has learnt so far."""
    picture = builtin.draw(0, "test", domain, index, SIZE)
    real, mask = picture.image.astype(np.float32), picture.mask.astype(np.float32)[..., None] / 255
    haze = np.random.default_rng(index).random((SIZE // 8, SIZE // 8, 1), dtype=np.float32)
    haze = haze.repeat(8, 0).repeat(8, 1)
    attention = learnt * (0.04 + 0.9 * mask) + (1 - learnt) * (0.35 + 0.3 * haze)
    x = np.arange(SIZE, dtype=np.float32)
    stripes = 127 + 120 * np.sign(np.sin(x[None, :] * 1.1 + x[:, None] * 0.25))[..., None]
    brown = real.mean(-1, keepdims=True) * np.array([1.15, 0.8, 0.5], np.float32)
    texture = (1 - learnt) * real[..., ::-1] + learnt * (stripes if domain == "a" else brown)
    translated = attention * texture + (1 - attention) * real
    restored = 0.85 * real + 0.15 * translated
    tiles = (real, np.broadcast_to(attention * 255, real.shape), translated, restored)
    return np.concatenate([np.clip(t, 0, 255) for t in tiles], axis=1).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _write(file: records.File[Any], folder: Path, content: dict[str, Any]) -> None:
    file.write(str(folder), file.parse(content, str(folder)))


def samples(run: Path, every: int, images: int) -> None:
    for step in range(every, TOTAL + 1, every):
        folder = run / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        names = []
        for domain, direction in (("a", "a2b"), ("b", "b2a")):
            for index in range(images):
                names.append(f"{direction}-{index}.png")
                (folder / names[-1]).write_bytes(png(strip(domain, index, step / TOTAL)))
        columns = ["real", "attention", "translated", "reconstructed"]
        content = {"step": step, "tile": SIZE, "columns": columns, "strips": names}
        _write(records.SAMPLE_STEP, folder, content)


def metrics(run: Path) -> None:
    noise = np.random.default_rng(0)
    (run / "metrics").mkdir(parents=True)
    for end in range(50, TOTAL + 1, 50):
        rows = []
        for step in range(end - 40, end + 1, 10):
            fallen = math.exp(-step / 150)
            jitter = iter(noise.normal(0, 0.03, 16))
            losses = {
                "generator_ab": 0.35 + 0.5 * fallen + next(jitter),
                "generator_ba": 0.4 + 0.45 * fallen + next(jitter),
                "cycle_a": 0.05 + 0.3 * fallen + abs(next(jitter)) / 4,
                "cycle_b": 0.06 + 0.35 * fallen + abs(next(jitter)) / 4,
                "identity_a": 0.0,
                "identity_b": 0.0,
                "discriminator_a": 0.2 + 0.1 * fallen + next(jitter) / 2,
                "discriminator_b": 0.18 + 0.1 * fallen + next(jitter) / 2,
            }
            health = {}
            for domain, level in (("a", 0.24), ("b", 0.29)):
                moving = 0.0 if step > SWITCH else next(jitter) / 3
                health |= {
                    f"coverage_{domain}": level + 0.4 * math.exp(-min(step, SWITCH) / 80) + moving,
                    f"above_tau_{domain}": level + 0.5 * math.exp(-min(step, SWITCH) / 90),
                    f"bimodality_{domain}": 0.9 - 0.7 * math.exp(-min(step, SWITCH) / 90),
                    f"spread_{domain}": 0.35 - 0.3 * math.exp(-min(step, SWITCH) / 90),
                    f"opacity_{domain}": 0.95 - 0.45 * math.exp(-min(step, SWITCH) / 90),
                }
            rate = 4e-4 * min(1.0, 2 * (1 - step / TOTAL))
            stage = "masked" if step > SWITCH else "full"
            row = {"step": step, "epoch": step // 100, "stage": stage, "learning_rate": rate}
            rows.append(
                row | {"losses": losses, "mask_health": health, "images_per_s": 41 + next(jitter) * 40}
            )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run / "metrics" / f"{end:08d}.jsonl").write_text(text)


def _spec(run: Path, data: Path, config: Config) -> dict[str, Any]:
    plain = config.plain()
    return {"run_id": RUN_ID, "run_uri": str(run), "data_uri": str(data), "config": plain, "attempt": 2}


def _result(run: Path) -> dict[str, Any]:
    return {
        "run_id": RUN_ID,
        "steps": TOTAL,
        "epoch": 5,
        "stage": "masked",
        "switched_at_step": SWITCH,
        "checkpoint": str(run / "ray" / RUN_ID / "step-00000600"),
        "mask_health": {"coverage_a": 0.24, "coverage_b": 0.29},
        "workers": 2,
        "device": "cpu",
        "images_per_s": 41.3,
    }


def _difference(value: float, half: float, verdict: str) -> dict[str, Any]:
    return {"difference": value, "low": value - half, "high": value + half, "verdict": verdict}


def _evaluation(run: Path, kept: int) -> None:
    metrics, intervals, baseline, champion = {}, {}, {}, {}
    figures = {
        "kid_target_a2b": (0.071, 0.008, 0.2024, 0.085, "better", "better"),
        "kid_target_b2a": (0.094, 0.009, 0.2011, 0.092, "better", "noise"),
        "kid_source_a2b": (0.048, 0.006, 0.0003, 0.051, "worse", "noise"),
        "kid_source_b2a": (0.052, 0.006, -0.0002, 0.047, "worse", "noise"),
        "kid_mean": (0.0663, 0.002, 0.1008, 0.0688, "better", "better"),
        "kid_mean_a2b": (0.0595, 0.005, 0.1013, 0.068, "better", "better"),
        "kid_mean_b2a": (0.073, 0.006, 0.1004, 0.0695, "better", "noise"),
        "fid_a2b": (122.4, 6.1, 214.9, 131.0, "better", "better"),
        "fid_b2a": (133.7, 7.2, 209.3, 129.8, "better", "noise"),
        "background_l1_a2b": (0.0121, 0.001, 0.0, 0.0135, "worse", "better"),
        "background_ssim_a2b": (0.978, 0.002, 1.0, 0.977, "worse", "noise"),
        "attention_iou_a": (0.71, 0.03, None, 0.66, None, "better"),
        "attention_iou_b": (0.64, 0.04, None, 0.65, None, "noise"),
        "attention_iou_everywhere_a": (0.22, 0.02, None, 0.22, None, None),
        "attention_iou_blob_a": (0.31, 0.02, None, 0.31, None, None),
        "attention_iou_blob_b": (0.66, 0.02, None, 0.66, None, None),
        "attention_precision_a": (0.83, 0.02, None, 0.82, None, "noise"),
        "attention_coverage_a": (0.24, 0.01, None, 0.25, None, None),
        "attention_coverage_b": (0.29, 0.01, None, 0.28, None, None),
        "cycle_l1_a": (0.0312, 0.002, 0.0, 0.034, "worse", "better"),
    }
    for key, (value, half, nothing, theirs, against, versus) in figures.items():
        metrics[key], champion[key] = value, theirs
        intervals[key] = {"value": value, "low": value - half, "high": value + half}
        if nothing is not None:
            baseline[key] = nothing
        if nothing is not None and against:
            intervals[key]["do_nothing"] = _difference(value - nothing, half, against)
        if versus:
            intervals[key]["champion"] = _difference(value - theirs, half, versus)
    rows = []
    (run / "evaluation").mkdir(parents=True)
    for domain, direction in (("a", "a2b"), ("b", "b2a")):
        for index in range(40):
            strip_name = f"{direction}-{index}.png" if index < kept or index >= 40 - kept else None
            if strip_name:
                learnt = 1 - index / 50
                (run / "evaluation" / strip_name).write_bytes(png(strip(domain, 100 + index, learnt)))
            name = HOSTILE if (direction, index) == ("a2b", 0) else f"{domain}-{index:05d}.jpg"
            rows.append(
                {"direction": direction, "name": name, "score": 0.2 + index / 80, "strip": strip_name}
            )
    _write(
        records.EVALUATION,
        run,
        {
            "metrics": metrics,
            "intervals": intervals,
            "baseline": baseline,
            "champion": {"name": "demo", "version": 3, "metrics": champion, "intervals": {}},
            "inception": {"name": "2015-12-05 (TorchScript)", "sha256": "7ff4a85c3a6378f0dfc8433ffd789663b0"},
            "counts": {"test_a": 100, "test_b": 100, "kid_subsets": 10},
            "protocol": {
                "kid": "10 subsets of 50 images",
                "per_image": "distance to the target (0: target, 1: source)",
            },
            "per_image": rows,
        },
    )


def _registration(run: Path, data: Path, config: Config) -> dict[str, Any]:
    reason = "kid_mean 0.0663 against 0.0688 of the champion, version 3, is better by more than noise"
    return {
        "name": "demo",
        "version": "4",
        "aliases": ["challenger", "champion"],
        "decision": {"passed": True, "promoted": True, "reasons": [reason]},
        "lineage": {
            "run_uri": str(run),
            "data_uri": str(data),
            "code": {"version": "0.1.0", "git_commit": "0123456789abcdef" * 2, "git_dirty": False},
            "packages": {"python": "3.11.9", "torch": "2.14.1"},
        },
        "source": "s3://someone:hunter2@bucket/models/demo",
    }


def _manifest() -> dict[str, Any]:
    bad = {"name": "notes.txt.jpg", "reason": "not an image"}
    rows = {"trainA": 400, "trainB": 400, "testA": 100, "testB": 100}
    return {
        "format": 1,
        "name": "demo",
        "fingerprint": "ffffeeee",
        "created": "2026-01-02T03:04:05Z",
        "source": "https://reader:s3cr3t@example.org/set.zip?X-Amz-Signature=deadbeef",
        "image_size": 64,
        "load_size": 72,
        "domains": {"a": {"name": "plain"}, "b": {"name": "striped"}},
        "splits": {
            name: {
                "rows": count,
                "files_in": count + (name == "trainA"),
                "quarantined": [bad] if name == "trainA" else [],
                "masks": count,
                "shards": [],
            }
            for name, count in rows.items()
        },
        "duplicates": {
            "policy": "report",
            "groups": [["trainB/1.jpg", "trainB/2.jpg"]],
            "exact_groups": 1,
            "near": [],
            "near_groups": 0,
        },
        "leaks": [["trainA/7.jpg", "testA/8.jpg"]],
        "near_leaks": [],
        "totals": {"rows": 1000},
    }


def events(run: Path) -> None:
    for number, (kind, step) in enumerate((("started", 0), ("worker_failed", 210), ("resumed", 200))):
        event = records.Event(time=1767322000 + 60 * number, kind=kind, message="", step=step)
        storage.write_json(str(run / records.EVENTS / f"{number:013d}-{kind}.json"), event.plain())
