"""Console script ``agit``: handles Ctrl-C with a one-line message even while the commands are being imported.

Imports almost nothing, because a Ctrl-C before the handlers below are set ends in Python's traceback.
"""

from __future__ import annotations

import _signal  # the module beneath ``signal``, which first takes 9 ms to import enumerations
import os
import sys

_FAILED = 1


def _leave(signum: int, frame: object) -> None:
    # exit at once: nothing has been started yet, and an exception would surface in the middle of an import
    os.write(2, b"agit: interrupted; run the same command again to resume\n")
    os._exit(_FAILED)


if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not if ignored, as in a background job
    _signal.signal(_signal.SIGINT, _leave)
_signal.signal(_signal.SIGTERM, _leave)


def main() -> None:
    """Import the commands and run the requested one."""
    # Must be set before torch is imported; child processes inherit it. By default OpenMP's threads spin while they
    # wait, which on a busy machine doubles the CPU time of a translation.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import gc

    # a tenth of a start would be spent on collecting what imports make, all of which stays
    gc.set_threshold(50_000, 20, 100)
    from pipeline.cli import main as commands

    status = commands.run_command_line()
    for number in (_signal.SIGINT, _signal.SIGTERM):
        if _signal.getsignal(number) is _signal.default_int_handler:
            _signal.signal(number, _signal.SIG_DFL)  # no traceback for Ctrl-C during interpreter shutdown
    sys.exit(status)
