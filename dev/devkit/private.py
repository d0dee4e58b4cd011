"""Files, folders and ports that belong to one server alone."""

import os
import random
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from .say import DevError

SOCKET_PATH_LIMIT = 107


def make_folder(folder, user):
    """Make sure that a folder exists, belongs to a user and is closed to others."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    os.chown(folder, user.pw_uid, user.pw_gid)


def is_private(folder, user):
    """Tell whether a folder is a real one that belongs to a user alone."""
    try:
        info = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == user.pw_uid and not info.st_mode & 0o077


def write(path, text, user=None):
    """Replace a file by one that only a user (by default the caller) can read."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w",
              encoding="utf-8") as handle:
        if user:
            os.fchown(handle.fileno(), user.pw_uid, user.pw_gid)
        handle.write(text)
    partial.rename(path)


def socket_dir(recorded, own, user):
    """Return the recorded folder of the socket, else a folder whose path is short enough."""
    if recorded and is_private(Path(recorded), user):
        return recorded
    if len(os.fsencode(own)) + len("/.s.PGSQL.65535") > SOCKET_PATH_LIMIT:
        own = Path(tempfile.mkdtemp(prefix="pgsteward-", dir="/tmp"))
    make_folder(own, user)
    return str(own)


def remove_socket_dir(recorded, cluster, user):
    """Remove a short folder of the socket that lies outside the cluster's own folder."""
    if recorded and Path(recorded).parent != cluster and is_private(Path(recorded), user):
        shutil.rmtree(recorded)


def port(recorded):
    """Return the recorded port if it is free, else another one below the range of outgoing connections."""
    for candidate in [recorded, *random.sample(range(20000, 32000), 100)]:
        if candidate and is_free(candidate):
            return candidate
    raise DevError("found no free TCP port on 127.0.0.1")


def is_free(candidate):
    """Tell whether a loopback port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", candidate))
            probe.listen()
        except OSError:
            return False
    return True
