"""marketplace_discovery_queue: the runbook's statements, states, identity, and that it follows the rules of events_queue."""

import re

import pytest
from conftest import ROOT, in_parallel, refused

DOCUMENT = ROOT.parent / "shared/seeds/3-production-runbook.md"
BACKLOG = "SELECT * FROM public.vw_discovery_queue_health;"
STUCK = "SELECT count(*) FROM public.marketplace_discovery_queue\nWHERE status='processing' AND lease_expires_at < now();"
INSPECT = """SELECT id, interest_id, category_id, reason, last_error, attempts
FROM public.marketplace_discovery_queue
WHERE status='error'
ORDER BY updated_at DESC
LIMIT 20;"""
REQUEUE = """UPDATE public.marketplace_discovery_queue
SET status='queued', attempts=0, last_error=NULL
WHERE status='error' AND attempts < 5;"""


@pytest.fixture
def items(db):
    """Enqueues discovery items of interests of their own; their ids."""
    def enqueue(count, reason="new-interest"):
        db.run("INSERT INTO interest_catalog (domain, category, tag) SELECT 'd', 'c', gen_random_uuid() FROM generate_series(1, %s)", (count,))
        return [row[0] for row in db.run("""SELECT enqueue_discovery_items(array_agg(id), NULL, array_agg(%s::text))
                                              FROM (SELECT id FROM interest_catalog ORDER BY created_at DESC, id LIMIT %s) i""", (reason, count))]
    return enqueue


def lease(db, limit=100, ttl=60):
    """Lease items; their ids and the token."""
    rows = db.run("SELECT * FROM lease_discovery_items(%s, %s, 'tester')", (limit, ttl))
    return [row.id for row in rows], rows[0].lease_token if rows else None


def statuses(db):
    """The status of each item."""
    return {row.id: row.status for row in db.run("SELECT id, status FROM marketplace_discovery_queue")}


def test_the_statements_are_the_documents(db):
    if DOCUMENT.exists():
        blocks = "\n".join(re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.S))
        statements = [s.strip() for s in re.sub(r"--[^\n]*", "", blocks).split(";")]
        named = {" ".join(s.split()) for s in statements if "discovery_queue" in s}
        assert named == {" ".join(s.rstrip(";").split()) for s in (BACKLOG, STUCK, INSPECT, REQUEUE)}
    for statement in (BACKLOG, STUCK, INSPECT, REQUEUE):
        assert db.psql("-c", statement).returncode == 0


def test_queue_backlog(db, items):
    items(6)
    ids, token = lease(db, 4)
    db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids[:2], token))
    db.run("SELECT * FROM fail_discovery_items(%s, %s, 'x', false)", (ids[2:3], token))
    db.run("UPDATE marketplace_discovery_queue SET run_at = now() - interval '2 days', updated_at = now() - interval '2 days' WHERE status = 'done'")
    rows = {row.status: row for row in db.run(BACKLOG)}
    assert {status: row.ct for status, row in rows.items()} == {"queued": 2, "processing": 1, "done": 2, "error": 1}
    assert rows["queued"].p95_age_sec is not None
    assert [rows[status].p95_age_sec for status in ("processing", "done", "error")] == [None] * 3


def test_health_view_has_the_runbooks_columns(db, items):
    columns = [row.column_name for row in db.run("""SELECT column_name FROM information_schema.columns
                                                     WHERE table_name = 'vw_discovery_queue_health' ORDER BY ordinal_position""")]
    assert columns == ["status", "ct", "high_retry_ct", "oldest_queued", "last_activity", "p95_age_sec", "oldest_ready_sec", "stuck_ct", "retry_ct",
                       "deferred_ct", "per_minute", "drain_sec", "topic_state"]
    ids = items(25)
    ages = [3 * n * n for n in range(1, 21)]
    for event, age in zip(ids, ages):
        db.run("UPDATE marketplace_discovery_queue SET run_at = now() - make_interval(secs => %s) WHERE id = %s", (age, event))
    db.run("UPDATE marketplace_discovery_queue SET run_at = now() + interval '1 hour', deferred = true WHERE id = ANY (%s)", (ids[20:],))
    db.run("UPDATE marketplace_discovery_queue SET attempts = 4 WHERE id = ANY (%s)", (ids[:3],))
    db.run("UPDATE marketplace_discovery_queue SET attempts = 3 WHERE id = ANY (%s)", (ids[3:6],))
    (row,) = db.run("SELECT * FROM vw_discovery_queue_health")
    expected = db.one("SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY a) FROM unnest(%s::float8[]) a", (ages,))
    assert row.high_retry_ct == 3 and row.deferred_ct == 5 and abs(row.p95_age_sec - expected) < 5 and abs(row.oldest_ready_sec - ages[-1]) < 5


