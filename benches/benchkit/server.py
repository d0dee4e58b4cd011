"""The private servers of the benchmarks, set up as for production; each benchmark may change settings."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
from devkit import servers
from devkit.clusters import Cluster
from devkit.layout import dev_dir
from devkit.say import DevError, Step, run

ROOT = Path(__file__).resolve().parents[2]
# Autovacuum would strike one contestant and spare another: each run is prepared with an explicit VACUUM ANALYZE instead.
SETTINGS = {
    "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "1GB", "max_wal_size": "8GB",
    "checkpoint_timeout": "15min", "jit": "off", "maintenance_work_mem": "512MB", "autovacuum": "off",
}


class BenchServer:
    """A cluster of its own and its databases."""

    Error = psycopg.Error

    def __init__(self, name="bench", **changed):
        self.settings = SETTINGS | changed
        self.cluster = Cluster(name=name) if os.environ.get("PG_CONFIG") else Cluster(major=servers.default_major(), name=name)

    def start(self, install=True):
        """Install the extension as it stands and start the server with it."""
        self.cluster.start(self.settings)
        if install:
            with Step("build and install the extension"):
                run([sys.executable, ROOT / "dev/extension.py", "install", "--pg-config", self.cluster.pg_config],
                    "the extension does not build")
        return self

    def library(self):
        """Which build of the extension is installed: it may be replaced while a long run goes on."""
        folder = run([self.cluster.pg_config, "--pkglibdir"], "pg_config does not work").strip()
        return hashlib.sha256((Path(folder) / "pgsteward.so").read_bytes()).hexdigest()[:12]

    def connect(self, database, **options):
        """A connection in autocommit over the Unix socket."""
        return psycopg.connect(host=str(self.cluster.socket_dir), port=self.cluster.port, user="postgres",
                               dbname=database, autocommit=True, **options)

    def environment(self, database):
        """The variables of a client over the Unix socket."""
        return self.cluster.environment() | {
            "PGDATABASE": database, "DATABASE_URL": f"host={self.cluster.socket_dir} port={self.cluster.port} user=postgres dbname={database}"}

    def copy_database(self, name, template="template1"):
        """A new database as its template is, in place of an older one; nobody may be connected to the template."""
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")

    def create_database(self, name):
        """An empty database with the schema of pgsteward."""
        self.copy_database(name)
        with self.connect(name) as connection:
            connection.execute("CREATE EXTENSION pgsteward")
            connection.execute("SELECT count(*) FROM steward_migrate()")

    def drop_database(self, name):
        """Give the disk space of a database back."""
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def machine(self):
        """What the figures were measured on."""
        with self.connect("postgres") as connection:
            version = connection.execute("SHOW server_version").fetchone()[0]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                      if line.startswith("model name")), "unknown")
        revision = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        return {"cores": os.cpu_count(), "memory_gib": round(memory, 1), "cpu": model, "postgresql": version,
                "revision": revision.stdout.strip(), "library": self.library(), "settings": self.settings}


def require_disk(gigabytes):
    """Refuse to begin what the disk cannot hold."""
    free = shutil.disk_usage(dev_dir()).free / 1e9
    if free < gigabytes:
        raise DevError(f"this needs about {gigabytes:.0f} GB below .dev and {free:.0f} GB are free; choose smaller --sizes")
