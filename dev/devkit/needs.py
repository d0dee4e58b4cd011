"""What building and testing need, looked at before anything is changed."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from . import apt, clang, pip, pooler, prometheus, servers, venv
from .layout import CHECKOUT, private_folder, reachable, server_user
from .say import DevError

OK, FETCHED, MISSING = "ok", "will be fetched", "missing"
PYTHON = (3, 11)
RUSTUP = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
PACKAGES = {"apt-get": {"compiler": "gcc libc6-dev", "tzdata": "tzdata", "python": "python3", "pgbouncer": "pgbouncer", "prometheus": "prometheus"},
            "dnf": {"compiler": "gcc glibc-devel", "tzdata": "tzdata", "python": "python3", "pgbouncer": "pgbouncer", "prometheus": "golang-github-prometheus"}}


def check(majors):
    """Return (name, state, detail) for every need."""
    found = [_python(), *_rust(), *_compiler(), _user(), _disk(), _sources()]
    found += [_server(major) for major in majors]
    if servers.own_major() in majors:
        found.append(_time_zones())
    return [*found, _libclang(), _venv(), _packaged(pooler.PGBOUNCER, "0.2 MB"), _packaged(prometheus.PROMETHEUS, "19 MB")]


def _install(need):
    """Return the command that installs something on this system."""
    for tool, packages in PACKAGES.items():
        if shutil.which(tool):
            return f"{'' if os.geteuid() == 0 else 'sudo '}{tool} install -y {packages[need]}"
    return f"install {need} with this system's package manager"


def _output(*command, **options):
    """Return what a command prints, or None when it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def _python():
    """Look at the Python that runs this."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return "Python", MISSING, f"{version} is older than {PYTHON[0]}.{PYTHON[1]}: {_install('python')}"
    return "Python", OK, version


def _rust():
    """Look at cargo and rustfmt of the toolchain that the checkout asks for."""
    pinned = re.search(r'^channel = "(.+)"', (CHECKOUT / "rust-toolchain.toml").read_text(), re.M)[1]
    if shutil.which("rustup"):
        toolchains = _output("rustup", "toolchain", "list") or ""
        if not re.search(rf"^{re.escape(pinned)}-", toolchains, re.M):
            detail = f"Rust {pinned}, by rustup at the first build"
            return [("cargo", FETCHED, detail), ("rustfmt", FETCHED, detail)]
        add = f"rustup component add rustfmt --toolchain {pinned}"
    else:
        add = RUSTUP
    found = []
    for tool, remedy in (("cargo", RUSTUP), ("rustfmt", add)):
        version = _output(tool, "--version", cwd=CHECKOUT)
        found.append((tool, OK, version.strip()) if version else (tool, MISSING, remedy))
    version = re.search(r"\d+\.\d+", found[0][2]) if found[0][1] == OK else None
    if version and tuple(map(int, version[0].split("."))) < tuple(map(int, pinned.split(".")[:2])):
        found[0] = ("cargo", MISSING, f"{version[0]} is older than {pinned}: {RUSTUP}")
    return found


def _compiler():
    """Compile and link a program."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in (("C compiler and linker", "int main(void){return 0;}"),
                             ("C library headers", "#include <stdio.h>\nint main(void){return 0;}")):
            Path(folder, "x.c").write_text(source)
            worked = _output("cc", "x.c", "-o", "x", cwd=folder) is not None
            found.append((name, OK, shutil.which("cc")) if worked else (name, MISSING, _install("compiler")))
    return found


def _user():
    """Name the user that will run servers."""
    try:
        user = server_user()
    except DevError as error:
        return "server's user", MISSING, str(error)
    return "server's user", OK, user.pw_name


def _disk():
    """Look at the free space where the private folder and the build will be."""
    folder = private_folder()
    needed = 1 if folder.exists() else 4
    if os.geteuid() == 0 and not reachable(folder, server_user()):
        folder = Path("/var/tmp")
    while not folder.exists():
        folder = folder.parent
    free = min(shutil.disk_usage(place).free for place in (folder, CHECKOUT)) / 1e9
    detail = f"{free:.0f} GB free, about {needed} GB needed"
    return "disk space", OK if free >= needed else MISSING, detail


def _sources():
    """Look at where packages can come from."""
    found = [name for name, there in (("apt", apt.available()), ("pip", pip.installed())) if there]
    if found:
        return "package sources", OK, " and ".join(found)
    return "package sources", MISSING, f"neither apt nor pip: install pip for {sys.executable}"


def _server(major):
    """Look at one PostgreSQL server."""
    name = f"PostgreSQL {major}"
    found = servers.found_in(private_folder() / f"pg{major}")
    if found:
        return name, OK, str(found)
    origin = servers.origin(major)
    if origin:
        return name, FETCHED, origin
    return name, MISSING, servers.refusal(major)


def _time_zones():
    """Look at the time zones, which the distribution's server takes from the system."""
    there = Path("/usr/share/zoneinfo/UTC").exists()
    return "time zones", OK if there else MISSING, "" if there else _install("tzdata")


def _libclang():
    """Look at libclang."""
    found = clang.of_system() or clang.found_in(private_folder() / "libclang")
    return _found_or_fetched("libclang", found, "25 MB, Python wheel")


def _venv():
    """Look at the Python environment of the tests."""
    return _found_or_fetched(
        "Python environment", venv.found_in(private_folder() / "venv"), "7 MB, Python packages")


def _packaged(program, size):
    """Look at a program of this distribution's packages."""
    found = program.found()
    if found:
        return program.package, OK, str(found)
    if program.offered():
        return program.package, FETCHED, f"{size}, this distribution's packages"
    return program.package, MISSING, _install(program.package)


def _found_or_fetched(name, found, origin):
    """Return the line of something that pip provides."""
    if found:
        return name, OK, str(found)
    if pip.installed() or apt.available():
        return name, FETCHED, origin
    return name, MISSING, "needs a package source"