def test_stuck_leases_are_counted(db, items):
    items(5)
    ids, _ = lease(db, 3)
    db.run("UPDATE marketplace_discovery_queue SET lease_expires_at = now() - interval '1 second' WHERE id = ANY (%s)", (ids,))
    with db.connect(autocommit=False) as holder:  # keeps the expired ones from being leased again
        holder.execute("SELECT FROM marketplace_discovery_queue WHERE status = 'processing' FOR UPDATE")
        assert len(lease(db, 2)[0]) == 2
        holder.rollback()
    assert db.one(STUCK) == 3
    (row,) = [row for row in db.run(BACKLOG) if row.status == "processing"]
    assert (row.ct, row.stuck_ct) == (5, 3)


def test_the_newest_errors_are_inspected(db, items):
    ids = items(25)
    _, token = lease(db)
    for n, item in enumerate(ids):
        db.run("SELECT * FROM fail_discovery_items(%s, %s, %s, false)", ([item], token, f"reason {n}"))
    rows = db.run(INSPECT)
    assert [row.id for row in rows] == ids[:4:-1] and rows[0].last_error == "reason 24" and rows[0].attempts == 1


def test_failed_items_with_fewer_than_five_attempts_are_requeued(db, items):
    ids = items(3)
    _, token = lease(db)
    db.run("UPDATE marketplace_discovery_queue SET attempts = %s WHERE id = %s", (4, ids[1]))
    db.run("UPDATE marketplace_discovery_queue SET attempts = %s WHERE id = %s", (5, ids[2]))
    db.run("SELECT * FROM fail_discovery_items(%s, %s, 'no such category', false)", (ids, token))
    assert set(statuses(db).values()) == {"error"}
    with db.connect() as connection:
        assert connection.execute(REQUEUE).rowcount == 2
    assert statuses(db) == {ids[0]: "queued", ids[1]: "queued", ids[2]: "error"}
    again, _ = lease(db)
    assert sorted(again) == ids[:2]
    assert {row.attempts for row in db.run("SELECT attempts FROM marketplace_discovery_queue WHERE status = 'processing'")} == {1}
    assert {row.status: row.ct for row in db.run(BACKLOG)} == {"processing": 2, "error": 1}


def test_a_failed_item_ends_in_error_with_its_message(db, items):
    (item,) = items(1)
    ids, token = lease(db)
    db.run("SELECT * FROM fail_discovery_items(%s, %s, 'no such category', false)", (ids, token))
    (row,) = db.run("SELECT * FROM marketplace_discovery_queue")
    assert (row.id, row.status, row.last_error, row.attempts) == (item, "error", "no such category", 1)


