"""Private PostgreSQL clusters: a Unix socket, a loopback port, a recorded state, nothing shared."""

import copy
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote, urlencode

from . import configuration, private, processes, servers, tls
from .configuration import DATABASE
from .layout import dev_dir, locked, reachable, server_user
from .say import DevError, Step, note, run

SUPERUSER = "postgres"


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
        return Path(self._known("bindir"))

    @property
    def password(self):
        """The superuser's password, needed for TCP only."""
        return self._known("password")

    @property
    def pid(self):
        """The process id of the running postmaster, or None."""
        return processes.postmaster(self.data)

    @property
    def ready(self):
        """Tell whether the server accepts connections."""
        return processes.ready(self.data)

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

    def start(self, settings=None, preload=(), standby_of=None):
        """Create the cluster when it is missing, as a standby of another if one is given; start it unless it runs, wait until it is ready."""
        with locked(self.folder.name):
            self._state = self._load()
            before = copy.deepcopy(self._state)
            self._choose_binaries()
            self._remember(settings or {}, preload)
            changed = before != self._state
            if self.pid:
                if not changed and processes.wait_until_ready(self.data):
                    return self
                note(f"{self.folder.name} restarts, for its settings or its server changed")
                processes.stop(self.data, signal.SIGINT)
            if not (self.data / "PG_VERSION").exists():
                self._create() if standby_of is None else self._copy(standby_of)
            try:
                self._launch()
            except DevError:
                self._state |= {"settings": before.get("settings", {}), "preload": before.get("preload", [])}
                self._save()
                raise
        return self

    def stop(self, immediate=False):
        """Stop the server if it runs."""
        with locked(self.folder.name):
            processes.stop(self.data, signal.SIGQUIT if immediate else signal.SIGINT)

    def restart(self, immediate=False):
        """Stop the server if it runs, with a crash when immediate, and start it."""
        with locked(self.folder.name):
            self._state = self._load()
            self._known("port")
            processes.stop(self.data, signal.SIGQUIT if immediate else signal.SIGINT)
            self._launch()
        return self

    def promote(self):
        """Make a standby a primary, and wait until it is one."""
        self._as_server_user([self.bindir / "pg_ctl", "promote", "--pgdata", self.data, "--wait", "--silent"],
                             f"{self.folder.name} could not be promoted")

    def destroy(self):
        """Stop the server and remove everything that belongs to the cluster."""
        with locked(self.folder.name):
            processes.stop(self.data, signal.SIGQUIT)
            processes.clear_away(self.data)
            private.remove_socket_dir(self._load().get("socket_dir"), self.folder, self._user)
            if self.folder.exists():
                shutil.rmtree(self.folder)
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
            private.write(self.data / "server.crt", certificate, self._user)
            private.write(self.data / "server.key", key, self._user)
            processes.stop(self.data, signal.SIGINT)
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
            raise DevError(f"cannot read the state of {self.folder.name} ({error}); "
                           f"if it is yours, remove {self.folder}") from None

    def _save(self):
        """Record the state; it holds the password, so only its owner may read it."""
        private.write(self.folder / "state.json", json.dumps(self._state, indent=1))

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
        self._state |= {"major": major, "pg_config": str(chosen), "bindir": str(postgres.parent)}

    def _remember(self, settings, preload):
        """Add settings and libraries to the state; they stay until the cluster is destroyed."""
        configuration.check_names(settings)
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
        for folder in (partial, self.log.parent):
            private.make_folder(folder, self._user)
        private.write(secret, self._state["password"], self._user)
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
        with open(partial / "pg_hba.conf", "a", encoding="utf-8") as handle:
            handle.write("\nhost all all 127.0.0.0/8 scram-sha-256\n")  # clients may come from any loopback address
        self._save()
        partial.rename(self.data)

    def _copy(self, primary):
        """Take a base backup of a running cluster, with its settings, that follows it; its name there is the name of this cluster."""
        self.folder.mkdir(exist_ok=True)
        self._state |= {"password": primary.password, "preload": [*primary._state["preload"]],
                        "settings": primary._state["settings"] | self._state["settings"]}
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for folder in (partial, self.log.parent):
            private.make_folder(folder, self._user)
        source = f"host={primary.socket_dir} port={primary.port} user={SUPERUSER} application_name={self.folder.name}"
        with Step(f"copy {primary.folder.name} to {self.folder.name}"):
            self._as_server_user(
                [self.bindir / "pg_basebackup", "--pgdata", partial, "--dbname", source, "--write-recovery-conf",
                 "--checkpoint", "fast", "--wal-method", "stream"], "the base backup failed")
        self._save()
        partial.rename(self.data)

    # -- running ---------------------------------------------------------------------------

    def _configuration(self):
        """Return the text of the included configuration file."""
        return configuration.text(
            _read_pg_config(self.pg_config, "--pkglibdir"), _read_pg_config(self.pg_config, "--sharedir"),
            self.port, self.socket_dir, self._state["preload"], self._state["settings"])

    def _launch(self):
        """Start the server and wait until it accepts connections."""
        processes.clear_away(self.data)
        for _ in range(3):  # another program may take the port in between
            self._state |= {
                "port": private.port(self._state.get("port")),
                "socket_dir": private.socket_dir(
                    self._state.get("socket_dir"), self.folder / "socket", self._user)}
            for stale in self.socket_dir.glob(".s.PGSQL.*"):
                stale.unlink()
            private.write(self.data / "pgsteward.conf", self._configuration(), self._user)
            self._save()
            seen = self.log.stat().st_size if self.log.exists() else 0
            try:
                with Step(f"start {self.folder.name} on port {self.port}"):
                    self._as_server_user(
                        [self.bindir / "pg_ctl", "start", "--pgdata", self.data, "--log", self.log,
                         "--wait", "--timeout", processes.PATIENCE, "--silent"],
                        "the server does not start")
                return
            except DevError as error:
                lines = self._logged_since(seen) or [str(error)]
            if not any("could not create any TCP/IP sockets" in line for line in lines):
                break
        tail = "\n".join(f"  | {line}" for line in lines[-20:])
        raise DevError(f"{self.folder.name} does not start; the end of {self.log}:\n{tail}")

    def _logged_since(self, position):
        """Return the lines of the server's log from a position on."""
        if not self.log.exists():
            return []
        with open(self.log, encoding="utf-8", errors="replace") as handle:
            handle.seek(position)
            return handle.read().splitlines()

    def _as_server_user(self, command, failure, **options):
        """Run a program of the server as its user, in a small environment."""
        passed = {"LD_LIBRARY_PATH", "RUST_BACKTRACE", "RUST_LOG", "RANK_TRUST_ENABLED"}
        environment = {key: value for key, value in os.environ.items()
                       if key in passed or key.startswith("PGSTEWARD_")}
        environment |= {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        identity = {}
        if os.geteuid() != self._user.pw_uid:
            identity = {"user": self._user.pw_uid, "group": self._user.pw_gid,
                        "extra_groups": os.getgrouplist(self._user.pw_name, self._user.pw_gid)}
        return run(command, failure, cwd="/", env=environment, umask=0o077, **identity, **options)
