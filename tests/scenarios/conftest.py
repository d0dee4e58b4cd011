"""A server for the tests, a fresh migrated database for each, and the real worker."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import namedtuple_row

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dev"))
from devkit.clusters import Cluster  # noqa: E402

MAJOR = int(os.environ["PGSTEWARD_TEST_MAJOR"])
WORKER = Path(os.environ["PGSTEWARD_WORKER"])
TEMPLATE = "steward_template"


def ask_server(option):
    """What the server's pg_config prints."""
    pg_config = subprocess.run([sys.executable, ROOT / "dev/provide.py", "postgres", str(MAJOR)], capture_output=True, text=True, check=True).stdout.strip()
    return subprocess.run([pg_config, option], capture_output=True, text=True, check=True).stdout.strip()


LIBRARIES = Path(ask_server("--pkglibdir"))
HAS_TLS = "openssl" in ask_server("--configure")


class Database:
    """A database of the test server."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.url = cluster.url(name)

    def connect(self, user=None, autocommit=True, **options):
        """A connection, as the superuser or as another role."""
        connection = psycopg.connect(self.url, autocommit=autocommit, row_factory=namedtuple_row, **options)
        if user:
            connection.execute(f"SET SESSION AUTHORIZATION {user}")
        return connection

    def run(self, sql, parameters=None):
        """Run one statement and return its rows."""
        with self.connect() as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description is not None else []

    def one(self, sql, parameters=None):
        """The only value of the only row."""
        (row,) = self.run(sql, parameters)
        (value,) = row
        return value

    def psql(self, *arguments):
        """psql on this database."""
        return subprocess.run(
            self.cluster.psql_command("-v", "ON_ERROR_STOP=1", *arguments),
            env=os.environ | self.cluster.environment() | {"PGDATABASE": self.name},
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def create_database(cluster, name, template=None):
    """Create a database, from a template if one is given."""
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
    return Database(cluster, name)


def drop_database(cluster, name):
    """Drop a database, whoever is connected."""
    with psycopg.connect(cluster.url("postgres"), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def cluster():
    """The test server, started by the runner."""
    return Cluster(major=MAJOR, name=os.environ.get("PGSTEWARD_TEST_CLUSTER", f"test{MAJOR}"))


@pytest.fixture(scope="session")
def template(cluster):
    """A migrated database to copy."""
    drop_database(cluster, TEMPLATE)
    database = create_database(cluster, TEMPLATE)
    database.run("CREATE EXTENSION pgsteward")
    database.run("SELECT * FROM steward_migrate()")
    return TEMPLATE


@pytest.fixture
def db(cluster, template):
    """A fresh migrated database."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield create_database(cluster, name, template)
    drop_database(cluster, name)


@pytest.fixture
def roles(db):
    """Login-like roles of each kind."""
    for kind in ("app", "worker", "readonly", "admin"):
        role = f"test_{kind}"
        if not db.run("SELECT FROM pg_roles WHERE rolname = %s", (role,)):
            db.run(f"CREATE ROLE {role} IN ROLE steward_{kind}")
    if not db.run("SELECT FROM pg_roles WHERE rolname = 'test_stranger'"):
        db.run("CREATE ROLE test_stranger")
    return db


@pytest.fixture
def empty_db(cluster):
    """A database without the extension."""
    name = f"e_{uuid.uuid4().hex[:12]}"
    yield create_database(cluster, name)
    drop_database(cluster, name)


@pytest.fixture
def own_cluster():
    """A server of the test's own, to be crashed and restarted."""
    cluster = Cluster(major=MAJOR, name=f"own-{os.environ.get('PGSTEWARD_TEST_CLUSTER', MAJOR)}")
    cluster.destroy()
    cluster.start()
    yield cluster
    cluster.destroy()


class Worker:
    """A running `pgsteward run`."""

    def __init__(self, url, *arguments, environment=None, program="run"):
        self.log = []
        self.process = subprocess.Popen(
            [WORKER, program, *arguments], env=clean_environment() | {"DATABASE_URL": url} | (environment or {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.log.append(line.rstrip("\n"))

    @property
    def output(self):
        """What it has printed so far."""
        return "\n".join(self.log)

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self, limit=40):
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(limit)

    def wait(self, limit=120):
        """Wait for its end; its exit status."""
        status = self.process.wait(limit)
        self._reader.join(5)
        return status


def clean_environment():
    """The environment without anything that would configure the worker."""
    return {key: value for key, value in os.environ.items()
            if not key.startswith(("PG", "TRUST_", "DATABASE_", "LISTEN_", "RUST_"))}


@pytest.fixture
def worker(db):
    """Starts workers on the test's database, and ends them."""
    with contextlib.ExitStack() as stack:
        def start(*arguments, url=None, **environment):
            process = Worker(url or db.url, *arguments, environment=environment)
            stack.callback(lambda: process.process.poll() is None and process.kill())
            return process
        yield start


@pytest.fixture
def pgsteward(db):
    """Runs the command line on the test's database and returns the finished process."""
    def run(*arguments, url=None, **environment):
        return subprocess.run([WORKER, *arguments], env=clean_environment() | {"DATABASE_URL": url or db.url} | environment,
                              capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)
    return run


def wait_until(condition, limit=30, what="the condition"):
    """Poll a condition until it holds; its value."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come true within {limit} s"
        time.sleep(0.05)


def in_parallel(*tasks):
    """Run functions in threads of their own; the results in order. Raises what any of them raised."""
    results, errors = [None] * len(tasks), []

    def run(index, task):
        try:
            results[index] = task()
        except BaseException as error:  # handed to the caller
            errors.append(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def refused(connection, sql, sqlstate, parameters=None, hint=True):
    """The error of a statement that must be refused with this SQLSTATE, and with a hint."""
    with pytest.raises(psycopg.Error) as caught:
        connection.execute(sql, parameters)
    diagnostics = caught.value.diag
    assert diagnostics.sqlstate == sqlstate, f"{diagnostics.sqlstate}: {diagnostics.message_primary}"
    if hint:
        assert diagnostics.message_hint, f"no hint: {diagnostics.message_primary}"
    assert "panick" not in str(caught.value) and ".rs:" not in str(caught.value)
    return diagnostics
