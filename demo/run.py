#!/usr/bin/env python3
"""Show pgsteward at work on real data, in a private cluster. Each folder beside this file that has a story.py is a demo."""

import argparse
import importlib
import os
import re
import signal
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "dev"))
from devkit.clusters import Cluster  # noqa: E402
from devkit.layout import locked  # noqa: E402
from devkit.say import main_guard  # noqa: E402

import prepare  # noqa: E402
from progress import Step  # noqa: E402
from report import heading  # noqa: E402
from stage import Stage  # noqa: E402


def forget_connections():
    """The demo connects to its own cluster only, whatever the shell says."""
    for name in list(os.environ):
        if re.match(r"PG(?!_CONFIG$|STEWARD_)", name) or name in ("DATABASE_URL", "LISTEN_URL", "PGSTEWARD_CONFIG"):
            del os.environ[name]


def show(name, story):
    """Prepare, play, and stop what was started."""
    prepare.look()
    with locked("demo"):
        server = prepare.server()
        prepare.extension(server)
        program = prepare.worker()
        print(f"PostgreSQL {server.major}, {server.pg_config}", flush=True)
        cluster = Cluster(name=f"demo{server.major}", pg_config=str(server.pg_config))
        was_running = cluster.pid is not None
        try:
            cluster.start()
            stage = Stage(cluster, name, program)
            with Step(f"create the database {name}, pgsteward migrate"):
                stage.create()
            story.play(stage)
        finally:
            if not was_running:
                cluster.stop()
    heading("Look around")
    print(f"the demo's database    dev/cluster.py start --name demo{server.major}\n"
          f"                       dev/cluster.py psql --name demo{server.major} --dbname {name}\n"
          f"                       dev/cluster.py stop --name demo{server.major}\n"
          "a cluster to work in   make start, make psql, make stop", flush=True)


def main():
    """Read the command line and run one demo."""
    demos = sorted(path.parent.name for path in HERE.glob("*/story.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", nargs="?", default="otc", choices=demos)
    name = parser.parse_args().demo
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    forget_connections()
    story = importlib.import_module(f"{name}.story")
    print(f"pgsteward demo: {story.TITLE}", flush=True)
    show(name, story)
    return 0


if __name__ == "__main__":
    main_guard(main)
