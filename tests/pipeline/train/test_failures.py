"""What is worth another try, and the one sentence that names a cause."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError  # type: ignore[attr-defined]

from agit_core.errors import BadInput, RunFailed
from pipeline.train.failures import Allowance, Preempted, root_cause, sentence

LOST_PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242")


def test_digs_the_cause_out_of_rays_wrapping() -> None:
    bad = BadInput("train.start_from: no model at x")
    group = WorkerGroupError("text", {0: LOST_PEER, 1: bad})
    assert root_cause(group) is bad
    assert root_cause(ControllerError(group)) is bad
    assert root_cause(pickle.loads(pickle.dumps(ControllerError(bad)))).args == bad.args
    task = RayTaskError("f", "Traceback ...\nRunFailed: x", RunFailed("x"))
    assert isinstance(root_cause(task), RunFailed)


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ([LOST_PEER, ActorDiedError()], "a process of the training died"),
        ([LOST_PEER, ValueError("no such shape\nmore")], "ValueError: no such shape"),
        ([ActorDiedError(), MemoryError("out")], "MemoryError: out"),
        ([LOST_PEER], "a worker lost the connection"),
        ([ActorDiedError(), RunFailed("the  bucket\nis gone")], "the bucket is gone"),
    ],
)
def test_the_cause_is_the_error_that_explains_the_others(errors: list[Exception], says: str) -> None:
    text = sentence(root_cause(*errors))
    assert text.startswith(says)
    assert "\n" not in text


def test_only_failures_without_progress_count() -> None:
    newest = 0
    allowance = Allowance(lambda: newest, limit=2)
    for _ in range(10):
        newest += 100
        allowance.spend(ActorDiedError())
        allowance.spend(ActorDiedError())
    with pytest.raises(RunFailed, match="3 times without a new checkpoint: a process"):
        allowance.spend(ActorDiedError())


def test_tries_without_progress_are_further_and_further_apart() -> None:
    newest = 0
    allowance = Allowance(lambda: newest, limit=-1)
    pauses = []
    for _ in range(7):
        allowance.spend(ActorDiedError())
        pauses.append(allowance.pause)
    assert pauses == [0, 5, 10, 20, 40, 60, 60]
    newest = 10
    allowance.spend(ActorDiedError())
    assert allowance.pause == 0


def test_storage_outage_counts_as_no_progress() -> None:
    def away() -> int:
        raise RunFailed("the storage does not answer")

    allowance = Allowance(away, limit=1)
    allowance.spend(ActorDiedError())
    with pytest.raises(RunFailed, match="2 times"):
        allowance.spend(ActorDiedError())


def test_no_limit() -> None:
    allowance = Allowance(lambda: 0, limit=-1)
    for _ in range(100):
        allowance.spend(ActorDiedError())


def test_no_failure_allowed() -> None:
    with pytest.raises(RunFailed, match=r"^the training failed: a process"):
        Allowance(lambda: 0, limit=0).spend(ActorDiedError())


@pytest.mark.parametrize("error", [BadInput("a"), RunFailed("b")])
def test_what_would_happen_again_is_raised_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        Allowance(lambda: 0, limit=5).spend(error)
    assert caught.value is error


def test_an_error_of_the_program_is_not_repeated() -> None:
    with pytest.raises(RunFailed, match="error of the program: TypeError: f"):
        Allowance(lambda: 0, limit=5).spend(TypeError("f() takes no arguments"))


def test_preempted_is_no_failure_of_a_worker() -> None:
    assert isinstance(root_cause(LOST_PEER, Preempted("1 node")), Preempted)
