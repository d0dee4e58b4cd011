#!/usr/bin/env python3
"""Build the extension for a server, install it there, and keep its generated files true."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from devkit import clang, servers
from devkit.say import DevError, main_guard, note, run

ROOT = Path(__file__).resolve().parent.parent
CRATE = ROOT / "extension"


def version():
    """The version of the workspace."""
    found = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)
    return found[1]


def script():
    """The committed install script of this version."""
    return CRATE / "sql" / f"pgsteward--{version()}.sql"


class Server:
    """A PostgreSQL installation, known by its pg_config."""

    def __init__(self, pg_config):
        self.pg_config = Path(shutil.which(pg_config) or pg_config).absolute()
        if not self.pg_config.exists():
            raise DevError(f"there is no {pg_config}; set PG_CONFIG to the pg_config of your server")
        self.major = int(re.search(r"PostgreSQL (\d+)", self.ask("--version"))[1])
        if self.major not in servers.MAJORS:
            raise DevError(f"PostgreSQL {self.major} is not supported; {servers.MAJORS[0]} to {servers.MAJORS[-1]} are")
        self.target = ROOT / "target" / f"pg{self.major}"

    def ask(self, option):
        """What pg_config prints."""
        return run([self.pg_config, option], f"{self.pg_config} does not work").strip()

    def cargo(self, verb, *arguments):
        """Run cargo so that pgrx builds against this server; one target folder per major version."""
        environment = os.environ | clang.environment() | {
            "PGRX_PG_CONFIG_PATH": str(self.pg_config),
            "CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND": "1",
            "CARGO_TARGET_DIR": str(self.target),
        }
        done = subprocess.run(["cargo", verb, "--package", "pgsteward", "--features", f"pg{self.major}", *arguments],
                              cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise DevError(f"cargo {verb} failed for PostgreSQL {self.major}")

    @property
    def library(self):
        """The built library."""
        return self.target / "release/libpgsteward.so"

    def build(self):
        """Build the library."""
        self.cargo("build", "--release", "--locked")

    def install(self):
        """Build, and copy library, control file and scripts to where the server looks for them."""
        libraries, extensions = Path(self.ask("--pkglibdir")), Path(self.ask("--sharedir")) / "extension"
        if not (extensions / "pgsteward.control").exists():
            self.require_writable(libraries, extensions)
        self.build()
        # A running server may have the old library mapped: never write into it, put a new file in its place.
        self.place(self.library.read_bytes(), libraries / "pgsteward.so", 0o755)
        control = (CRATE / "pgsteward.control").read_text().replace("@CARGO_VERSION@", version())
        self.place(control.encode(), extensions / "pgsteward.control", 0o644)
        for path in (CRATE / "sql").glob("pgsteward--*.sql"):
            self.place(path.read_bytes(), extensions / path.name, 0o644)
        note(f"pgsteward {version()} installed for PostgreSQL {self.major}")

    def require_writable(self, *folders):
        """Name the command to run if a folder of the server is not ours to write."""
        for folder in folders:
            if not os.access(folder, os.W_OK):
                raise DevError(f"{folder} is not writable; run: sudo env PATH=\"$PATH\" PG_CONFIG={self.pg_config} make install")

    def place(self, content, path, mode):
        """Put a file in place in one step, unless it is there already."""
        if path.exists() and path.read_bytes() == content:
            return
        self.require_writable(path.parent)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(content)
        partial.chmod(mode)
        partial.rename(path)


def generated_script(server):
    """The install script as the built library describes it."""
    server.build()
    environment = os.environ | {"CARGO_TARGET_DIR": str(ROOT / "target")}
    done = subprocess.run(["cargo", "run", "--quiet", "--release", "--locked", "--package", "extension-sql", "--",
                           server.library, CRATE / "pgsteward.control", version()],
                          cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise DevError("the install script could not be generated")
    return done.stdout


def build(server):
    """Build the library."""
    server.build()


def install(server):
    """Build and install."""
    server.install()


def lint(server):
    """Lint the crate for this server."""
    server.cargo("clippy", "--release", "--locked", "--", "--deny", "warnings")


def write_script(server):
    """Write the install script anew; commit the result."""
    script().write_text(generated_script(server))
    note(f"wrote {script().relative_to(ROOT)}")


def check_script(server):
    """Fail if the committed install script is not what the code says."""
    if generated_script(server) != script().read_text():
        raise DevError(f"{script().relative_to(ROOT)} is not what the code says; run: dev/extension.py write-script")
    note("the committed install script is what the code says")


def main():
    """Read the command line and run one verb."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = {f.__name__.replace("_", "-"): f for f in (build, install, lint, write_script, check_script)}
    parser.add_argument("verb", choices=verbs)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--major", type=int, help="a provided server of this major version")
    which.add_argument("--pg-config", default=os.environ.get("PG_CONFIG"), help="a server of yours")
    options = parser.parse_args()
    pg_config = None if options.major else options.pg_config
    verbs[options.verb](Server(pg_config or servers.provide(options.major or servers.default_major())))
    return 0


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main_guard(main)
