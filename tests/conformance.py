#!/usr/bin/env python3
"""Which promises of the source documents are proven by the last test run."""

import argparse
import collections
import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "dev"))
from devkit.layout import dev_dir  # noqa: E402

DOCUMENTS = {"S0": "trust operations", "S1": "reputation operations", "S2": "reconciliation operations", "S3": "production runbook",
             "S4": "operations runbooks"}


def main():
    """Compare the proof column with what ran and passed; fail if a proof is missing, did not run, or failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--open", action="store_true", help="list every open promise, not only counts per part")
    options = parser.parse_args()
    results_file = dev_dir() / "test-results.json"
    if not results_file.exists():
        sys.exit("no test results: run `make test` first")
    results = json.loads(results_file.read_text())
    with open(ROOT / "tests/conformance.tsv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    total, proven, faults, unproven = collections.Counter(), collections.Counter(), [], []
    for row in rows:
        document = row["id"].split("-")[0]
        total[document] += 1
        proofs = [proof.strip() for proof in row["proof"].split(";") if proof.strip()]
        outcomes = [results.get(proof, "did not run") for proof in proofs]
        faults += [f"{row['id']}  {proof}: {outcome}" for proof, outcome in zip(proofs, outcomes) if outcome != "passed"]
        if proofs and set(outcomes) == {"passed"}:
            proven[document] += 1
        else:
            unproven.append(row)
    for document, title in DOCUMENTS.items():
        print(f"{document}  {title:<28} {proven[document]:>4} / {total[document]}")
    print(f"    {'all':<28} {sum(proven.values()):>4} / {sum(total.values())}")
    print("\nOpen, by the part of the work that builds them:")
    parts = collections.defaultdict(list)
    for row in unproven:
        parts[int(row["issue"])].append(row)
    for part, open_rows in sorted(parts.items()):
        print(f"  part {part:>2}: {len(open_rows)}")
        for row in open_rows if options.open else ():
            print(f"    {row['id']}  {row['promise'][:100]}")
    if not options.open:
        print("  (tests/conformance.py --open lists each)")
    if faults:
        print("\nProofs that failed or did not run:")
        print("\n".join(f"  {fault}" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
