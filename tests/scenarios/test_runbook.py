"""The production runbook's statements on events_queue, as written, on seeded situations."""

import re
import threading
from pathlib import Path

from conftest import LIBRARIES, ROOT, Database, wait_until
from psycopg.types.json import Jsonb

BACKLOG = "SELECT * FROM public.vw_events_queue_health;"
STUCK = "SELECT count(*) FROM public.events_queue\nWHERE status='leased' AND lease_expires_at < now();"
REQUEUE = "UPDATE public.events_queue \nSET status='queued', lease_token=NULL, lease_expires_at=NULL\nWHERE status='leased' AND lease_expires_at < now();"
DOCUMENT = ROOT.parent / "shared/seeds/3-production-runbook.md"


def test_the_statements_are_the_documents(db):
    """Against the document itself where it is at hand; everywhere, that they parse and run."""
    if DOCUMENT.exists():
        blocks = "\n".join(re.findall(r"```sql\n(.*?)```", Path(DOCUMENT).read_text(), re.S))
        statements = [s.strip() for s in re.sub(r"--[^\n]*", "", blocks).split(";")]
        named = {" ".join(s.split()) for s in statements if "events_queue" in s}
        assert named == {" ".join(s.rstrip(";").split()) for s in (BACKLOG, STUCK, REQUEUE)}
    for statement in (BACKLOG, STUCK, REQUEUE):
        assert db.psql("-c", statement).returncode == 0


def enqueue(db, topic, count):
    db.run("SELECT count(*) FROM enqueue_events(%s, ARRAY(SELECT %s::jsonb FROM generate_series(1, %s)))", (topic, Jsonb({}), count))


def test_queue_backlog(db):
    enqueue(db, "discovery.user-signup", 5)
    enqueue(db, "telemetry.signal", 3)
    leased = db.run("SELECT * FROM lease_events('telemetry.signal', 2)")
    db.run("SELECT * FROM ack_events(%s, %s)", ([leased[0].id], leased[0].lease_token))
    rows = {(row.topic, row.status): row.ct for row in db.run(BACKLOG)}
    assert rows == {("discovery.user-signup", "queued"): 5, ("telemetry.signal", "queued"): 1, ("telemetry.signal", "leased"): 1, ("telemetry.signal", "done"): 1}


def stick(db, expired, fresh):
    enqueue(db, "t", expired + fresh)
    old = db.run("SELECT * FROM lease_events('t', %s)", (expired,))
    db.run("UPDATE events_queue SET lease_expires_at = now() - interval '1 minute' WHERE status = 'leased'")
    with db.connect(autocommit=False) as holder:  # keeps the expired ones from being leased again
        holder.execute("SELECT FROM events_queue WHERE status = 'leased' FOR UPDATE")
        new = db.run("SELECT * FROM lease_events('t', %s)", (fresh,))
        holder.rollback()
    return old, new


def test_stuck_leases_are_counted(db):
    stick(db, 3, 2)
    assert db.one(STUCK) == 3


def test_stuck_leases_are_requeued(db):
    old, new = stick(db, 3, 2)
    with db.connect() as connection:
        assert connection.execute(REQUEUE).rowcount == 3
    live = db.run("SELECT id, status, lease_token FROM events_queue WHERE status = 'leased' ORDER BY id")
    assert [(row.id, row.lease_token) for row in live] == sorted((row.id, row.lease_token) for row in new)
    late = db.run("SELECT * FROM ack_events(%s, %s)", ([row.id for row in old], old[0].lease_token))
    assert {row.held for row in late} == {False}
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'queued'") == 3
    again = db.run("SELECT * FROM lease_events('t')")
    assert sorted(row.id for row in again) == sorted(row.id for row in old)


def test_requeueing_while_a_worker_finishes(db):
    """The UPDATE waits for a transaction that completes the same events, and then leaves them done."""
    enqueue(db, "t", 1)
    (event,) = db.run("SELECT * FROM lease_events('t')")
    with db.connect(autocommit=False) as finishing:
        finishing.execute("SELECT * FROM ack_events(%s, %s)", ([event.id], event.lease_token))
        with db.connect() as operator:
            operator.execute("SET lock_timeout = '5s'")
            threading.Timer(0.3, finishing.commit).start()
            assert operator.execute(REQUEUE.replace("lease_expires_at < now()", "lease_expires_at < now() + interval '1 day'")).rowcount == 0
    assert db.one("SELECT status FROM events_queue") == "done"


if (LIBRARIES / "pg_cron.so").exists():
    def test_pg_cron_recomputes(cluster):
        """A real pg_cron calls trust_recompute; it lives in the database that the server names for it."""
        db = Database(cluster, "pgsteward")
        db.run("CREATE EXTENSION IF NOT EXISTS pg_cron")
        db.run("CREATE EXTENSION IF NOT EXISTS pgsteward")
        db.run("SELECT * FROM steward_migrate()")
        scene = db.one("INSERT INTO scenes (name, owner_did) VALUES (gen_random_uuid(), 'did:a') RETURNING id")
        db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES (%s, 'u', 'owner', 'active', 0.7)", (scene,))
        db.run("SELECT cron.schedule('trust-recompute', '* * * * *', 'SELECT * FROM public.trust_recompute()')")
        try:
            wait_until(lambda: db.run("SELECT FROM trust_scores WHERE scene_id = %s AND score = 0.7", (scene,)), 90, "the score that pg_cron computes")
            wait_until(lambda: db.run("SELECT FROM cron.job_run_details WHERE status = 'succeeded'"), 10, "a run noted as succeeded")
        finally:
            db.run("SELECT cron.unschedule('trust-recompute')")
