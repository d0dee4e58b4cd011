"""PgQ: the distribution's package, unpacked beside the server and loaded by path."""

import re
import threading

from benchkit import packages
from benchkit.programs import STOP, Outcome, pgbench
from contestant import SqlContestant, array, taken
from devkit import servers
from devkit.say import DevError

DRAIN = f"""
SELECT coalesce(pgq.next_batch('bench', 'worker'), 0) AS batch \\gset
\\if :batch = 0
{STOP}
\\endif
SELECT count(ev_data) FROM pgq.get_batch_events(:batch);
SELECT pgq.finish_batch(:batch);
"""


class Pgq(SqlContestant):
    """One consumer; a batch is what came between two ticks."""

    family, name = "pgq", "PgQ"
    most_clients = 1

    def install(self):
        """The package that fits the server."""
        major = servers.own_major()
        if major is None:
            raise DevError("this distribution is unknown")
        home = packages.debian("pgq", f"postgresql-{major}-pgq3")
        self.library = home / f"usr/lib/postgresql/{major}/lib"
        self.script = max((home / f"usr/share/postgresql/{major}/extension").glob("pgq--?.?*.sql"), key=lambda path: "--" not in path.stem[5:])
        return (home / "version").read_text()

    def create(self, database):
        """The script of the extension, as plain SQL."""
        text = self.script.read_text().replace("$libdir", str(self.library))
        text = re.sub(r"^SELECT pg_catalog\.pg_extension_config_dump.*\n", "", text, flags=re.M)
        with database.connect() as connection:
            connection.execute(text)
            connection.execute("SELECT pgq.create_queue('bench'), pgq.register_consumer('bench', 'worker'), "
                               "pgq.set_queue_config('bench', 'ticker_max_count', '1')")

    def one(self, payload):
        """The function in C."""
        return f"SELECT pgq.insert_event('bench', 'item', ({payload})::text)"

    def many(self, payloads):
        """One call for each event: it has no other way."""
        return f"SELECT count(pgq.insert_event('bench', 'item', payload::text)) FROM unnest({payloads}) AS payload"

    def fill(self, database, items, batch):
        """A tick after every batch, so that a batch of the consumer has that many events."""
        with database.connect() as connection:
            for done in range(0, items, batch):
                connection.execute(self.many(array(min(batch, items - done))))
                connection.execute("SELECT pgq.ticker('bench')")

    def left(self, connection):
        """The events after the consumer's last tick."""
        return connection.execute("SELECT pending_events FROM pgq.get_consumer_info('bench', 'worker')").fetchone()[0]

    def drain(self, database, items, clients, batch):
        """Batch after batch, acknowledged as a whole."""
        return Outcome(items, pgbench(database.server, database.name, DRAIN, 1).seconds)

    def wait_for(self, database, samples, seen, ready):
        """The ticker ticks every 10 ms, and the consumer looks as often."""
        stop = threading.Event()

        def tick():
            with database.connect() as ticker:
                while not stop.wait(0.01):
                    ticker.execute("SELECT pgq.ticker('bench')", prepare=True)

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        with database.connect() as connection:
            ready.set()
            while len(seen) < samples:
                batch = connection.execute("SELECT pgq.next_batch('bench', 'worker')", prepare=True).fetchone()[0]
                if batch is None:
                    stop.wait(0.01)
                    continue
                rows = connection.execute("SELECT ev_data::jsonb FROM pgq.get_batch_events(%s)", [batch], prepare=True).fetchall()
                seen += [taken(payload) for (payload,) in rows]
                connection.execute("SELECT pgq.finish_batch(%s)", [batch], prepare=True)
        stop.set()
        thread.join()
