"""A libclang for bindgen: the system's, else the Python wheel's, else the distribution's package."""

import ctypes
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from . import apt, elf, pip
from .layout import dev_dir, locked, scratch
from .say import DevError, Step, note

LIBRARY = re.compile(r"libclang(-\d+(\.\d+)*)?\.so(\.\d+)*$")


def environment():
    """Return the variables that let bindgen find libclang and the headers of the compiler itself."""
    folder = of_system() or _provided()
    variables = {"LIBCLANG_PATH": str(folder)}
    given = os.environ.get("BINDGEN_EXTRA_CLANG_ARGS", "")
    headers = _headers_elsewhere(folder)
    if headers and f"-isystem {headers}" not in given:
        given = f"{given} -isystem {headers}".strip()
    if given:
        variables["BINDGEN_EXTRA_CLANG_ARGS"] = given
    return variables


def _library(folder):
    """Return a libclang in a folder that can be loaded, or None."""
    try:
        names = sorted(name for name in os.listdir(folder) if LIBRARY.match(name))
    except OSError:
        return None
    for name in names:
        try:
            if hasattr(ctypes.CDLL(str(Path(folder) / name)), "clang_createIndex"):
                return name
        except OSError:
            continue
    return None


def of_system():
    """Return the folder of a libclang that is installed already, or None."""
    llvm = sorted(Path("/usr/lib").glob("llvm-[0-9]*/lib"), reverse=True)
    places = [os.environ.get("LIBCLANG_PATH"), *llvm,
              f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib64", "/usr/lib"]
    return next((Path(place) for place in places if place and _library(place)), None)


def _provided():
    """Return `.dev/libclang`, fetched when it is not there."""
    home = dev_dir() / "libclang"
    found = found_in(home)
    if found:
        return found
    with locked("libclang"):
        found = found_in(home)
        if found:
            return found
        fresh = scratch("libclang-unpacked")
        try:
            _from_wheel(fresh)
        except DevError as error:
            if not apt.available():
                raise
            note(f"no libclang from the Python package index ({str(error).splitlines()[0]})")
            _from_apt(fresh)
        if not found_in(fresh):
            raise DevError("the provided libclang cannot be loaded on this system; "
                           "install libclang and set LIBCLANG_PATH to its folder")
        shutil.rmtree(home, ignore_errors=True)
        fresh.rename(home)
        return found_in(home)


def found_in(home):
    """Return the folder below `.dev/libclang` that holds the library, or None."""
    places = [home, *home.glob("usr/lib/*-linux-gnu*")]
    return next((place for place in places if _library(place)), None)


def _from_wheel(target):
    """Take the library out of the wheel."""
    path = pip.wheel(pip.LIBCLANG)
    with Step("unpack libclang"):
        unpacked = scratch("libclang-wheel")
        pip.unzip(path, unpacked)
        next(unpacked.rglob("libclang.so")).rename(target / "libclang.so")
        shutil.rmtree(unpacked)
        path.unlink()


def _from_apt(target):
    """Unpack the distribution's libclang, its headers and the libraries this system lacks."""
    apt.refresh()
    library = next((name for name in apt.needs("libclang1") if name.startswith("libclang1-")), None)
    if library is None:
        raise DevError("apt offers no libclang1 on this system; install libclang and set LIBCLANG_PATH")
    version = library.removeprefix("libclang1-")
    names = [library, f"libclang-common-{version}-dev"]
    libraries = apt.missing_libraries([library])
    apt.unpack([*names, *libraries], target)
    elf.add_search_path(target, [], libraries)


def _headers_elsewhere(folder):
    """Return the folder of stddef.h and the like, or None where libclang finds it by itself."""
    beside = [*folder.glob("clang/*/include/stddef.h"), *folder.parent.glob("lib/clang/*/include/stddef.h")]
    if beside:
        return None
    own = sorted(folder.parent.glob("llvm-*/lib/clang/*/include/stddef.h"))
    return own[-1].parent if own else _compiler_headers()


def _compiler_headers():
    """Return the folder of the C compiler's own headers (stddef.h and the like)."""
    try:
        done = subprocess.run(["cc", "-print-file-name=include"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DevError(f"the C compiler cc does not work: {error}") from None
    folder = Path(done.stdout.strip()).resolve()
    if not (folder / "stddef.h").exists():
        raise DevError(f"the C compiler has no stddef.h in {folder}; install gcc")
    return folder
