"""SKIP LOCKED as one writes it by hand: no fencing, no rescue of a lost lease, no retry."""

from contestant import SqlContestant, listening, taken

TABLE = """
CREATE TABLE plain_queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    status text NOT NULL DEFAULT 'queued',
    attempts int NOT NULL DEFAULT 0,
    run_at timestamptz NOT NULL DEFAULT now(),
    leased_at timestamptz,
    payload jsonb NOT NULL
);
CREATE INDEX plain_queue_waiting ON plain_queue (run_at, id) WHERE status = 'queued';
"""
NOTIFY = """
CREATE FUNCTION plain_notify() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('plain_queue', ''); RETURN NULL; END $$;
CREATE TRIGGER notify AFTER INSERT ON plain_queue FOR EACH STATEMENT EXECUTE FUNCTION plain_notify();
"""
NEXT = "SELECT {key} FROM plain_queue WHERE status = 'queued' AND run_at <= now() ORDER BY run_at, id LIMIT {batch} FOR UPDATE SKIP LOCKED"
LEASE = "UPDATE plain_queue SET status = 'leased', attempts = attempts + 1, leased_at = now() WHERE {where} RETURNING id, payload"


class Baseline(SqlContestant):
    """Finished items are deleted."""

    family, name = "baseline", "plain SKIP LOCKED"
    copy = "COPY plain_queue (payload) FROM '{file}'"
    copy_line = "{payload}"
    where = f"id IN ({NEXT})"
    key = "id"
    end = "DELETE FROM plain_queue WHERE id = ANY (:ids::bigint[])"

    def install(self):
        """Nothing to install."""
        return "by hand"

    def create(self, database):
        """One table, one index."""
        with database.connect() as connection:
            connection.execute(TABLE)

    def one(self, payload):
        """A plain INSERT."""
        return f"INSERT INTO plain_queue (payload) VALUES ({payload})"

    def many(self, payloads):
        """A plain INSERT of an array."""
        return f"INSERT INTO plain_queue (payload) SELECT unnest({payloads})"

    def left(self, connection):
        """Not deleted and not done."""
        return connection.execute("SELECT count(*) FROM plain_queue WHERE status <> 'done'").fetchone()[0]

    def lease(self, batch):
        """The head of the line, without waiting for others."""
        return f"WITH leased AS ({self.update(batch)}) SELECT array_agg(id) AS ids, count(payload) AS n FROM leased"

    def update(self, batch):
        """What leases a batch."""
        return LEASE.format(where=self.where.format(key=self.key, batch=batch))

    def finish(self):
        """By id."""
        return self.end

    def waiting(self, database):
        """A session that listens, and a NOTIFY with every statement that enqueues."""
        with database.connect() as connection:
            connection.execute(NOTIFY)
        return listening(database, "plain_queue")

    def wait_for(self, database, samples, seen, ready):
        """Listen, lease, delete."""
        with database.connect() as connection:
            connection.execute(NOTIFY + "LISTEN plain_queue")
            ready.set()
            while len(seen) < samples:
                rows = connection.execute(self.update(100), prepare=True).fetchall()
                seen += [taken(payload) for _, payload in rows]
                if rows:
                    connection.execute("DELETE FROM plain_queue WHERE id = ANY (%s)", [[row[0] for row in rows]], prepare=True)
                else:
                    list(connection.notifies(timeout=1, stop_after=1))


class BaselineKept(Baseline):
    """Finished items stay in the table."""

    name = "plain, finished kept"
    end = "UPDATE plain_queue SET status = 'done' WHERE id = ANY (:ids::bigint[])"


class BaselineByPlace(Baseline):
    """The same with the trick that finds the rows again by their place, which is safe because they are locked."""

    name = "plain, by ctid"
    where, key = f"ctid = ANY (ARRAY({NEXT}))", "ctid"