def test_every_column_of_the_runbook_exists(db):
    columns = {row.column_name: row.data_type for row in db.run(
        "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'marketplace_discovery_queue'")}
    needed = {"id": "bigint", "interest_id": "uuid", "category_id": "uuid", "reason": "text", "status": "text", "attempts": "integer", "last_error": "text",
              "lease_token": "uuid", "lease_expires_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}
    assert needed.items() <= columns.items()


def test_lease_marks_processing_with_the_runbooks_word(db, items):
    (item,) = items(1)
    lease(db)
    assert statuses(db) == {item: "processing"}
    with db.connect() as connection:
        refused(connection, "UPDATE marketplace_discovery_queue SET status = 'leased'", "23514", hint=False)
        refused(connection, "UPDATE marketplace_discovery_queue SET status = 'nonsense'", "23514", hint=False)


# Identity

@pytest.fixture
def interest(db):
    """An interest and a category."""
    category = db.one("INSERT INTO marketplace_categories (slug, name, domain, category) VALUES ('s', 'n', 'd', 'c') RETURNING id")
    return db.one("INSERT INTO interest_catalog (domain, category, tag) VALUES ('d', 'c', 't') RETURNING id"), category


def test_interest_category_and_reason_name_one_item(db, interest):
    for category in (None, None, interest[1], interest[1]):
        db.run("SELECT enqueue_discovery_item(%s, %s)", (interest[0], category))
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 2
    db.run("SELECT enqueue_discovery_item(%s, NULL, 'user-signup')", (interest[0],))
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 3


@pytest.mark.parametrize("ending", ["ack_discovery_items(%s, %s)", "fail_discovery_items(%s, %s, 'x', false)"])
def test_an_ended_item_is_armed_anew(db, interest, ending):
    for _ in range(3):
        db.run("SELECT enqueue_discovery_item(%s)", (interest[0],))
        ids, token = lease(db)
        assert len(ids) == 1
        db.run(f"SELECT * FROM {ending}", (ids, token))
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 1
    assert sum(row.ct for row in db.run(BACKLOG)) == 1


def test_an_item_enqueued_while_it_is_leased_runs_once_more(db, interest):
    first = db.one("SELECT enqueue_discovery_item(%s)", (interest[0],))
    ids, token = lease(db)
    assert db.one("SELECT enqueue_discovery_item(%s)", (interest[0],)) == first
    assert [row.held for row in db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids, token))] == [True]
    assert statuses(db) == {first: "queued"}
    ids, token = lease(db)
    db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids, token))
    assert statuses(db) == {first: "done"}


def test_fifty_sessions_arm_one_item(db, interest):
    """While others lease and ack it, at every moment there is one."""
    def enqueue():
        for _ in range(5):
            db.run("SELECT enqueue_discovery_item(%s)", (interest[0],))

    def work():
        for _ in range(25):
            ids, token = lease(db)
            if ids:
                db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids, token))
            assert db.one("SELECT count(*) FROM marketplace_discovery_queue") <= 1

    in_parallel(*[enqueue] * 20, *[work] * 4)
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 1
    assert {row.status: row.ct for row in db.run(BACKLOG)} == {row.status: row.ct for row in db.run("SELECT status, count(*) AS ct FROM marketplace_discovery_queue GROUP BY 1")}


def test_deleting_a_category_takes_its_items_along(db, interest):
    db.run("SELECT enqueue_discovery_item(%s, %s)", interest)
    db.run("DELETE FROM marketplace_categories")
    assert statuses(db) == {}


# Alerts

def check(db, name):
    """The level of a health check of the discovery queue."""
    return {row.level for row in db.run("SELECT level FROM steward_health WHERE check_name = %s AND subject LIKE 'marketplace_discovery_queue%%'", (name,))}


@pytest.mark.parametrize(("age", "level"), [(299, "warn"), (303, "error")])
def test_waiting_too_long_is_critical(db, items, age, level):
    items(30)
    ids, token = lease(db, 10)
    db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids, token))
    db.run("UPDATE marketplace_discovery_queue SET run_at = now() - interval '2 days' WHERE status = 'done'")
    assert check(db, "queue.waiting") == {"ok"}
    db.run("UPDATE marketplace_discovery_queue SET run_at = now() - make_interval(secs => %s) WHERE status = 'queued'", (age - 1,))
    assert check(db, "queue.waiting") == {level}


@pytest.mark.parametrize(("count", "level"), [(10, "ok"), (11, "error")])
def test_many_retries_are_critical(db, items, count, level):
    ids = items(15)
    db.run("UPDATE marketplace_discovery_queue SET attempts = 4 WHERE id = ANY (%s)", (ids[:count],))
    assert check(db, "queue.high_retry") == {level}


