#!/usr/bin/env python3
"""Measure pgsteward beside what a user would pick instead: `run.py trust`. Every benchmark starts a server of its own."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "dev")]
from devkit.say import DevError, main_guard, run  # noqa: E402


def benchmarks():
    """The benchmarks: folders with a bench.py."""
    return sorted(path.parent.name for path in HERE.glob("*/bench.py"))


def main():
    """Run the named benchmark with the Python that has the database driver."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name not in benchmarks():
        raise DevError(f"name a benchmark, as in make bench BENCH=trust; there are: {', '.join(benchmarks())}")
    python = run([sys.executable, HERE.parent / "dev/provide.py", "venv"], "no Python for the benchmark").strip()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[:2]), "PYTHONDONTWRITEBYTECODE": "1"}
    os.execve(python, [python, str(HERE / name / "bench.py"), *arguments], environment)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main_guard(main)
