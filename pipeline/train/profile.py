"""A profile of some training steps: a trace by torch.profiler and, on a GPU, a snapshot of its memory."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline import storage

FOLDER = "profile"


class StepProfile:
    """Profile of the steps from ``start`` to ``stop`` (exclusive), written into the run's folder.

    The trace opens in https://ui.perfetto.dev; its ranges are those of :class:`agit_core.step.TrainingStep`, with the
    names of the paper's terms. The memory snapshot opens in https://docs.pytorch.org/memory_viz.
    """

    def __init__(self, steps: str, run_uri: str, device: torch.device) -> None:
        self.start, self.stop = map(int, steps.split(":"))
        self._uri = storage.join(run_uri, FOLDER, f"steps-{self.start:08d}-{self.stop:08d}")
        self._cuda = device.type == "cuda"
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Call with the number of steps done so far, before the next one."""
        if self._profile is not None or not self.start <= step < self.stop:
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        self._profile = profile(activities=activities)
        if self._cuda:
            torch.cuda.memory._record_memory_history()
        self._profile.start()

    def after(self, step: int) -> dict[str, bytes]:
        """Return the files to store, URI to content, after the last profiled step; otherwise nothing."""
        if self._profile is None or step < self.stop:
            return {}
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="agit-profile-") as name:
            trace = Path(name) / "trace.json"
            self._profile.export_chrome_trace(str(trace))
            files = {f"{self._uri}.trace.json.gz": gzip.compress(trace.read_bytes(), 5)}
            if self._cuda:
                snapshot = Path(name) / "memory.pickle"
                torch.cuda.memory._dump_snapshot(str(snapshot))
                torch.cuda.memory._record_memory_history(enabled=None)
                files[f"{self._uri}.memory.pickle"] = snapshot.read_bytes()
        self._profile = None
        self.stop = self.start  # once
        return files