def test_dead_rows_are_seen(db):
    db.run("ALTER TABLE marketplace_discovery_queue_live SET (autovacuum_enabled = false)")
    assert check(db, "queue.dead_rows") == {"ok"}
    db.run("INSERT INTO interest_catalog (domain, category, tag) SELECT 'd', 'c', i::text FROM generate_series(1, 12000) i")
    db.run("SELECT count(enqueue_discovery_items) FROM (SELECT enqueue_discovery_items(array_agg(id)) FROM interest_catalog) e")
    with db.connect() as connection:
        for _ in range(2):
            (row,) = connection.execute("SELECT min(lease_token::text) AS token, array_agg(id) AS ids FROM lease_discovery_items(10000)").fetchall()
            connection.execute("SELECT * FROM ack_discovery_items(%s, %s)", (row.ids, row.token))
        connection.execute("SELECT pg_stat_force_next_flush()")
    (row,) = db.run("SELECT n_live_tup, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'marketplace_discovery_queue_live'")
    assert row.n_dead_tup > 10000
    assert check(db, "queue.dead_rows") == {"warn"}
    db.run("VACUUM marketplace_discovery_queue_live")
    assert check(db, "queue.dead_rows") == {"ok"}


def test_who_holds_the_horizon_is_named(db):
    with db.connect(autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        pid = reader.execute("SELECT pg_backend_pid()").fetchone()[0]
        reader.execute("SELECT count(*) FROM events_queue")
        rows = db.run("SELECT * FROM vw_xmin_horizon WHERE holder LIKE %s", (f"pid {pid},%",))
        assert len(rows) == 1 and rows[0].kind == "session" and rows[0].held_sec >= 0 and "idle in transaction" in rows[0].detail


def test_bad_input_is_refused(db, interest):
    known = f"'{interest[0]}'"
    with db.connect() as connection:
        for call, code in (
                ("enqueue_discovery_item(NULL)", "22004"), ("enqueue_discovery_item(gen_random_uuid())", "23503"), (f"enqueue_discovery_item({known}, gen_random_uuid())", "23503"),
                (f"enqueue_discovery_item({known}, NULL, '')", "22023"), (f"enqueue_discovery_item({known}, NULL, NULL)", "22004"),
                (f"enqueue_discovery_item({known}, reason => repeat('x', 201))", "22023"), (f"enqueue_discovery_item({known}, priority => 101)", "22023"),
                (f"enqueue_discovery_item({known}, run_at => 'infinity')", "22023"), ("enqueue_discovery_items('{}')", "22023"), ("enqueue_discovery_items(NULL)", "22004"),
                ("enqueue_discovery_items('{NULL}')", "22004"), (f"enqueue_discovery_items(ARRAY[{known}]::uuid[], '{{}}')", "2202E"),
                ("lease_discovery_items(0)", "22023"), ("lease_discovery_items(NULL)", "22004"), ("lease_discovery_items(1, 0)", "22023"),
                ("ack_discovery_items('{}', gen_random_uuid())", "22023"), ("ack_discovery_items('{1}', NULL)", "22004"), ("requeue_discovery_items('{}')", "22023"),
                ("process_discovery_items(NULL, gen_random_uuid())", "22004"), ("expire_discovery_items(0)", "22023")):
            refused(connection, f"SELECT * FROM {call}", code)
        assert connection.execute("SELECT held FROM ack_discovery_items('{1}', gen_random_uuid())").fetchone()[0] is False
    assert statuses(db) == {}


def test_a_failure_of_an_item_enqueued_anew_frees_its_slot(db, interest):
    db.run("SELECT * FROM configure_topic('marketplace.discovery', '{\"max_leased\": 1}')")
    item = db.one("SELECT enqueue_discovery_item(%s)", (interest[0],))
    ids, token = lease(db)
    db.run("SELECT enqueue_discovery_item(%s)", (interest[0],))
    (row,) = db.run("SELECT * FROM fail_discovery_items(%s, %s, 'broken', false)", (ids, token))
    assert (row.held, row.status) == (True, "queued")
    assert lease(db)[0] == [item]


def test_an_item_inserted_by_hand_replaces_one_that_ended(db, interest):
    db.run("SELECT enqueue_discovery_item(%s)", (interest[0],))
    ids, token = lease(db)
    db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids, token))
    db.run("INSERT INTO marketplace_discovery_queue (interest_id, reason) VALUES (%s, 'new-interest')", (interest[0],))
    ids, token = lease(db)
    assert [row.held for row in db.run("SELECT * FROM ack_discovery_items(%s, %s)", (ids, token))] == [True]
    assert {row.status: row.ct for row in db.run(BACKLOG)} == {"done": 1}
