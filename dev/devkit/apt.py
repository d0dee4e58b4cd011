"""Debian packages without root: private apt state, verified downloads, unpacking with dpkg."""

import os
import re
import shutil
import time

from .layout import dev_dir, locked, scratch
from .say import DevError, Step, megabytes, note, run

LISTS_VALID_FOR = 3600
ENGLISH = os.environ | {"LC_ALL": "C"}
CONFIG = """\
Dir::State "{home}/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "{home}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Log "{home}/log";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::GzipIndexes "true";
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
#clear Acquire::IndexTargets::deb::CNF;
#clear Acquire::IndexTargets::deb::Contents-deb;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"""


def available():
    """Tell whether this system has apt and dpkg."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg", "dpkg-query"))


def _apt(tool, *words):
    """Return an apt command line that uses the private configuration."""
    return [tool, "-q", "-c", dev_dir() / "apt" / "apt.conf", *words]


def refresh():
    """Fetch the package lists into the private state folder unless they are recent."""
    home = dev_dir() / "apt"
    stamp = home / "updated"
    with locked("apt"):
        for folder in ("state/lists/partial", "cache/archives/partial", "log"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "apt.conf").write_text(CONFIG.format(home=home))
        if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_VALID_FOR:
            return
        try:
            with Step("fetch the package lists"):
                run(_apt("apt-get", "-o", "APT::Update::Error-Mode=any", "update"),
                    "apt could not fetch the package lists of this system's sources; check the network\n"
                    "  (and Acquire::http::Proxy in /etc/apt/apt.conf.d), then try again.",
                    env=ENGLISH)
            stamp.touch()
        except DevError:
            if not has("libc6"):
                raise
            note("going on with the package lists that are at hand")


def _records(names):
    """Return the candidate records (field → text) of packages, by package name."""
    if not names:
        return {}
    words = _apt("apt-cache", "show", "--no-all-versions", *names)
    try:
        text = run(words, "no such package", env=ENGLISH)
    except DevError:  # one unknown name fails the whole call
        return {} if len(names) == 1 else {k: v for n in names for k, v in _records([n]).items()}
    found = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Depends|Pre-Depends|Size): (.*)$", block, re.M))
        if "Package" in fields and "Size" in fields:
            found[fields["Package"]] = fields
    return found


def has(name):
    """Tell whether apt offers a package."""
    return name in _records([name])


def installed():
    """Return the names of the packages installed on this system."""
    text = run(["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\\n"],
               "dpkg-query could not list the installed packages")
    return {line.split()[1] for line in text.splitlines() if line.startswith("installed ")}


def _alternatives(fields):
    """Return the needs of a package record, each as a list of alternative package names."""
    wanted = f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}".split(",")
    return [[re.split(r"[ (:]", choice.strip())[0] for choice in need.split("|")] for need in wanted]


def needs(name):
    """Return the names of the packages that a package depends on."""
    return [choice for choices in _alternatives(_records([name]).get(name, {})) for choice in choices]


def missing_libraries(names, skip="$"):
    """Return the library packages that packages need, directly or not, and this system lacks."""
    present, wanted, queue = installed(), [], list(names)
    while queue:
        records = _records(queue)
        queue = []
        for fields in records.values():
            for choices in _alternatives(fields):
                libraries = [c for c in choices if re.match(r"lib|zlib1g$", c) and not re.match(skip, c)]
                if libraries and not {*choices} & {*present, *wanted, *names}:
                    wanted.append(libraries[0])
                    queue.append(libraries[0])
    return wanted


def unpack(names, target):
    """Download packages (checked by apt against the signed lists) and unpack them; return versions."""
    records = _records(names)
    unknown = sorted(set(names) - records.keys())
    if unknown:
        raise DevError(f"apt offers no package {', '.join(unknown)} here; look at your apt sources")
    what = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more packages"
    total = sum(int(fields["Size"]) for fields in records.values())
    with locked("apt"):
        store = scratch("debs")
        with Step(f"download {what} ({megabytes(total)})", watch=store, total=total):
            run(_apt("apt-get", "download", *names),
                "apt could not download the packages; check the network and try again.",
                cwd=store, env=ENGLISH)
            for deb in sorted(store.glob("*.deb")):
                run(["dpkg", "-x", deb, target], f"cannot unpack {deb.name}; is the disk full?")
        shutil.rmtree(store)
        (dev_dir() / "apt/cache/pkgcache.bin").unlink(missing_ok=True)  # large and quickly made again
    return {name: fields["Version"] for name, fields in records.items()}
