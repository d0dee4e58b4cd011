"""Private PostgreSQL clusters: a Unix socket, a loopback port, a recorded state, nothing shared."""

import copy
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from . import servers, tls
from .layout import dev_dir, locked, reachable, server_user
from .say import DevError, Step, note, run

DATABASE = "pgsteward"
SUPERUSER = "postgres"
SOCKET_PATH_LIMIT = 107
SECONDS = 60
OWN_SETTINGS = {"port", "listen_addresses", "unix_socket_directories", "data_directory",
                "hba_file", "ident_file", "external_pid_file"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_worker_processes": "24",
    "shared_buffers": "256MB",
    "wal_level": "replica",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "notice",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
}
CRON_SETTINGS = {
    "cron.database_name": DATABASE,
    "cron.use_background_workers": "on",
}


def _read_pg_config(pg_config, *words):
    """Return what a pg_config prints."""
    return run([pg_config, *words], f"{pg_config} does not work").strip()


def _major_of(pg_config):
    """Return the major version of a pg_config."""
    found = re.match(r"PostgreSQL (\d+)", _read_pg_config(pg_config, "--version"))
    if not found:
        raise DevError(f"{pg_config} does not report a PostgreSQL version")
    return int(found[1])


class Cluster:
    """One private cluster; `major`, `pg_config` or `name` say which one."""

    def __init__(self, major=None, name=None, pg_config=None):
        if name is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise DevError("a cluster's name consists of letters, digits, - and _")
        if major is not None and major not in servers.MAJORS:
            raise DevError(f"name a major version from {servers.MAJORS[0]} to {servers.MAJORS[-1]}")
        chosen = pg_config or (None if major else os.environ.get("PG_CONFIG"))
        self._chosen = Path(shutil.which(chosen) or chosen).absolute() if chosen else None
        self._asked_major = major
        if name:
            self.folder = dev_dir() / f"cluster-{name}"
        else:
            if self._chosen:
                major = _major_of(self._chosen)
            self.folder = dev_dir() / f"cluster{major or servers.default_major()}"
        self.data = self.folder / "data"
        self.log = self.folder / "log/server.log"
        self._user = server_user()
        self._state = self._load()

    # -- what is known about the cluster ---------------------------------------------------

    @property
    def exists(self):
        """Tell whether the cluster was created."""
        return (self.folder / "state.json").exists()

    @property
    def major(self):
        """The major version of the cluster."""
        return self._known("major")

    @property
    def port(self):
        """The loopback TCP port."""
        return self._known("port")

    @property
    def socket_dir(self):
        """The folder of the Unix socket."""
        return Path(self._known("socket_dir"))

    @property
    def pg_config(self):
        """The pg_config of the server's binaries."""
        return Path(self._known("pg_config"))

    @property
    def bindir(self):
        """The folder of the server's binaries."""
        return self.pg_config.resolve().parent

    @property
    def password(self):
        """The superuser's password, needed for TCP only."""
        return self._known("password")

    @property
    def pid(self):
        """The process id of the running postmaster, or None."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if self._works_here(pid) else None

    @property
    def ready(self):
        """Tell whether the server accepts connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return self.pid is not None and len(lines) > 7 and lines[7].strip() == "ready"

    def url(self, database=DATABASE, **parameters):
        """Return the TCP URL with the superuser's password; parameters are added percent-encoded."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return (f"postgresql://{SUPERUSER}:{quote(self.password, safe='')}@127.0.0.1:{self.port}"
                f"/{quote(database, safe='')}{query}")

    def environment(self):
        """Return the environment variables of a client."""
        return {
            "PGHOST": str(self.socket_dir),
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGDATABASE": DATABASE,
            "DATABASE_URL": self.url(),
            "PG_CONFIG": str(self.pg_config),
        }

    # -- verbs -----------------------------------------------------------------------------

    def start(self, settings=None, preload=()):
        """Create the cluster when it is missing, start it unless it runs, wait until it is ready."""
        with locked(self.folder.name):
            self._state = self._load()
            before = copy.deepcopy(self._state)
            self._choose_binaries()
            self._remember(settings or {}, preload)
            changed = before != self._state
            if self.pid:
                if not changed and self._wait_until_ready():
                    return self
                note(f"{self.folder.name} restarts, for its settings or its server changed")
                self._stop(signal.SIGINT)
            if not (self.data / "PG_VERSION").exists():
                self._create()
            try:
                self._launch()
            except DevError:
                self._state |= {key: before.get(key, type(self._state[key])())
                                for key in ("settings", "preload")}
                self._save()
                raise
        return self

    def stop(self, immediate=False):
        """Stop the server if it runs."""
        with locked(self.folder.name):
            self._stop(signal.SIGQUIT if immediate else signal.SIGINT)

    def restart(self, immediate=False):
        """Stop the server if it runs, with a crash when immediate, and start it."""
        with locked(self.folder.name):
            self._state = self._load()
            self._known("port")
            self._stop(signal.SIGQUIT if immediate else signal.SIGINT)
            self._launch()
        return self

    def destroy(self):
        """Stop the server and remove everything that belongs to the cluster."""
        with locked(self.folder.name):
            self._stop(signal.SIGQUIT)
            place = self._state.get("socket_dir")
            if place and self._is_private(Path(place)) and Path(place).parent != self.folder:
                shutil.rmtree(place)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._state = {}

    def psql(self, *arguments):
        """Run psql over the socket and return its output."""
        done = subprocess.run(self.psql_command(*arguments), env=os.environ | self.environment(),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DevError(f"psql failed: {done.stderr.strip()}")
        return done.stdout

    def psql_command(self, *arguments):
        """Return psql's command line; it wants the variables of `environment()`."""
        return [str(self.bindir / "psql"), "--no-psqlrc", *arguments]

    def enable_ssl(self):
        """Create a certificate of an own authority, turn ssl on, return the authority's certificate."""
        if not re.search(r"--with-(openssl|ssl=openssl)", _read_pg_config(self.pg_config, "--configure")):
            raise DevError(f"the server of {self.pg_config} was built without SSL; "
                           "use the distribution's own major version")
        with locked(self.folder.name):
            authority, certificate, key = tls.create(self.folder / "ssl")
            self._write(self.data / "server.crt", certificate)
            self._write(self.data / "server.key", key)
            self._stop(signal.SIGINT)
        self.start({"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key"})
        return authority

    # -- state -----------------------------------------------------------------------------

    def _load(self):
        """Return the recorded state, empty before the first start."""
        try:
            return json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DevError(f"cannot read the state of {self.folder.name}: {error}") from None

    def _save(self):
        """Record the state; it holds the password, so only its owner may read it."""
        partial = self.folder / "state.json.partial"
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w",
                  encoding="utf-8") as handle:
            json.dump(self._state, handle, indent=1)
        partial.rename(self.folder / "state.json")

    def _known(self, key):
        """Return a part of the state, or say that the cluster was never started."""
        if key not in self._state:
            raise DevError(f"there is no {self.folder.name} yet; start it with: dev/cluster.py start")
        return self._state[key]

    def _choose_binaries(self):
        """Decide which server runs the cluster: asked for, recorded, or provided."""
        recorded, own_major = self._state.get("pg_config"), self._state.get("major")
        if self._asked_major and own_major not in (None, self._asked_major):
            raise DevError(f"{self.folder.name} is of PostgreSQL {own_major}, not {self._asked_major}; "
                           "destroy it first or choose another --name")
        if self._chosen:
            chosen = self._chosen
        elif self._asked_major:
            chosen = servers.provide(self._asked_major)
        elif recorded and Path(recorded).exists():
            chosen = Path(recorded)
        else:
            chosen = servers.provide(own_major or servers.default_major())
        major = _major_of(chosen)
        if major not in servers.MAJORS:
            raise DevError(f"{chosen} is of PostgreSQL {major}; {servers.MAJORS[0]} to "
                           f"{servers.MAJORS[-1]} are supported")
        if major != (own_major or major):
            raise DevError(f"{self.folder.name} is of PostgreSQL {own_major}, and {chosen} of {major}; "
                           "destroy the cluster first or choose another --name")
        postgres = Path(_read_pg_config(chosen, "--bindir")) / "postgres"
        if not postgres.exists():
            raise DevError(f"{postgres} is missing: {chosen} has no server beside it")
        if not reachable(postgres, self._user):
            raise DevError(f"the user {self._user.pw_name}, who has to run the server, cannot reach "
                           f"{postgres}; move that installation or set PGSTEWARD_OS_USER")
        self._state |= {"major": major, "pg_config": str(chosen)}

    def _remember(self, settings, preload):
        """Add settings and libraries to the state; they stay until the cluster is destroyed."""
        for key in settings:
            if not re.fullmatch(r"[a-z_][a-z0-9_.]*", key, re.I):
                raise DevError(f"not a setting's name: {key}")
            if key.lower() in OWN_SETTINGS:
                raise DevError(f"{key} is chosen by the tool itself")
        known = self._state.setdefault("settings", {})
        known |= {key: str(value) for key, value in settings.items()}
        libraries = self._state.setdefault("preload", [])
        libraries += [name for name in preload if name not in libraries]

    # -- creating --------------------------------------------------------------------------

    def _create(self):
        """Run initdb; an interrupted earlier attempt is thrown away."""
        self.folder.mkdir(exist_ok=True)
        self._state["password"] = secrets.token_urlsafe(24)
        partial, secret = self.folder / "data.partial", self.folder / "initial-password"
        shutil.rmtree(partial, ignore_errors=True)
        for private in (partial, self.log.parent):
            self._make_private(private)
        self._write(secret, self._state["password"])
        try:
            with Step(f"create {self.folder.name} (PostgreSQL {self.major})"):
                self._as_server_user(
                    [self.bindir / "initdb", "--pgdata", partial, "--username", SUPERUSER,
                     "--encoding", "UTF8", "--locale", "C.UTF-8", "--data-checksums",
                     "--auth-local", "trust", "--auth-host", "scram-sha-256",
                     "--pwfile", secret, "--no-instructions"],
                    "initdb failed")
                self._as_server_user(
                    [self.bindir / "postgres", "--single", "-D", partial, "-c", "exit_on_error=on",
                     "postgres"], "the database could not be created",
                    input=f"CREATE DATABASE {DATABASE}\n")
        finally:
            secret.unlink()
        with open(partial / "postgresql.conf", "a", encoding="utf-8") as handle:
            handle.write("\ninclude 'pgsteward.conf'\n")
        self._save()
        partial.rename(self.data)

    def _make_private(self, folder):
        """Make sure that a folder exists, belongs to the server's user and is closed to others."""
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _write(self, path, text):
        """Replace a file by one that only the server's user can read."""
        partial = path.with_name(f"{path.name}.partial")
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w",
                  encoding="utf-8") as handle:
            os.fchown(handle.fileno(), self._user.pw_uid, self._user.pw_gid)
            handle.write(text)
        partial.rename(path)

    def _is_private(self, folder):
        """Tell whether a folder is a real one that belongs to the server's user alone."""
        try:
            info = folder.lstat()
        except OSError:
            return False
        return (stat.S_ISDIR(info.st_mode) and info.st_uid == self._user.pw_uid
                and not info.st_mode & 0o077)

    def _choose_socket_dir(self):
        """Return the recorded folder of the socket, or a new one whose path is short enough."""
        recorded = self._state.get("socket_dir")
        if recorded and self._is_private(Path(recorded)):
            return recorded
        own = self.folder / "socket"
        if len(os.fsencode(own)) + len("/.s.PGSQL.65535") <= SOCKET_PATH_LIMIT:
            self._make_private(own)
            return str(own)
        short = Path(tempfile.mkdtemp(prefix="pgsteward-", dir="/tmp"))
        self._make_private(short)
        return str(short)

    def _choose_port(self):
        """Return the recorded port if it is free, else another one."""
        below_ephemeral = random.sample(range(20000, 32000), 100)
        for port in [self._state.get("port"), *below_ephemeral]:
            if port and self._is_free(port):
                return port
        raise DevError("found no free TCP port on 127.0.0.1")

    @staticmethod
    def _is_free(port):
        """Tell whether a loopback port can be listened on."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError:
                return False
        return True

    def _socket_setting(self):
        """Return the socket's folder as an element of a list of folders."""
        text = str(self.socket_dir)
        return '"' + text.replace('"', '""') + '"' if re.search(r'[,"]', text) else text

    def _configuration(self):
        """Return the text of the included configuration file."""
        values = dict(SETTINGS)
        preload = list(self._state["preload"])
        library_dir = Path(_read_pg_config(self.pg_config, "--pkglibdir"))
        if (library_dir / "pg_cron.so").exists():
            preload.insert(0, "pg_cron")
            values |= CRON_SETTINGS
        share_dir = Path(_read_pg_config(self.pg_config, "--sharedir"))
        if (share_dir / "timezone/UTC").exists() or Path("/usr/share/zoneinfo/UTC").exists():
            values |= {"timezone": "UTC", "log_timezone": "UTC"}
        values |= {"port": self.port, "unix_socket_directories": self._socket_setting(),
                   "shared_preload_libraries": ",".join(preload)}
        values |= self._state["settings"]
        lines = [f"{key} = '{str(value).replace(chr(39), 2 * chr(39))}'" for key, value in values.items()]
        return "\n".join(["# written at every start by dev/cluster.py", *lines, ""])

    # -- processes -------------------------------------------------------------------------

    def _works_here(self, pid):
        """Tell whether a process works in the data folder, as every process of this server does."""
        try:
            return os.readlink(f"/proc/{pid}/cwd") == str(self.data)
        except OSError:
            return False

    def _processes(self):
        """Return the ids of all processes that work in the data folder."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self._works_here(name)]

    def _wait_for_exit(self, seconds):
        """Wait until no process works in the data folder; tell whether that happened."""
        end = time.monotonic() + seconds
        while self._processes():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def _wait_until_ready(self):
        """Wait while the running server recovers; tell whether it accepts connections."""
        end = time.monotonic() + SECONDS
        while self.pid and not self.ready and time.monotonic() < end:
            time.sleep(0.1)
        return self.ready

    def _stop(self, how):
        """Signal the postmaster and wait; a fast shutdown that hangs becomes an immediate one."""
        pid = self.pid
        if pid is None:
            return
        for number in (how, signal.SIGQUIT):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            if self._wait_for_exit(SECONDS):
                break
        else:
            raise DevError(f"the server with process id {pid} does not stop; see {self.log}")

    def _clear_away(self):
        """End what a killed postmaster left behind; its process id may be someone else's by now."""
        if not self._wait_for_exit(3):
            for pid in self._processes():
                os.kill(pid, signal.SIGQUIT)
            if not self._wait_for_exit(10):
                raise DevError(f"processes of a killed server still work in {self.data}: "
                               f"{', '.join(map(str, self._processes()))}; end them first")
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _launch(self):
        """Start the server and wait until it accepts connections."""
        self._clear_away()
        for _ in range(3):
            self._state |= {"port": self._choose_port(), "socket_dir": self._choose_socket_dir()}
            for stale in self.socket_dir.glob(".s.PGSQL.*"):
                stale.unlink()
            self._write(self.data / "pgsteward.conf", self._configuration())
            self._save()
            seen = self.log.stat().st_size if self.log.exists() else 0
            try:
                with Step(f"start {self.folder.name} on port {self.port}"):
                    self._as_server_user(
                        [self.bindir / "pg_ctl", "start", "--pgdata", self.data, "--log", self.log,
                         "--wait", "--timeout", str(SECONDS), "--silent"], "the server does not start")
                return
            except DevError:
                with open(self.log, encoding="utf-8", errors="replace") as handle:
                    handle.seek(seen)
                    lines = handle.read().splitlines()
            if not any("could not create any TCP/IP sockets" in line for line in lines):
                break
        tail = "\n".join(f"  | {line}" for line in lines[-20:])
        raise DevError(f"{self.folder.name} does not start; the end of {self.log}:\n{tail}")

    def _as_server_user(self, command, failure, **options):
        """Run a program of the server as its user, in a small environment."""
        passed = {"LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG"}
        environment = {key: value for key, value in os.environ.items()
                       if key in passed or key.startswith("PGSTEWARD_")}
        environment |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        identity = {}
        if os.geteuid() != self._user.pw_uid:
            identity = {"user": self._user.pw_uid, "group": self._user.pw_gid,
                        "extra_groups": os.getgrouplist(self._user.pw_name, self._user.pw_gid)}
        return run(command, failure, cwd="/", env=environment, umask=0o077, **identity, **options)
