"""pgmq: the SQL that its crate carries."""

import re

from benchkit import packages
from contestant import SqlContestant, taken

VERSION = "0.34.0-alpha.7"
SQL = "src/install/embedded/sql"


class Pgmq(SqlContestant):
    """Read and delete in batches."""

    family, name = "pgmq", "pgmq"
    end = "delete"

    def install(self):
        """The crate's source; the SQL has a version of its own."""
        self.sql = packages.crate("pgmq", VERSION) / SQL
        steps = [tuple(map(int, found[1].split("."))) for path in self.sql.iterdir() if (found := re.search(r"--([\d.]+)\.sql$", path.name))]
        return f"{'.'.join(map(str, max(steps)))} (crate {VERSION})"

    def create(self, database):
        """An ordinary queue."""
        with database.connect() as connection:
            connection.execute("CREATE SCHEMA IF NOT EXISTS pgmq")
            connection.execute((self.sql / "pgmq.sql").read_text())
            connection.execute("SELECT pgmq.create('bench')")

    def one(self, payload):
        """One message."""
        return f"SELECT pgmq.send('bench', {payload})"

    def many(self, payloads):
        """An array of messages."""
        return f"SELECT count(*) FROM pgmq.send_batch('bench', {payloads})"

    def left(self, connection):
        """Whatever was not deleted or archived."""
        return connection.execute("SELECT count(*) FROM pgmq.q_bench").fetchone()[0]

    def lease(self, batch):
        """Messages become invisible for a minute."""
        return f"SELECT array_agg(msg_id) AS ids, count(message) AS n FROM pgmq.read('bench', 60, {batch})"

    def finish(self):
        """All of the batch."""
        return f"SELECT count(*) FROM pgmq.{self.end}('bench', :ids::bigint[])"

    def wait_for(self, database, samples, seen, ready):
        """Its own long poll, looking every 10 ms instead of every 100."""
        with database.connect() as connection:
            ready.set()
            while len(seen) < samples:
                rows = connection.execute("SELECT msg_id, message FROM pgmq.read_with_poll('bench', 60, 100, 5, 10)", prepare=True).fetchall()
                seen += [taken(payload) for _, payload in rows]
                connection.execute("SELECT pgmq.delete('bench', %s)", [[row[0] for row in rows]], prepare=True)


class PgmqArchive(Pgmq):
    """Finished messages are kept."""

    name = "pgmq, archived"
    end = "archive"
