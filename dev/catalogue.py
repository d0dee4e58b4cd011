#!/usr/bin/env python3
"""Write sql/catalogue.tsv: what a freshly migrated database has, so that each migration's effect shows in the diff."""

import subprocess
import sys
from pathlib import Path

from devkit.clusters import Cluster
from devkit.say import main_guard, note

ROOT = Path(__file__).resolve().parent.parent
QUERY = r"SELECT kind || E'\t' || object || E'\t' || coalesce(definition, '') FROM steward_catalogue()"


def main():
    """Build, migrate an empty database, write down what is there, and build again with it."""
    install = [sys.executable, ROOT / "dev/extension.py", "install"]
    subprocess.run(install, check=True)
    cluster = Cluster(name="catalogue").start()
    try:
        cluster.psql("-q", "-c", "CREATE EXTENSION pgsteward", "-c", "SELECT count(*) FROM steward_migrate()")
        (ROOT / "sql/catalogue.tsv").write_text(cluster.psql("-At", "-c", QUERY))
    finally:
        cluster.destroy()
    subprocess.run(install, check=True)
    note("wrote sql/catalogue.tsv")
    return 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main_guard(main)
