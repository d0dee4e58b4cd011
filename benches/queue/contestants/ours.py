"""pgsteward: by its SQL functions from pgbench, and by its worker."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager

from benchkit.programs import Outcome
from benchkit.server import ROOT
from contestant import PAYLOAD, SqlContestant, listening, produce
from devkit.say import DevError

WORKER = ROOT / "target/release/pgsteward"
SCHEMA = """
CREATE EXTENSION pgsteward CASCADE;
SELECT count(*) FROM steward_migrate();
CREATE TABLE bench_seen (ms double precision);
CREATE FUNCTION bench_nothing(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean)
LANGUAGE sql AS 'SELECT NULL::bigint, NULL::text, NULL::boolean WHERE false';
CREATE FUNCTION bench_seen(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean)
LANGUAGE sql AS $$
    INSERT INTO bench_seen SELECT (extract(epoch FROM clock_timestamp())::float8 - (payload ->> 'sent')::float8) * 1000 FROM unnest(payloads) AS payload;
    SELECT NULL::bigint, NULL::text, NULL::boolean WHERE false $$;
SELECT register_topic('bench', 'bench_nothing');
"""
FINISHED = """
WITH finished AS (
    INSERT INTO events_queue_done (topic, status, attempts, payload, created_at, run_at, updated_at)
    SELECT 'bench', 'done', 1, %s::jsonb, at, at, at FROM generate_series(1, %s::bigint) AS n, LATERAL (SELECT now() - interval '6 days' + n * interval '10 ms') AS t (at)
)
INSERT INTO event_tally (topic, status, ct) VALUES ('bench', 'done', %s)
"""


class Ours(SqlContestant):
    """lease_events() and ack_events(); done events are kept for a week, as by default."""

    family, name = "ours", "pgsteward"
    copy = "COPY events_inbox (topic, payload) FROM '{file}'"
    copy_line = "bench\t{payload}"
    keep = None

    def install(self):
        """The server has it already; the worker is built by the benchmark."""
        if not WORKER.exists():
            raise DevError(f"{WORKER} is missing")
        return "this checkout"

    def create(self, database):
        """Schema, a topic, a handler that does nothing."""
        with database.connect() as connection:
            connection.execute(SCHEMA)
            if self.keep:
                connection.execute("SELECT configure_topic('bench', jsonb_build_object('keep_done', %s::text))", [self.keep])

    def one(self, payload):
        """One event."""
        return f"SELECT enqueue_event('bench', {payload})"

    def many(self, payloads):
        """An array of payloads."""
        return f"SELECT count(*) FROM enqueue_events('bench', {payloads})"

    def left(self, connection):
        """Neither done nor failed; a failure is a fault of the benchmark."""
        failed, left = connection.execute("SELECT count(*) FILTER (WHERE status = 'error'), count(*) FROM events_queue WHERE status <> 'done'").fetchone()
        return left + failed

    def lease(self, batch):
        """One token for the batch."""
        return f"SELECT array_agg(id) AS ids, count(payload) AS n, (array_agg(lease_token))[1] AS token FROM lease_events('bench', {batch}, 60, 'bench')"

    def finish(self):
        """Fenced by the token."""
        return "SELECT count(*) FROM ack_events(:ids::bigint[], :token::uuid)"

    def add_finished(self, database, items):
        """Events that ended long ago, loaded in portions."""
        with database.connect() as connection:
            for done in range(0, items, 500_000):
                portion = min(500_000, items - done)
                connection.execute(FINISHED, [PAYLOAD, portion, portion])

    @contextmanager
    def waiting(self, database):
        """What enqueueing sees of a worker that waits: its heartbeat and a session that listens. It does not work, so it takes no CPU from the enqueueing."""
        with database.connect() as connection:
            connection.execute("SELECT worker_beat('bench', 'bench', 1, '0', now(), 'running', true, 0, 0)")
        with listening(database, "pgsteward"):
            yield

    @contextmanager
    def worker(self, database, *options):
        """The real worker, from when it waits until it has stopped."""
        process = subprocess.Popen([WORKER, "run", *options], env=os.environ | database.environment(), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while not database.value("SELECT count(*) FROM worker_heartbeats WHERE waiting"):
                if process.poll() is not None:
                    raise DevError("the worker ended:\n  " + process.stderr.read()[-800:])
                time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)

    def latency(self, database, samples, rate):
        """The real worker, woken by notification; its handler looks at the clock."""
        database.value("SELECT register_topic('bench', 'bench_seen')")
        with self.worker(database), database.connect() as connection:
            produce(connection, self, samples, rate)
            end = time.monotonic() + 30
            while database.value("SELECT count(*) FROM bench_seen") < samples and time.monotonic() < end:
                time.sleep(0.1)
            return [ms for (ms,) in connection.execute("SELECT ms FROM bench_seen")]


class OursNotKept(Ours):
    """Done events are deleted, as the baseline and most peers do."""

    name, keep = "pgsteward, not kept", "0"


class OursWorker(Ours):
    """The worker: processes a batch in one transaction, handler and acknowledgement together."""

    name = "pgsteward run"

    def drain(self, database, items, clients, batch):
        """From the start of the program to the last acknowledgement: after that it only looks whether more comes."""
        began = time.time()
        done = subprocess.run([WORKER, "run", "--until-empty", "--queue-concurrency", str(clients), "--queue-batch-size", str(batch)],
                              env=os.environ | database.environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DevError("the worker failed:\n  " + done.stderr[-800:])
        return Outcome(items, database.value("SELECT extract(epoch FROM max(at))::float8 FROM event_tally WHERE topic = 'bench'") - began)


class OursWorkerNotKept(OursWorker):
    """The same with done events deleted."""

    name, keep = "pgsteward run, not kept", "0"
