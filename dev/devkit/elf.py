"""Programs that find libraries of their own folder, for every caller and without environment."""

import os
from pathlib import Path

from . import apt
from .layout import dev_dir, locked, scratch
from .say import run


def add_search_path(root, files, libraries):
    """Let ELF files, and the libraries unpacked below a root, find those libraries, when there are any."""
    if not libraries:
        return
    unpacked = [*Path(root).glob("usr/lib/*-linux-gnu*/*.so*"), *Path(root).glob("lib/*-linux-gnu*/*.so*")]
    folders = sorted({path.parent for path in unpacked})
    patchelf = _patchelf()
    for path in filter(_is_elf, {*files, *unpacked}):
        relative = [f"$ORIGIN/{os.path.relpath(folder, path.parent)}" for folder in folders]
        run([patchelf, "--force-rpath", "--set-rpath", ":".join(relative), path],
            f"cannot set the library search path of {path.name}")


def _is_elf(path):
    """Tell whether a path is a real ELF file."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as handle:
        return handle.read(4) == b"\x7fELF"


def _patchelf():
    """Return patchelf, unpacked below `.dev/`."""
    home = dev_dir() / "patchelf"
    with locked("patchelf"):
        if not home.is_dir():
            fresh = scratch("patchelf")
            apt.unpack(["patchelf"], fresh)
            fresh.rename(home)
    return home / "usr/bin/patchelf"
