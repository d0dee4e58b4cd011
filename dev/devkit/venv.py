"""A Python environment with the pinned packages of `dev/requirements.txt`, below `.dev/venv`."""

import hashlib
import shutil
import subprocess
import sys

from . import pip
from .layout import CHECKOUT, dev_dir, locked
from .say import DevError, Step, run

REQUIREMENTS = CHECKOUT / "dev/requirements.txt"


def _wanted():
    """Return the digest that marks an environment as complete and up to date."""
    return hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()


def found_in(home):
    """Return the python of a complete environment, or None."""
    python, stamp = home / "bin/python", home / "provided"
    complete = python.exists() and stamp.exists() and stamp.read_text() == _wanted()
    return python if complete else None


def provide():
    """Return the environment's python; create the environment when it is missing or outdated."""
    home = dev_dir() / "venv"
    found = found_in(home)
    if found:
        return found
    with locked("venv"):
        found = found_in(home)
        if found:
            return found
        python = home / "bin/python"
        shutil.rmtree(home, ignore_errors=True)
        run([sys.executable, "-m", "venv", "--without-pip", home],
            "Python cannot create an environment; on Debian and Ubuntu: apt-get install python3-venv")
        installer = _installer(python)
        with Step("install the Python packages of dev/requirements.txt"):
            run([*installer, "install", "--requirement", REQUIREMENTS],
                "pip could not install the packages of dev/requirements.txt; check the network and "
                "pip's settings (PIP_INDEX_URL, PIP_CERT), then try again.")
        (home / "provided").write_text(_wanted())
    return python


def _installer(python):
    """Return a pip command line that installs into an environment."""
    bundled = subprocess.run([python, "-m", "ensurepip"], capture_output=True, check=False)
    if bundled.returncode == 0:
        return [python, "-m", "pip"]
    found = pip.command()
    if found[-1].endswith(".whl/pip"):
        return [python, found[-1]]
    if subprocess.run([*found, "--python", python, "--version"],
                      capture_output=True, check=False).returncode:
        raise DevError("Python lacks ensurepip and its pip is older than 22.3; "
                       "on Debian and Ubuntu: apt-get install python3-venv")
    return [*found, "--python", python]
