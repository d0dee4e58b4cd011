"""What a demo stands on: a server, the extension installed in it, and the worker."""

import collections
import os
import re
import subprocess
import sys

from devkit import clang, needs, servers
from devkit.layout import CHECKOUT
from devkit.say import DevError
from extension import Server

from progress import Step

FOR_TESTS = "Python environment"
CARGO_PROGRESS = re.compile(r"\] +(\d+)/(\d+)")


def look():
    """Before anything is changed: name what will be fetched, and stop if something is missing."""
    own = os.environ.get("PG_CONFIG")
    if own:
        Server(own)
    found = [need for need in needs.check([] if own else [servers.default_major()]) if need[0] != FOR_TESTS]
    for name, state, detail in found:
        if state != needs.OK:
            print(f"{name:<22} {state:<15} {detail}".rstrip(), flush=True)
    if any(state == needs.MISSING for _, state, _ in found):
        raise DevError("something is missing that cannot be fetched; nothing was changed. Do what the lines above say, then try again")


def server():
    """The user's own server, or a provided one."""
    return Server(os.environ.get("PG_CONFIG") or servers.provide(servers.default_major()))


def extension(target):
    """Build the extension and install it in a server."""
    clang.environment()
    _build("build and install the extension",
           [sys.executable, CHECKOUT / "dev/extension.py", "install"], {"PG_CONFIG": str(target.pg_config)})


def worker():
    """Build the worker; return its program."""
    target = CHECKOUT / "target"
    _build("build the worker", ["cargo", "build", "--release", "--locked", "--package", "pgsteward-worker"],
           {"CARGO_TARGET_DIR": str(target)})
    return target / "release/pgsteward"


def _build(title, command, environment):
    """Run something that runs cargo; show how far cargo is, and all it said if it fails."""
    environment = os.environ | environment | {"CARGO_TERM_PROGRESS_WHEN": "always", "CARGO_TERM_PROGRESS_WIDTH": "100"}
    said = collections.deque(maxlen=60)
    with Step(title) as step:
        with subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace") as process:
            for line in process.stdout:
                progress = CARGO_PROGRESS.search(line)
                if progress:
                    step.at(int(progress[1]), int(progress[2]))
                else:
                    said.append(line)
        if process.returncode:
            raise DevError(f"could not {title}\n{''.join(said).rstrip()}")
