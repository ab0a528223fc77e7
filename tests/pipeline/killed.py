"""A writer that is killed in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

_WRITER = """
import sys, time
from pathlib import Path
from pipeline.local_files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


def write_and_die(target: Path) -> None:
    """A process that is killed while it writes the file."""
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(target)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
