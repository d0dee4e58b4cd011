"""pg-boss: enqueued by SQL as its guide for other languages says, worked on by its own client."""

from pathlib import Path

from benchkit import packages
from benchkit.programs import Outcome, script
from contestant import Contestant

VERSION = "12.38.0"
CLIENT = Path(__file__).parents[1] / "clients/pgboss.mjs"


class PgBoss(Contestant):
    """fetch and complete in batches; finished jobs are kept for a week."""

    family, name = "pgboss", "pg-boss"

    def install(self):
        """The package and its own node."""
        self.node, self.home = packages.npm("pg-boss", f"pg-boss@{VERSION}")
        return VERSION

    def client(self, database, *words):
        """Run its client."""
        return script(database.server, database.name, self.node, CLIENT, *words, PEER=str(self.home))

    def create(self, database):
        """By its own migrations."""
        self.client(database, "migrate")

    def one(self, payload):
        """Everything else has defaults."""
        return f"INSERT INTO pgboss.job (name, data) VALUES ('bench', {payload})"

    def many(self, payloads):
        """An INSERT of an array."""
        return f"INSERT INTO pgboss.job (name, data) SELECT 'bench', unnest({payloads})"

    def left(self, connection):
        """Created, waiting for a retry, or active."""
        return connection.execute("SELECT count(*) FROM pgboss.job WHERE name = 'bench' AND state < 'completed'").fetchone()[0]

    def drain(self, database, items, clients, batch):
        """So many loops in one process."""
        return Outcome(**self.client(database, "drain", items, clients, batch))

    def latency(self, database, samples, rate):
        """Its client notifies, so it enqueues too; the queue has opted in."""
        return self.client(database, "latency", samples, rate)
