"""Stands in for a flow's process: follows one training to its end. ``python -m tests.chaos.launcher CONFIG DATA``."""

from __future__ import annotations

import json
import logging
import sys

from pipeline.config import parse
from pipeline.launch import follow

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    with open(sys.argv[1]) as file:
        config = parse(json.load(file))
    result = follow.train(config, sys.argv[2])
    print(json.dumps(result.result.plain()))
