from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """The tiny networks are fastest on one thread, and sums have the same order in every process of a test."""
    threads = torch.get_num_threads()
    if "scores" not in request.node.nodeid:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
