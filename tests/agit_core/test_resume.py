"""Exact resume: training straight equals training, dying and going on, bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agit_core import checkpoint
from agit_core.checkpoint import CheckpointDamaged
from agit_core.errors import BadInput
from tests.agit_core import tiny


@pytest.mark.parametrize("at", [1, 3, 4, 5, 9])
def test_straight_equals_resumed(tmp_path: Path, at: int) -> None:
    """In mid-epoch, one step before, at and after the switch (step 4)."""
    config = replace(tiny.method(), optimizer=replace(tiny.method().optimizer, average_decay=0.9))
    straight = tiny.trainer(config)
    tiny.train(straight)
    first = tiny.trainer(config)
    tiny.train(first, at)
    first.save(tmp_path / "checkpoint")
    second = tiny.trainer(config)
    second.load(tmp_path / "checkpoint")
    assert second.step == at
    tiny.train(second)
    assert tiny.same(tiny.weights(straight), tiny.weights(second))
    assert tiny.same(straight.averaged, second.averaged)
    assert straight.stages.state_dict() == second.stages.state_dict()
    for name in ("optimizer_g", "optimizer_d"):
        one, two = (getattr(t.training_step, name).state_dict()["state"] for t in (straight, second))
        assert all(torch.equal(one[k]["exp_avg_sq"], two[k]["exp_avg_sq"]) for k in one)


DIES = """
import os, signal, sys
from pathlib import Path
from tests.agit_core import tiny
import torch
torch.set_num_threads(1)
trainer = tiny.trainer()
for result in trainer.run(tiny.loader(trainer.plan)):
    if result.step == 6:
        trainer.save(Path(sys.argv[1]))
    if result.step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_goes_on_exactly(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        died = subprocess.run(
            [sys.executable, "-c", DIES, str(tmp_path / "c")], env=os.environ | {"PYTHONPATH": "."}
        )
        assert died.returncode == -signal.SIGKILL
        straight, resumed = tiny.trainer(), tiny.trainer()
        tiny.train(straight)
        resumed.load(tmp_path / "c")
        assert resumed.step == 6
        tiny.train(resumed)
        assert tiny.same(tiny.weights(straight), tiny.weights(resumed))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer = tiny.trainer()
    tiny.train(trainer, 2)
    trainer.save(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["networks.pt", "training.pt", "history.pt"])
def test_a_damaged_file_is_noticed(saved: Path, name: str) -> None:
    data = bytearray((saved / name).read_bytes())
    data[len(data) // 2] ^= 1
    (saved / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointDamaged, match=name):
        tiny.trainer().load(saved)


def test_a_half_written_folder_is_noticed(saved: Path) -> None:
    (saved / "checkpoint.json").unlink()
    with pytest.raises(CheckpointDamaged):
        tiny.trainer().load(saved)


def test_a_failing_write_leaves_the_old_checkpoint_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.verify(saved)
    trainer = tiny.trainer()
    tiny.train(trainer, 3)
    real = torch.save

    def fails(value: object, path: Path) -> None:
        if path.name == "training.pt":
            raise OSError("no space left on device")
        real(value, path)

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space"):
        trainer.save(saved)
    assert checkpoint.verify(saved) == before
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint"], "nothing half-written stays"


def test_loading_runs_no_code(saved: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(saved.parent / "owned"),)

    torch.save(Harmful(), saved / "history.pt")
    manifest = json.loads((saved / "checkpoint.json").read_text())
    manifest["files"]["history.pt"] = checkpoint.sha256(saved / "history.pt")
    (saved / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError):
        tiny.trainer().load(saved)
    assert not (saved.parent / "owned").exists()


def test_a_checkpoint_of_another_run_is_refused(saved: Path) -> None:
    with pytest.raises(BadInput, match="batch_size"):
        tiny.trainer(batch_size=4).load(saved)
    with pytest.raises(BadInput, match="total_steps"):
        tiny.trainer(total=99).load(saved)
    with pytest.raises(BadInput, match="another method"):
        tiny.trainer(tiny.method(tau=0.3)).load(saved)


def test_the_method_survives_json() -> None:
    config = tiny.method(tau=0.25)
    assert checkpoint.method_from_dict(json.loads(json.dumps(checkpoint.method_to_dict(config)))) == config
    with pytest.raises(BadInput):
        checkpoint.method_from_dict({"networks": {"widht": 3}})
