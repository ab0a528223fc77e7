"""``make bench``: runs the benchmarks, prints their tables and writes ``.agit/bench.json``.

``python -m tests.benchmarks`` runs all of them, each in a process of its own; ``python -m tests.benchmarks step``
one, in this process. ``python -m tests.benchmarks gpu --help`` is for a machine with a GPU. See
:mod:`tests.benchmarks.result` for how to add one.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

import tests.benchmarks
from tests.benchmarks.result import FILE, Result, machine, merge

PREFIX = "bench_"


def names() -> list[str]:
    """Every benchmark there is."""
    modules = pkgutil.iter_modules(tests.benchmarks.__path__)
    return sorted(m.name.removeprefix(PREFIX) for m in modules if m.name.startswith(PREFIX))


def run_one(name: str, file: Path) -> None:
    """Runs a benchmark here, prints its lines and adds its keys to the file."""
    module = importlib.import_module(f"tests.benchmarks.{PREFIX}{name}")
    print(f"== {name}: {(module.__doc__ or '').strip().splitlines()[0]}", flush=True)
    begun = time.time()
    merge(dict.fromkeys(module.KEYS), file)  # no figures of an earlier run where this one fails
    result: Result = module.run()
    missing = set(module.KEYS) - set(result.keys)
    if missing:
        raise KeyError(f"the benchmark '{name}' did not measure {', '.join(sorted(missing))}")
    for line in result.lines:
        print(f"   {line}")
    for key in module.KEYS:
        print(f"   {key}: {result.keys[key]}")
    print(f"   {time.time() - begun:.0f} s", flush=True)
    merge({**result.keys, "machine": machine()}, file)


def main() -> int:
    """Exit status 1 when a benchmark failed; the others ran all the same."""
    if sys.argv[1:2] == ["gpu"]:
        from tests.benchmarks import gpu  # needs a folder of images, so that it is none of "all"

        return gpu.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; default: all")
    parser.add_argument("--out", type=Path, default=FILE)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(names()):
        parser.error(f"there is no benchmark '{sorted(unknown)[0]}'; there are {', '.join(names())}")
    if len(chosen.names) == 1:
        run_one(chosen.names[0], chosen.out)
        return 0
    failed = []
    for name in chosen.names or names():
        command = [sys.executable, "-m", "tests.benchmarks", name, "--out", str(chosen.out)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"written: {chosen.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
