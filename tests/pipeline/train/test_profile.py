"""A trace of some steps that opens, with the paper's terms as ranges."""

from __future__ import annotations

import gzip
import json

import torch

from pipeline.train.profile import StepProfile
from tests.agit_core import tiny


def test_the_trace_has_the_terms_of_the_chosen_steps() -> None:
    trainer = tiny.trainer()
    profile = StepProfile("2:4", "runs/x", torch.device("cpu"))
    stored: dict[str, bytes] = {}
    for batch in tiny.loader(trainer.plan).batches(0, trainer.slots, 6):
        profile.before(trainer.step)
        done = trainer.train_on(batch)
        written = profile.after(done.step)
        assert bool(written) == (done.step == 4)
        stored |= written
    ((uri, data),) = stored.items()
    assert uri == "runs/x/profile/steps-00000002-00000004.trace.json.gz"
    events = json.loads(gzip.decompress(data))["traceEvents"]
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for name in ("translate", "cycle", "adversarial", "discriminator"):
        assert ranges.count(name) == 2, f"{name}: one range in each of two steps"
    assert any(event.get("cat") == "cpu_op" for event in events)
