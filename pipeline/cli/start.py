"""Console script ``agit``: handles Ctrl-C with a one-line message even while the commands are being imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

_FAILED = 1


def _leave(signum: int, frame: Any) -> None:
    # exit at once: nothing has been started yet, and an exception would surface in the middle of an import
    os.write(2, b"agit: interrupted; run the same command again to resume\n")
    os._exit(_FAILED)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not if ignored, as in a background job
    signal.signal(signal.SIGINT, _leave)
signal.signal(signal.SIGTERM, _leave)


def main() -> None:
    """Import the commands and run the requested one."""
    # Must be set before torch is imported; child processes inherit it. By default OpenMP's threads spin while they
    # wait, which on a busy machine doubles the CPU time of a translation.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # a tenth of a start would be spent on collecting what imports make, all of which stays
    gc.set_threshold(50_000, 20, 100)
    from pipeline.cli import main as commands

    status = commands.run_command_line()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)  # no traceback for Ctrl-C during interpreter shutdown
    sys.exit(status)
