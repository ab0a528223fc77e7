"""One process at a time prepares a data set, and a finished one is never written again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import records, storage
from pipeline.data.prepare import claim
from pipeline.data.prepare.claim import Claim, Superseded
from pipeline.data.prepare.plan import PARTS


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(claim, "_LOOK_SECONDS", 0.02)
    return str(tmp_path / "set")


def silent(event: Mapping[str, Any]) -> None:
    """Tell nobody."""


def owner(uri: str) -> dict[str, Any]:
    return dict(storage.read_json(storage.join(uri, PARTS, "owner.json")))


def test_a_second_one_waits_and_finds_the_set_finished(uri: str) -> None:
    waiting, ended = threading.Event(), list[bool]()

    def second() -> None:
        with Claim(uri).held(lambda event: waiting.set()) as free:
            ended.append(free)

    first = Claim(uri)
    with first.held(silent) as free:
        assert free
        beat = Path(uri) / PARTS / f"alive-{owner(uri)['token']}.json"
        while not beat.exists():
            threading.Event().wait(0.01)
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60)
        assert ended == []
        with first.putting():
            records.MANIFEST.write(uri, records.Manifest(format=1))
        thread.join(60)
    assert ended == [False]
    with pytest.raises(Superseded), first.putting():
        raise AssertionError("a finished set is written")


def test_who_was_taken_over_puts_nothing_into_place(uri: str) -> None:
    first, second = Claim(uri), Claim(uri)
    with first.held(silent):
        storage.write_json(storage.join(uri, PARTS, "owner.json"), {**owner(uri), "token": "another"})
        with pytest.raises(Superseded, match="another process"), first.putting():
            raise AssertionError("it is another's")
    # of that one there is no sign of life
    with second.held(silent) as free, second.putting():
        assert free


def test_an_owner_that_was_killed_is_not_waited_for(uri: str) -> None:
    first = Claim(uri)
    with first.held(silent):
        dead = {**owner(uri), "pid": 2**22 + 1, "token": "dead"}
    storage.write_json(storage.join(uri, PARTS, "owner.json"), dead)
    storage.write_json(storage.join(uri, PARTS, "alive-dead.json"), {"time": 2e9})
    with Claim(uri).held(lambda event: pytest.fail("it waits")) as free:
        assert free
