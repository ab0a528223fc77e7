from __future__ import annotations

from collections.abc import Iterator

import pytest

from agit_core.scores import inception
from tests.pipeline import features
from tests.threads import one_thread  # noqa: F401


@pytest.fixture(scope="module")
def small_inception() -> Iterator[None]:
    """Evaluations in this process use the small feature network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "load", features.load)
        yield
