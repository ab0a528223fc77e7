"""What a test sets before it starts or joins a Ray in its own process."""

from __future__ import annotations

import os

import pytest


def without_token(patch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's Ray, and no token.

    Ray reads the token once per process, and makes one up in the home directory where nobody said not to: a single
    test that forgot would have the processes of every later test refused.
    """
    for name in [name for name in os.environ if name.startswith(("RAY_", "AGIT_"))]:
        patch.delenv(name)
    patch.setenv("RAY_AUTH_MODE", "disabled")
