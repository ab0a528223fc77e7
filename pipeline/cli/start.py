"""The console script ``agit``: answers Ctrl-C in one line also while Python still imports the commands."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Any

_FAILED = 1


def _leave(signum: int, frame: Any) -> None:
    # nothing has begun that would have to be ended; an exception would come out of the middle of an import
    os.write(2, b"agit: interrupted; run the same command again to resume\n")
    os._exit(_FAILED)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored in a shell's background job
    signal.signal(signal.SIGINT, _leave)
signal.signal(signal.SIGTERM, _leave)


def main() -> None:
    """Import the commands and run the one that was called."""
    # Before torch is imported, and inherited by every process that the command starts: OpenMP's threads spin while
    # they wait, which on a busy machine doubles the CPU time of a translation.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # a tenth of a start would be spent on collecting what imports make, all of which stays
    gc.set_threshold(50_000, 20, 100)
    from pipeline.cli import main as commands

    status = commands.run_command_line()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.default_int_handler:
            signal.signal(number, signal.SIG_DFL)  # all is done; nothing is left to report
    sys.exit(status)
