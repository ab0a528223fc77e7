from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from agit_core.scores import inception
from tests.pipeline import features


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """The tiny networks are fastest on one thread, above all beside another test process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_inception() -> Iterator[None]:
    """Evaluations in this process use the small feature network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load", features.load)
        yield
