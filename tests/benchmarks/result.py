"""What a benchmark hands back, and the file in which all of them meet.

A benchmark is a module ``tests/benchmarks/bench_NAME.py`` with

    KEYS = ("loader_over_imagefolder_local", ...)   # what it measures, under the contract's names

    def run() -> Result: ...

The runner (``python -m tests.benchmarks NAME``, ``make bench``) finds it by its file name: there is nothing to
register.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(".agit/bench.json")


@dataclass(frozen=True)
class Result:
    """One benchmark's outcome.

    Args:
        keys: what goes into the file: each of the module's ``KEYS`` (None: could not be measured, with the
            reason among ``lines``) and whatever else is worth keeping.
        lines: what is printed, a table for instance.
    """

    keys: dict[str, Any]
    lines: Sequence[str] = field(default_factory=list)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Columns as wide as they need to be: the first to the left, numbers to the right with three figures."""
    cells = [[_cell(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]


def merge(keys: dict[str, Any], file: Path = FILE) -> None:
    """Adds to the file, leaving what other benchmarks wrote; a reader never sees half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(file.read_text()) if file.exists() else {}
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    scratch.write_text(json.dumps({**held, **keys}, indent=1, sort_keys=True) + "\n")
    scratch.replace(file)


def machine() -> dict[str, Any]:
    """Which hardware the figures belong to."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in _lines(info) if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
