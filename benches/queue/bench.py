"""The queue: pgsteward beside a hand-written SKIP LOCKED queue and beside its peers, on one server, taking turns."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import cases  # noqa: E402
import contestants  # noqa: E402
from benchkit.server import ROOT, BenchServer, require_disk  # noqa: E402
from devkit.say import DevError, Step, note, run  # noqa: E402
from stage import Stage  # noqa: E402

QUICK = {"items": 5_000, "pass_items": 2_000, "finished": 100_000, "seconds": 1, "samples": 30, "repeat": 1}
FULL = {"items": 100_000, "pass_items": 20_000, "finished": 10_000_000, "seconds": 3, "samples": 300, "repeat": 5}


def some_of(known):
    """Reads a list of known words."""
    def read(text):
        unknown = set(text.split(",")) - set(known)
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are: {','.join(known)}")
        return text.split(",")
    return read


def numbers(text):
    """Reads a list of numbers from 1."""
    if not all(word.isdigit() and int(word) for word in text.split(",")):
        raise argparse.ArgumentTypeError(f"not numbers: {text}")
    return [int(word) for word in text.split(",")]


def read_options():
    """The command line."""
    parser = argparse.ArgumentParser(prog="benches/run.py queue", description=__doc__)
    parser.add_argument("--case", type=some_of(cases.ALL), default=list(cases.ALL), help=f"some of {','.join(cases.ALL)} (default: all)")
    parser.add_argument("--only", type=some_of(contestants.FAMILIES), default=contestants.FAMILIES, help=f"some of {','.join(contestants.FAMILIES)} (default: all)")
    parser.add_argument("--repeat", type=int, help="rounds; figures are their medians (default: 5)")
    parser.add_argument("--quick", action="store_true", help="little of everything once, to see that it runs; the figures mean nothing")
    parser.add_argument("--clients", type=numbers, default=[1, 4, 16], help="numbers of clients in the case drain (default: 1,4,16)")
    parser.add_argument("--batches", type=numbers, default=[100, 500], help="sizes of a batch in the case drain (default: 100,500)")
    parser.add_argument("--items", type=int, help="items to drain (default: 100000)")
    parser.add_argument("--finished", type=int, help="finished items in the cases history and health (default: 10000000)")
    parser.add_argument("--hold", type=float, default=0, help="seconds that the old snapshot is held at least (default: as long as its passes last)")
    parser.add_argument("--installed", action="store_true", help="measure the extension and the worker as they are, do not build them")
    parser.add_argument("--keep", action="store_true", help="leave the server and its databases")
    options = parser.parse_args()
    for key, value in (QUICK if options.quick else FULL).items():
        if getattr(options, key, None) is None:
            setattr(options, key, value)
    if min(options.repeat, options.items, options.finished) < 1 or options.hold < 0:
        parser.error("numbers begin at 1")
    return options


def main():
    """Install, measure, tell."""
    options = read_options()
    require_disk(10 + options.finished / 1e6)
    build = "ours" in options.only and not options.installed
    server = BenchServer("bench-queue", autovacuum="on", autovacuum_naptime="15s").start(install=build)
    try:
        if build:
            with Step("build the worker"):
                run(["cargo", "build", "--quiet", "--release", "--locked", "--package", "pgsteward-worker"], "the worker does not build", cwd=ROOT)
        stage = Stage(server, options, [one() for one in contestants.ALL if one.family in options.only])
        machine = stage.results.content["machine"]
        print(f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, PostgreSQL {machine['postgresql']}, pgsteward {machine['revision']}; "
              + ", ".join(f"{key} {value}" for key, value in machine["settings"].items()))
        print("; ".join(f"{name} {version}" for name, version in machine.get("contestants", {}).items()), flush=True)
        for name, reason in stage.absent.items():
            print(f"{name}: not installed: {reason}", flush=True)
        stage.results.add(case="absent", contestants=stage.absent)
        if not stage.present:
            raise DevError("nobody to measure")
        missing = {"ours", "baseline"} & set(options.only) - {one.family for one in stage.present}
        for case in options.case:
            cases.ALL[case].run(stage)
        for failure in stage.failed:
            print(f"failed: {failure}")
        note(f"figures in {stage.results.path}")
    finally:
        if not options.keep:
            server.cluster.destroy()
    return 1 if stage.failed or missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DevError as error:
        sys.exit(f"error: {error}")
