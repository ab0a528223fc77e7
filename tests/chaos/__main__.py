"""``make chaos``: at least twenty kills of every kind of process; writes ``.agit/chaos.json``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.run import KINDS, NotRecovered, run, summary


def main() -> int:
    """Exit status 0 when the weights are identical and no kill cost more than a checkpoint interval."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=21)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, default=Path(".agit/chaos.json"))
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="agit-chaos-"))
    try:
        outcome = run(chosen.kills, chosen.seed, folder, tuple(chosen.kinds))
    except NotRecovered as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(summary(outcome), indent=1) + "\n")
    print(outcome.line())
    return 0 if outcome.identical and outcome.max_steps_redone <= outcome.checkpoint_interval else 1


if __name__ == "__main__":
    sys.exit(main())
