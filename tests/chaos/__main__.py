"""``make chaos``: at least twenty kills of every kind of process; writes ``.agit/chaos.json``."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import KINDS, NotRecovered, run, summary


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when the weights are identical and no kill cost more than a checkpoint interval."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, default=Path(".agit/chaos.json"))
    parser.add_argument("--folder", type=Path, help="for the runs and their logs; kept after a failure")
    chosen = parser.parse_args(arguments)
    chosen.out.unlink(missing_ok=True)  # what an earlier hunt found says nothing about one that fails
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="agit-chaos-"))
    try:
        outcome = run(chosen.kills, chosen.seed, folder, tuple(chosen.kinds))
    except NotRecovered as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(summary(outcome), indent=1) + "\n")
    print(outcome.line())
    passed = outcome.identical and outcome.max_steps_redone <= outcome.checkpoint_interval
    if passed:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
