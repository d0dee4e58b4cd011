"""PgBouncer in transaction mode in front of a private cluster, run by the server's user and never installed."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

from . import apt, elf, private
from .layout import dev_dir, locked, private_folder, scratch, server_user
from .say import DevError

PACKAGE = "pgbouncer"
PATIENCE = 10
CONFIGURATION = """\
[databases]
* = host={socket_dir} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 200
logfile = {folder}/log
"""


def offered():
    """Tell whether pgbouncer can be fetched here."""
    return apt.available()


def found():
    """Return the program that is there already, or None."""
    for candidate in (private_folder() / PACKAGE / "usr/sbin/pgbouncer", shutil.which("pgbouncer")):
        if candidate and Path(candidate).exists():
            return Path(candidate)
    return None


def provide():
    """Return the program; fetch the distribution's package when it is not there."""
    with locked(PACKAGE):
        if found():
            return found()
        if not offered():
            raise DevError("pgbouncer comes from the packages of Debian and Ubuntu; install it with this system's package manager")
        apt.refresh()
        fresh = scratch(PACKAGE)
        libraries = apt.missing_libraries([PACKAGE])
        apt.unpack([PACKAGE, *libraries], fresh)
        elf.add_search_path(fresh, [fresh / "usr/sbin/pgbouncer"], libraries)
        home = dev_dir() / PACKAGE
        shutil.rmtree(home, ignore_errors=True)
        fresh.rename(home)
    return found()


class Pooler:
    """A running pgbouncer; `users` are the roles that may log in, with their passwords, beside the superuser."""

    def __init__(self, cluster, sessions=4, users=None):
        self.cluster, self._user = cluster, server_user()
        self.folder = cluster.folder / "pooler"
        private.make_folder(self.folder, self._user)
        self.port = private.port(None)
        self._write("users", "".join(f'"{name}" "{word}"\n' for name, word in {"postgres": cluster.password, **(users or {})}.items()))
        self._write("pgbouncer.ini", CONFIGURATION.format(
            socket_dir=cluster.socket_dir, server_port=cluster.port, port=self.port, folder=self.folder, sessions=sessions))
        identity = {}
        if os.geteuid() != self._user.pw_uid:
            identity = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        self._process = subprocess.Popen([provide(), "-q", self.folder / "pgbouncer.ini"], cwd=self.folder, env={"LC_ALL": "C.UTF-8"},
                                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity)
        self._wait()

    def _write(self, name, text):
        """Write a file that only the server's user can read."""
        private.write(self.folder / name, text, self._user)

    def _wait(self):
        """Wait until the port is taken."""
        end = time.monotonic() + PATIENCE
        while private.is_free(self.port):
            if self._process.poll() is not None or time.monotonic() > end:
                log = self.folder / "log"
                raise DevError(f"pgbouncer does not start: {log.read_text()[-2000:] if log.exists() else 'no log'}")
            time.sleep(0.05)

    def url(self, database, user="postgres", password=None):
        """Return the URL of a database behind the pooler."""
        word = quote(password or self.cluster.password, safe="")
        return f"postgresql://{user}:{word}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def stop(self):
        """End pgbouncer and remove its files."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
