"""Where everything lives: the private folder `.dev/`, its locks and its temporary folders."""

import contextlib
import fcntl
import os
import pwd
import shutil
import stat
import tempfile
from pathlib import Path

from .say import DevError, note

CHECKOUT = Path(__file__).resolve().parents[2]


def server_user():
    """Return the passwd entry of the user that runs servers: the caller, unless that is root."""
    if os.geteuid() != 0:
        try:
            return pwd.getpwuid(os.geteuid())
        except KeyError:
            raise DevError(f"the user id {os.geteuid()} has no name on this system; "
                           "PostgreSQL needs one (an entry in /etc/passwd)") from None
    wanted = os.environ.get("PGSTEWARD_OS_USER")
    for name in [wanted] if wanted else ["postgres", "nobody"]:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid == 0:
                raise DevError("PGSTEWARD_OS_USER must not be root: PostgreSQL refuses to run as root")
            return entry
    raise DevError(
        f"PostgreSQL refuses to run as root and the user {wanted or 'postgres'} does not exist; "
        "set PGSTEWARD_OS_USER to an unprivileged user")


def reachable(path, user):
    """Tell whether a user can enter every folder that leads to a path."""
    groups = set(os.getgrouplist(user.pw_name, user.pw_gid))
    path = Path(path).resolve()
    for folder in [path, *path.parents]:
        if not folder.exists():
            continue
        info = folder.stat()
        if info.st_uid == user.pw_uid:
            bit = stat.S_IXUSR
        elif info.st_gid in groups:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return False
    return True


def _move_outside(link):
    """Keep the private folder where the server's user can reach it and leave a symlink behind."""
    if any(link.glob("cluster*/data/postmaster.pid")):
        raise DevError(f"the user {server_user().pw_name} can no longer reach {link}, where a cluster "
                       "may still run; let that user enter its parent folders (chmod o+x) and stop it")
    home = Path(tempfile.mkdtemp(prefix="pgsteward-", dir="/var/tmp"))
    home.chmod(0o755)
    inside = home / "dev"
    if link.is_symlink():
        link.unlink()
        inside.mkdir()
    elif link.exists():
        shutil.move(link, inside)
    else:
        inside.mkdir()
    inside.chmod(0o755)
    link.symlink_to(inside)
    if not reachable(inside, server_user()):
        raise DevError(f"the user {server_user().pw_name}, who has to run servers, cannot reach {inside}; "
                       "set PGSTEWARD_OS_USER to a user who can")
    note(f"the server's user cannot reach the checkout: {link.name} is kept in {inside}")


def private_folder():
    """Return where the private folder is or will be, without creating it."""
    path = Path(os.environ.get("PGSTEWARD_DEV_DIR") or CHECKOUT / ".dev").absolute()
    if set(str(path)) & set('"\\$`\n'):
        raise DevError(f"apt and pg_ctl cannot cope with quotes, $ or \\ in a path: {path}\n"
                       "  move the checkout, or set PGSTEWARD_DEV_DIR to another folder")
    return path


def dev_dir():
    """Return the private folder, created when missing; its path has no symlinks in it."""
    link = private_folder()
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        gone = link.is_symlink() and not (link.is_dir() and link.stat().st_uid == 0)
        if gone or not reachable(link, server_user()):
            _move_outside(link)
    if not link.exists():
        link.mkdir()
        link.chmod(0o755)
    ignore = link / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return link.resolve()


def scratch(name):
    """Return a fresh, empty folder below `.dev/tmp`; leftovers of an interrupted run are removed."""
    folder = dev_dir() / "tmp" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def locked(name):
    """Hold the lock file of one thing, under the ordinary umask; a second caller waits."""
    folder = dev_dir() / "locks"
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another run that works on {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        previous = os.umask(0o022)
        try:
            yield
        finally:
            os.umask(previous)
