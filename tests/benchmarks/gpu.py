"""Everything that a GPU has to show, in a given time.

``python -m tests.benchmarks gpu --data FOLDER --minutes 15 --out OUT``

Needs torch, torchvision and Pillow, and for the tests pytest. In turn: the GPU tests, the step's ratios and share of
the matrix peak, then, for the rest of the time, a training of horse2zebra at 256 px with the recipe for attention
(``tests/benchmarks/alone.py``). OUT is written as it goes: ``bench.json``, ``tests.txt``, ``rows.jsonl``, samples,
checkpoints and a model folder of generators and attention in half precision, for ``agit evaluate h2z --model OUT``.
The same command goes on with the training from the newest checkpoint. Runs on CPUs as well.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agit_core.errors import BadInput
from agit_core.precision import pick_device
from tests.benchmarks.alone import Training, method_with
from tests.benchmarks.result import machine, merge

RECIPE: dict[str, Any] = {
    "networks": {"attention_activation": "identity", "attention_scale": 2},
    "losses": {"cycle_weight": 5.0, "identity_weight": 0.5},
    "coverage": {"band_a": [0.15, 0.35], "band_b": [0.2, 0.4]},
    "stages": {"masking": "never"},
    "optimizer": {"learning_rate": 5e-4, "average_decay": 0.99},
}
LARGEST_FILE = 16 * 10**6
_TESTS_SHARE, _STEP_SHARE = 0.3, 0.2
_REPORTS = 12
_PROBE = 8
"""Steps before the first report; the first of them compile."""


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 when a model was written; failed tests are in ``bench.json``."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with trainA and trainB")
    parser.add_argument("--minutes", type=float, required=True, help="for everything")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, help="default: 8 on a GPU, else 1")
    parser.add_argument(
        "--held-out", type=int, default=100, help="images a domain that attention is scored on"
    )
    parser.add_argument("--method", type=json.loads, default=RECIPE, help="JSON instead of the recipe")
    chosen = parser.parse_args(arguments)
    begun = time.monotonic()
    end = begun + 60 * chosen.minutes
    device = pick_device()
    chosen.out.mkdir(parents=True, exist_ok=True)
    file = chosen.out / "bench.json"
    try:
        training = Training(
            chosen.data,
            chosen.out,
            method_with(chosen.method),
            chosen.size,
            10**9,  # fitted to the time as soon as a step's is known
            chosen.batch or (8 if device.type == "cuda" else 1),
            chosen.held_out,
            device=device,
        )
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    merge({"machine": machine(), "minutes": chosen.minutes, "size": chosen.size}, file)
    share = 60 * chosen.minutes
    merge({"gpu_tests": _tests(chosen.out / "tests.txt", _TESTS_SHARE * share)}, file)
    merge({"step": _step_ratios(chosen.size, file, _STEP_SHARE * share)}, file)
    _train(training, end)
    merge({"trained_steps": training.trainer.step, "seconds_per_step": round(training.seconds, 4)}, file)
    largest = max(p.stat().st_size for p in chosen.out.glob("networks.*"))
    print(
        f"{training.trainer.step} steps, {training.seconds:.3f} s each, in {(time.monotonic() - begun) / 60:.1f} "
        f"minutes; the model at {chosen.out} has {largest / 1e6:.1f} MB",
        flush=True,
    )
    return 0 if largest <= LARGEST_FILE else 1


def _tests(file: Path, seconds: float) -> str:
    """``passed``, ``failed`` or why there is neither; what pytest wrote goes into the file."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    test = Path(__file__).parents[1] / "agit_core" / "test_gpu.py"
    status = _within(
        seconds,
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-rA", str(test)],
        file,
    )
    return {0: "passed", None: f"cut off after {seconds:.0f} s"}.get(status, "failed")


def _step_ratios(size: int, file: Path, seconds: float) -> str:
    """The figures of ``python -m tests.benchmarks step`` go into the file."""
    code = (
        "import sys; from pathlib import Path; from tests.benchmarks import bench_step, result; "
        "done = bench_step.run(int(sys.argv[1])); print(*done.lines, sep=chr(10)); "
        "result.merge(done.keys, Path(sys.argv[2]))"
    )
    log = file.with_name("step.txt")
    status = _within(seconds, [sys.executable, "-c", code, str(size), str(file)], log)
    return {0: "measured", None: f"cut off after {seconds:.0f} s"}.get(status, "failed")


def _within(seconds: float, command: Sequence[str], log: Path) -> int | None:
    """Exit status of a command that writes into a file; None when it took too long and was ended, with its children."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _train(training: Training, end: float) -> None:
    """Trains until ``end`` (``time.monotonic``) and a model is written; the rate reaches 0 about then.

    The number of steps is fitted to the time that is left at each report.
    """
    trainer = training.trainer
    reporting, every = 0.0, _PROBE
    while True:
        for _ in training.some(every):
            if time.monotonic() + 2 * reporting + training.seconds >= end:
                break
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.monotonic()
        training.report()
        training.export(training.out, "h2z")
        reporting = max(reporting, time.monotonic() - begun)
        left = end - time.monotonic() - reporting
        steps = int(left / training.seconds)
        print(f"step {trainer.step}, {training.seconds:.3f} s each, {left:.0f} s left", flush=True)
        if steps < 1 or left <= reporting:
            return
        trainer.total_steps = trainer.step + steps
        every = max(1, min(steps, steps // _REPORTS + _PROBE))
