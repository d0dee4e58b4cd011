"""Where a demo plays: a fresh database in a private cluster, psql, and the worker's program."""

import csv
import io
import os
import subprocess

from devkit.say import DevError


class Stage:
    """A database of a running cluster."""

    def __init__(self, cluster, database, program):
        self.cluster, self.database, self.program = cluster, database, program

    def create(self):
        """Make the database anew, and let pgsteward install its schema in it."""
        self.cluster.psql("-d", "postgres", "-qc", f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)",
                          "-c", f"CREATE DATABASE {self.database}")
        return self.pgsteward("migrate", capture=True)

    def psql(self, *arguments, text=None, **variables):
        """Run psql and return what it prints."""
        done = subprocess.run(self._psql(*arguments, **variables), env=self._environment(), input=text or "",
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise DevError(f"a statement of the demo failed\n{done.stderr.strip()}")
        return done.stdout

    def script(self, path):
        """Run a file of SQL in one transaction."""
        self.psql("--single-transaction", "--file", path)

    def rows(self, sql, **variables):
        """The rows of a query as dictionaries of text."""
        return list(csv.DictReader(io.StringIO(self.psql("--csv", text=sql, **variables))))

    def row(self, sql):
        """The only row of a query."""
        (row,) = self.rows(sql)
        return row

    def copy(self, table, data):
        """Load CSV with a header into a table."""
        self.psql("--command", f"COPY {table} FROM STDIN (FORMAT csv, HEADER)", text=data)

    def each(self, statements):
        """Run statements, each in a transaction of its own; yields the value of each when it is done."""
        arguments = [word for statement in statements for word in ("--command", statement)]
        with subprocess.Popen(self._psql("--tuples-only", "--no-align", *arguments), env=self._environment(), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            for line in process.stdout:
                yield line.strip()
            complaint = process.stderr.read()
        if process.returncode:
            raise DevError(f"a statement of the demo failed\n{complaint.strip()}")

    def pgsteward(self, *arguments, user=None, capture=False):
        """Run the worker's program, as a role that can log in over the socket."""
        environment = self._environment() | ({"PGUSER": user} if user else {})
        done = subprocess.run([self.program, *arguments], env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                              stdout=subprocess.PIPE if capture else None, stderr=subprocess.PIPE if capture else None)
        if done.returncode:
            complaint = f"\n{done.stderr.strip()}" if capture else "; see above"
            raise DevError(f"pgsteward {arguments[0]} failed{complaint}")
        return done.stdout

    def _psql(self, *arguments, **variables):
        """Psql's command line."""
        given = [f"--set={name}={value}" for name, value in variables.items()]
        return self.cluster.psql_command("--quiet", "--set=ON_ERROR_STOP=1", *given, *map(str, arguments))

    def _environment(self):
        """Variables of a client that connects over the socket."""
        environment = os.environ | self.cluster.environment() | {"PGDATABASE": self.database, "PGOPTIONS": "-c client_min_messages=warning"}
        del environment["DATABASE_URL"]
        return environment
