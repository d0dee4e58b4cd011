#!/usr/bin/env python3
"""Queues under fault: kill clients, workers, backends and the postmaster, cut connections, then compare what everybody saw with the tables.

Prints a table with the seed. Exit code 1 if anything was lost, completed twice, accepted from a stale lease, made up, stuck or out of order.
"""

import argparse
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "dev")]
from devkit.layout import dev_dir  # noqa: E402
from devkit.say import DevError, main_guard  # noqa: E402

LONG = {
    "clients killed": {"client killed": 500},
    "workers killed": {"worker killed": 300},
    "processes stopped": {"process stopped": 60},
    "backends killed": {"backend killed": 40},
    "postmaster killed": {"postmaster killed": 15},
    "connections cut": {"connections reset": 30, "connections half-open": 20, "network delayed": 20},
    "everything at once": {"client killed": 150, "worker killed": 50, "process stopped": 20, "backend killed": 10, "postmaster killed": 5,
                           "connections reset": 10, "connections half-open": 6, "network delayed": 6},
}
SHORT = {"everything at once": {"client killed": 14, "worker killed": 6, "process stopped": 2, "backend killed": 2, "postmaster killed": 1,
                                "connections reset": 2, "connections half-open": 1, "network delayed": 1}}
COLUMNS = ("lost", "completed twice", "stale accepted", "phantom", "stuck", "out of order")


def scaled(plan, scale):
    """The plan with so many times the faults, at least one of each."""
    return {phase: {kind: max(1, math.ceil(count * scale)) for kind, count in faults.items()} for phase, faults in plan.items()}


def run_phase(cluster, folder, seed, name, faults):
    """Inject the faults of a phase in an order that the seed decides; what came of it."""
    from faults import Injector
    from stage import Stage
    decide = random.Random(f"{seed}/{name}")
    order = [kind for kind, count in faults.items() for _ in range(count)]
    decide.shuffle(order)
    stage = Stage(cluster, folder / name.replace(" ", "-"), decide)
    try:
        injector, began = Injector(stage), time.monotonic()
        injector.watch(1)
        for kind in order:
            injector.inject(kind)
            injector.watch(decide.uniform(0.1, 0.5))
        injector.finish()
        failed = injector.failed + stage.settle()
        return {"phase": name, "faults": faults, "seconds": time.monotonic() - began, "recoveries": injector.recoveries,
                "verdicts": stage.verdicts(), "failed": failed + stage.damage()}
    finally:
        stage.close()


def summary(result):
    """A row of the table."""
    verdicts = result["verdicts"].values()
    row = {"phase": result["phase"], "injected": sum(result["faults"].values()), "seconds": round(result["seconds"])}
    row |= {key: sum(getattr(verdict, key) for verdict in verdicts) for key in ("enqueued", "unknown", "ended", "refused_as_stale")}
    row |= {kind: sum(len(verdict.violations[kind]) for verdict in verdicts) for kind in COLUMNS}
    times = sorted(result["recoveries"])
    row |= {name: times[min(len(times) - 1, int(len(times) * share))] if times else None for name, share in (("p50", 0.5), ("p99", 0.99))}
    return row


def clean(result):
    """True if a phase has nothing to object to."""
    return not result["failed"] and all(verdict.clean for verdict in result["verdicts"].values())


def table(rows):
    """The rows in Markdown."""
    head = ["phase", "faults", "enqueued", "ended", "stale refused", *COLUMNS, "p50 s", "p99 s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for row in rows:
        cells = [row["phase"], row["injected"], f"{row['enqueued']:,}", f"{row['ended']:,}", row["refused_as_stale"], *(row[kind] for kind in COLUMNS)]
        cells += ["" if row[name] is None else f"{row[name]:.2f}" for name in ("p50", "p99")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def versions(cluster):
    """Which build was put to the test."""
    import psycopg
    from stage import TEMPLATE
    with psycopg.connect(cluster.url(TEMPLATE), autocommit=True) as connection:
        server, = connection.execute("SHOW server_version").fetchone()
        extension, = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'pgsteward'").fetchone()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return f"pgsteward {extension}" + (f" ({commit})" if commit else "") + f" on PostgreSQL {server.split()[0]}"


def run(cluster, folder, seed, plan, tell=print):
    """Run the phases of a plan; True if nothing was violated. The logs of a phase that was not clean stay in the folder."""
    import stage
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, faultless = [], True
    for name, faults in plan.items():
        stage.prepare(cluster)
        if not rows:
            tell(f"{versions(cluster)}, seed {seed}")
        result = run_phase(cluster, folder, seed, name, faults)
        rows.append(summary(result))
        tell(table(rows[-1:]) if len(rows) == 1 else table(rows[-1:]).splitlines()[-1])
        if clean(result):
            shutil.rmtree(folder / name.replace(" ", "-"))
            continue
        faultless = False
        for queue, verdict in result["verdicts"].items():
            if not verdict.clean:
                tell(f"{name}, {queue}:\n{verdict}")
        if result["failed"]:
            tell(f"{name}: {'; '.join(result['failed'])}")
        tell(f"the logs are in {folder / name.replace(' ', '-')}")
    total = {}
    for faults in plan.values():
        for kind, count in faults.items():
            total[kind] = total.get(kind, 0) + count
    tell("injected: " + ", ".join(f"{kind} {count}" for kind, count in total.items()))
    (folder / "result.json").write_text(json.dumps({"seed": seed, "version": versions(cluster), "rows": rows}, indent=1))
    return faultless


def main():
    """Read the command line, start a server, run the phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="decides the order of faults, their victims and what clients do (default: a random one)")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the faults of a long run")
    parser.add_argument("--short", action="store_true", help="the plan that `make test` runs")
    parser.add_argument("--phase", choices=LONG, action="append", help="only this phase")
    parser.add_argument("--major", type=int, default=None, help="the PostgreSQL to run on (default: the distribution's)")
    parser.add_argument("--keep", action="store_true", help="leave the stopped server; it stays as well if something was violated")
    options = parser.parse_args()
    from devkit import servers
    from devkit.clusters import Cluster
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    plan = scaled(SHORT if options.short else LONG, options.scale)
    if options.phase:
        plan = {name: plan[name] for name in options.phase}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    cluster = Cluster(major=options.major or servers.default_major(), name="chaos-run")
    cluster.destroy()
    cluster.start()
    faultless = False
    try:
        faultless = run(cluster, dev_dir() / f"chaos/{seed}", seed, plan)
    finally:
        if faultless and not options.keep:
            cluster.destroy()
        else:
            cluster.stop()
    return 0 if faultless else 1


def with_driver():
    """Start again with the Python that has the database driver."""
    if not importlib.util.find_spec("psycopg"):
        python = subprocess.run([sys.executable, ROOT / "dev/provide.py", "venv"], capture_output=True, text=True, check=True).stdout.strip()
        os.execve(python, [python, *sys.argv], os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    with_driver()
    try:
        main_guard(main)
    except DevError as error:
        sys.exit(str(error))
