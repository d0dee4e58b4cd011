#!/usr/bin/env python3
"""Run every test: rules and worker in Rust, SQL suites and scenarios on real servers. Ends with a plain total."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "dev"))
from devkit import servers  # noqa: E402
from devkit.clusters import Cluster  # noqa: E402
from devkit.layout import dev_dir  # noqa: E402
from devkit.say import DevError, main_guard, note, run  # noqa: E402

WORKER = ROOT / "target/release/pgsteward"
SERVER_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_locks_per_transaction": "256", "deadlock_timeout": "200ms"}


class Results:
    """Outcome of each test by name; a test that runs on several servers passes if it passes on all."""

    def __init__(self):
        self.outcomes, self.passed, self.failed, self.skipped = {}, 0, 0, 0

    def add(self, name, outcome, where=""):
        """Note one run of one test."""
        setattr(self, outcome, getattr(self, outcome) + 1)
        if outcome == "failed":
            note(f"FAILED  {name} {where}".rstrip())
        if outcome != "skipped" and self.outcomes.get(name) != "failed":
            self.outcomes[name] = outcome

    def save(self):
        """Keep the outcomes for `make conformance`."""
        (dev_dir() / "test-results.json").write_text(json.dumps(self.outcomes, indent=1, sort_keys=True))


def announce(title):
    """A heading between suites."""
    print(f"\n== {title}", flush=True)


def cargo(results, package, suite):
    """The Rust tests of a package."""
    announce(suite)
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target")}
    done = subprocess.run(["cargo", "test", "--locked", "--package", package], cwd=ROOT, env=environment,
                          stdout=subprocess.PIPE, text=True, check=False)
    tests = re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", done.stdout, re.M)
    for name, outcome in tests:
        results.add(f"{suite}::{name}", {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}[outcome])
    if done.returncode or not tests:
        print(done.stdout)
        results.add(f"{suite}::build", "failed") if not any(o == "FAILED" for _, o in tests) else None
    print(f"{len(tests)} tests")


def sql_suites(results, cluster):
    """The pgTAP suites, each in a transaction that is rolled back, in a database of their own."""
    announce(f"SQL suites, PostgreSQL {cluster.major}")
    for statement in ("DROP DATABASE IF EXISTS sql_suites WITH (FORCE)", "CREATE DATABASE sql_suites"):
        cluster.psql("-d", "postgres", "-c", statement)
    cluster.psql("-d", "sql_suites", "-q", "-c", "CREATE EXTENSION pgtap", "-c", "CREATE EXTENSION pgsteward",
                 "-c", "SELECT count(*) FROM steward_migrate()")
    for path in sorted((ROOT / "tests/sql").glob("*.sql")):
        done = subprocess.run(cluster.psql_command("-d", "sql_suites", "-Atq", "-f", str(path)), cwd=ROOT,
                              env=os.environ | cluster.environment(), capture_output=True, text=True, check=False)
        lines = re.findall(r"^(not ok|ok) \d+ - (.*)$", done.stdout, re.M)
        for outcome, name in lines:
            results.add(f"sql/{path.stem}: {name}", "passed" if outcome == "ok" else "failed", f"(PostgreSQL {cluster.major})")
        planned = re.search(r"^1\.\.(\d+)", done.stdout, re.M)
        whole = planned and int(planned[1]) == len(lines) and not done.returncode and not done.stderr.strip()
        if not whole or "not ok" in done.stdout:
            print(done.stdout, done.stderr)
        if not whole:
            results.add(f"sql/{path.stem}: runs to its end", "failed", f"(PostgreSQL {cluster.major})")
        print(f"{path.stem}: {len(lines)} tests")


def scenarios(results, cluster, python, selection):
    """The scenarios with the real worker."""
    announce(f"Scenarios, PostgreSQL {cluster.major}")
    report = dev_dir() / f"scenarios{cluster.major}.xml"
    report.unlink(missing_ok=True)
    environment = os.environ | {"PGSTEWARD_TEST_MAJOR": str(cluster.major), "PGSTEWARD_WORKER": str(WORKER), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--strict-markers", f"--junitxml={report}",
                           "--rootdir", ROOT / "tests/scenarios", ROOT / "tests/scenarios", *selection], cwd=ROOT / "tests/scenarios", env=environment, check=False)
    if done.returncode not in (0, 1) or not report.exists():
        results.add("scenarios: run to their end", "failed", f"(PostgreSQL {cluster.major})")
        return
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname').split('.')[-1]}::{case.get('name').split('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        results.add(f"scenarios/{name}", outcome, f"(PostgreSQL {cluster.major})")


def main():
    """Read the command line and run the suites."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--major", type=int, action="append", help="a PostgreSQL to test on (default: the distribution's, which has pg_cron, and 18)")
    parser.add_argument("--only", choices=["rust", "sql", "scenarios"], action="append", help="a kind of tests")
    parser.add_argument("--keep", action="store_true", help="leave the test servers running")
    parser.add_argument("selection", nargs="*", metavar="PYTEST", help="arguments for the scenarios, such as -k name")
    options = parser.parse_args()
    kinds = options.only or ["rust", "sql", "scenarios"]
    began, results = time.monotonic(), Results()
    if "rust" in kinds:
        cargo(results, "rules-tests", "rules")
        cargo(results, "pgsteward-worker", "worker")
    if {"sql", "scenarios"} & set(kinds):
        run(["cargo", "build", "--release", "--locked", "--package", "pgsteward-worker"], "the worker does not build",
            cwd=ROOT, env=os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target")})
        python = run([sys.executable, ROOT / "dev/provide.py", "venv"], "no Python for the scenarios").strip()
        for major in options.major or sorted({servers.default_major(), 18}):
            run([sys.executable, ROOT / "dev/extension.py", "install", "--major", str(major)], "the extension does not build")
            cluster = Cluster(major=major, name=f"test{major}")
            cluster.start(SERVER_SETTINGS)
            try:
                if "sql" in kinds:
                    sql_suites(results, cluster)
                if "scenarios" in kinds:
                    scenarios(results, cluster, python, options.selection)
            finally:
                if not options.keep:
                    cluster.destroy()
    results.save()
    if not (options.only or options.major or options.selection):
        announce("Conformance")
        proven = subprocess.run([sys.executable, ROOT / "tests/conformance.py"], check=False).returncode == 0
        results.add("conformance: every proof has passed", "passed" if proven else "failed")
    print(f"\n{len(results.outcomes)} tests, some on several servers, in {time.monotonic() - began:.0f} s")
    print(f"{results.passed} passed, {results.failed} failed" + (f", {results.skipped} skipped" if results.skipped else ""))
    return 1 if results.failed or not results.passed else 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    try:
        main_guard(main)
    except DevError as error:
        sys.exit(str(error))
