"""events_queue: leases, fencing, retries, keys, and who may do what when."""

import time

import psycopg
import pytest
from conftest import in_parallel, refused


def enqueue(db, count, topic="t", **columns):
    return [row[0] for row in db.run("SELECT enqueue_events(%s, array_agg(jsonb_build_object('n', i)), priority => %s, max_attempts => %s) FROM generate_series(1, %s) i",
                                     (topic, columns.get("priority", 0), columns.get("max_attempts"), count))]


def lease(db, limit=100, ttl=60, topic=None):
    rows = db.run("SELECT * FROM lease_events(%s, %s, %s, 'tester')", (topic, limit, ttl))
    return [row.id for row in rows], rows[0].lease_token if rows else None


def expire(db, ids):
    db.run("UPDATE events_queue SET lease_expires_at = now() - interval '1 second' WHERE id = ANY (%s)", (ids,))


def held(rows):
    return {row.id: row.held for row in rows}


def status(db, event):
    rows = db.run("SELECT * FROM events_queue WHERE id = %s", (event,))
    assert len(rows) == 1
    return rows[0]


def test_lease_marks_leased_with_the_runbooks_word(db):
    (event,) = enqueue(db, 1)
    ids, token = lease(db)
    assert ids == [event]
    row = status(db, event)
    assert (row.status, row.attempts, row.leased_by, row.lease_token) == ("leased", 1, "tester", token)
    with db.connect() as connection:
        refused(connection, f"UPDATE events_queue SET status = 'processing' WHERE id = {event}", "23514", hint=False)
        refused(connection, "INSERT INTO events_queue (topic, status) VALUES ('t', 'nonsense')", "23514", hint=False)


def test_every_column_of_the_runbook_exists(db):
    columns = {row.column_name for row in db.run("SELECT column_name FROM information_schema.columns WHERE table_name = 'events_queue'")}
    assert {"id", "topic", "payload", "status", "attempts", "last_error", "lease_token", "lease_expires_at", "created_at", "updated_at"} <= columns


def test_a_requeued_event_is_leased_again(db):
    (event,) = enqueue(db, 1)
    lease(db)
    expire(db, [event])
    db.run("UPDATE public.events_queue SET status='queued', lease_token=NULL, lease_expires_at=NULL WHERE status='leased' AND lease_expires_at < now()")
    assert status(db, event).status == "queued"
    assert lease(db)[0] == [event]


def test_ack_ends_the_event_and_says_what_it_held(db):
    ids = enqueue(db, 3)
    leased, token = lease(db, 2)
    assert held(db.run("SELECT * FROM ack_events(%s, %s)", (ids + [999], token))) == {ids[0]: True, ids[1]: True, ids[2]: False, 999: False}
    assert [status(db, i).status for i in ids] == ["done", "done", "queued"]
    assert set(held(db.run("SELECT * FROM ack_events(%s, %s)", (leased, token))).values()) == {False}


def test_whoever_lost_the_lease_can_do_nothing(db):
    (event,) = enqueue(db, 1)
    _, old = lease(db)
    expire(db, [event])
    ids, new = lease(db)
    assert ids == [event] and new != old
    for call in ("ack_events(%s, %s)", "fail_events(%s, %s, 'late')", "extend_events(%s, %s)", "release_events(%s, %s)", "process_events(%s, %s)"):
        assert held(db.run(f"SELECT * FROM {call}", ([event], old))) == {event: False}, call
    assert held(db.run("SELECT * FROM ack_events(%s, %s)", ([event], new))) == {event: True}


def test_an_expired_lease_is_lost_even_if_nobody_took_it(db):
    (event,) = enqueue(db, 1)
    _, token = lease(db)
    expire(db, [event])
    assert held(db.run("SELECT * FROM ack_events(%s, %s)", ([event], token))) == {event: False}
    assert held(db.run("SELECT * FROM extend_events(%s, %s)", ([event], token))) == {event: False}


def test_an_expired_lease_needs_no_rescuer(db):
    ids = enqueue(db, 3)
    lease(db, 3, ttl=1)
    assert lease(db)[0] == []
    time.sleep(1.05)  # the server's own clock is what is tested
    assert sorted(lease(db)[0]) == ids
    assert {status(db, i).attempts for i in ids} == {2}


def test_an_event_that_kills_its_worker_ends_in_error(db):
    (event,) = enqueue(db, 1, max_attempts=3)
    for attempt in (1, 2, 3):
        assert lease(db)[0] == [event]
        assert status(db, event).attempts == attempt
        expire(db, [event])
    assert lease(db)[0] == []
    row = status(db, event)
    assert row.status == "error" and "last attempt" in row.last_error


def test_failures_back_off_and_end_in_error(db):
    (event,) = enqueue(db, 1, max_attempts=3)
    for attempt, wait in ((1, 2), (2, 4)):
        ids, token = lease(db)
        (row,) = db.run("SELECT *, extract(epoch FROM run_at - clock_timestamp()) AS wait FROM fail_events(%s, %s, 'no luck')", (ids, token))
        assert row.held and row.status == "queued" and 0.8 * wait < row.wait < 1.2 * wait
        assert lease(db)[0] == []
        db.run("UPDATE events_queue SET run_at = now() WHERE id = %s", (event,))
    ids, token = lease(db)
    (row,) = db.run("SELECT * FROM fail_events(%s, %s, 'no luck at all')", (ids, token))
    assert row.held and row.status == "error"
    assert status(db, event).last_error == "no luck at all"


def test_a_permanent_failure_ends_at_once(db):
    (event,) = enqueue(db, 1)
    ids, token = lease(db)
    db.run("SELECT * FROM fail_events(%s, %s, 'hopeless', false)", (ids, token))
    assert (status(db, event).status, status(db, event).attempts) == ("error", 1)


def test_release_does_not_burn_the_attempt(db):
    (event,) = enqueue(db, 1)
    ids, token = lease(db)
    assert held(db.run("SELECT * FROM release_events(%s, %s)", (ids, token))) == {event: True}
    assert (status(db, event).status, status(db, event).attempts) == ("queued", 0)
    assert lease(db)[0] == [event]


def test_extend_keeps_the_lease(db):
    (event,) = enqueue(db, 1)
    ids, token = lease(db, ttl=10)
    (row,) = db.run("SELECT *, extract(epoch FROM lease_expires_at - now()) AS left FROM extend_events(%s, %s, 600)", (ids, token))
    assert row.held and 590 < row.left <= 601
    (row,) = db.run("SELECT *, extract(epoch FROM lease_expires_at - now()) AS left FROM extend_events(%s, %s, 5)", (ids, token))
    assert row.left > 500  # never shortened


def test_requeue_by_function_with_audit(db):
    ids = enqueue(db, 4)
    leased, token = lease(db, 3)
    db.run("SELECT * FROM fail_events(%s, %s, 'x', false)", ([ids[0]], token))
    expire(db, [ids[1]])
    rows = {row.id: (row.requeued, row.status) for row in db.run("SELECT * FROM requeue_events(%s)", (ids + [99],))}
    assert rows == {ids[0]: (True, "queued"), ids[1]: (True, "queued"), ids[2]: (False, "leased"), ids[3]: (False, "queued"), 99: (False, None)}
    assert status(db, ids[0]).attempts == 0
    (entry,) = db.run("SELECT * FROM audit_log WHERE action = 'requeue_events'")
    assert sorted(entry.detail["ids"]) == [ids[0], ids[1]] and entry.actor == "postgres"


def test_priority_run_at_and_order(db):
    low, normal = enqueue(db, 2, priority=10), enqueue(db, 2)
    first = enqueue(db, 1, priority=-5)
    db.run("SELECT enqueue_event('t', run_at => now() + interval '1 hour')")
    assert lease(db)[0] == first + normal + low


def test_topics_are_leased_apart(db):
    a, b = enqueue(db, 2, "a"), enqueue(db, 2, "b")
    assert lease(db, topic="b")[0] == b
    assert lease(db)[0] == a


def test_a_key_names_one_event(db):
    first = db.one("SELECT enqueue_event('t', '{\"v\": 1}', 'key')")
    assert db.one("SELECT enqueue_event('t', '{\"v\": 2}', 'key')") == first
    assert db.one("SELECT enqueue_event('u', '{\"v\": 2}', 'key')") != first
    ids, token = lease(db, topic="t")
    assert db.one("SELECT enqueue_event('t', '{}', 'key')") == first
    db.run("SELECT * FROM ack_events(%s, %s)", (ids, token))
    # done: the key still names it, and the effect does not happen again
    assert db.one("SELECT enqueue_event('t', '{}', 'key')") == first
    assert lease(db, topic="t")[0] == []
    assert status(db, first).payload == {"v": 1}


def test_a_key_whose_event_failed_starts_anew(db):
    first = db.one("SELECT enqueue_event('t', '{\"v\": 1}', 'key')")
    ids, token = lease(db)
    db.run("SELECT * FROM fail_events(%s, %s, 'x', false)", (ids, token))
    assert db.one("SELECT enqueue_event('t', '{\"v\": 2}', 'key')") == first
    row = status(db, first)
    assert (row.status, row.attempts, row.payload) == ("queued", 0, {"v": 2})


def test_a_key_whose_event_was_deleted_is_free(db):
    first = db.one("SELECT enqueue_event('t', '{}', 'key')")
    db.run("DELETE FROM events_queue")
    ids = in_parallel(*[lambda: db.one("SELECT enqueue_event('t', '{\"v\": 2}', 'key')")] * 10)
    assert len(set(ids)) == 1 and ids[0] != first
    assert db.run("SELECT id, payload FROM events_queue") == [(ids[0], {"v": 2})]


def test_a_key_used_by_a_transaction_that_cannot_be_seen(db):
    with db.connect(autocommit=False) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        db.run("SELECT enqueue_event('t', '{}', 'key')")
        refused(connection, "SELECT enqueue_event('t', '{}', 'key')", "40001", hint=False)


def test_fifty_sessions_with_one_key(db):
    ids = in_parallel(*[lambda: db.one("SELECT enqueue_event('t', '{}', 'the key')")] * 50)
    assert len(set(ids)) == 1
    assert db.one("SELECT count(*) FROM events_queue") == 1
    leased, token = lease(db)
    db.run("SELECT * FROM ack_events(%s, %s)", (leased, token))
    assert set(in_parallel(*[lambda: db.one("SELECT enqueue_event('t', '{}', 'the key')")] * 10)) == set(ids)
    assert db.one("SELECT count(*) FROM events_queue") == 1


def test_keys_in_batches(db):
    rows = db.run("""SELECT enqueue_events('t', ARRAY['{"n": 1}', '{"n": 2}', '{"n": 3}', '{"n": 4}']::jsonb[], ARRAY['a', NULL, 'b', 'a'])""")
    assert rows[0] == rows[3] and rows[1][0] is None and rows[2][0]
    assert db.one("SELECT count(*) FROM events_queue") == 3
    assert db.one("SELECT payload FROM events_queue WHERE idempotency_key = 'a'") == {"n": 1}

    def both(keys):
        return lambda: db.run("SELECT enqueue_events('t', array_agg('{}'::jsonb), array_agg(k)) FROM unnest(%s::text[]) k", (keys,))
    keys = [f"k{i}" for i in range(200)]
    in_parallel(*[both(keys), both(keys[::-1])] * 6)  # in either order, without deadlock
    assert db.one("SELECT count(*) FROM events_queue WHERE idempotency_key LIKE 'k%'") == 200


def test_enqueue_belongs_to_the_callers_transaction(db):
    with db.connect(autocommit=False) as connection:
        connection.execute("SELECT enqueue_event('t')")
        assert lease(db)[0] == []
        connection.rollback()
    assert db.one("SELECT count(*) FROM events_queue") == 0


def test_concurrent_leases_never_overlap(db):
    enqueue(db, 2000)

    def take():
        mine = []
        with db.connect() as connection:
            while rows := connection.execute("SELECT id FROM lease_events('t', 17)").fetchall():
                mine += [row.id for row in rows]
        return mine

    taken = in_parallel(*[take] * 8)
    everything = [i for mine in taken for i in mine]
    assert len(everything) == len(set(everything)) == 2000


HANDLER = """CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean)
             LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO effects SELECT i FROM unnest(ids) i;
    IF EXISTS (SELECT FROM unnest(payloads) p WHERE p ->> 'n' = 'crash') THEN RAISE 'handler crashed'; END IF;
    RETURN QUERY SELECT i, 'wrong number'::text, false FROM unnest(ids, payloads) AS e(i, p) WHERE (p ->> 'n')::int < 0;
END $$"""


@pytest.fixture
def handler(db):
    db.run("CREATE TABLE effects (event_id bigint)")
    db.run(HANDLER)
    db.run("SELECT register_topic('t', 'handle', 3, 'a test')")
    return db


def process(db):
    ids, token = lease(db)
    return {row.id: row for row in db.run("SELECT * FROM process_events(%s, %s)", (ids, token))}


def test_process_runs_the_handler_and_acknowledges(handler):
    ids = enqueue(handler, 5)
    assert {row.status for row in process(handler).values()} == {"done"}
    assert sorted(row[0] for row in handler.run("SELECT event_id FROM effects")) == ids
    assert status(handler, ids[0]).max_attempts == 3  # the topic's


def test_a_poisoned_event_does_not_hurt_its_batch(handler):
    ids = enqueue(handler, 9)
    crash = handler.one("SELECT enqueue_event('t', '{\"n\": \"crash\"}')")
    corrupt = handler.one("SELECT enqueue_event('t', '{\"n\": \"not a number\"}')")
    negative = handler.one("SELECT enqueue_event('t', '{\"n\": -1}')")
    outcome = process(handler)
    assert {outcome[i].status for i in ids} == {"done"}
    assert outcome[crash].status == "queued" and "handler crashed" in outcome[crash].error
    assert outcome[corrupt].status == "error" and "22P02" in outcome[corrupt].error
    assert outcome[negative].status == "error" and outcome[negative].error == "wrong number"
    effects = [row[0] for row in handler.run("SELECT event_id FROM effects ORDER BY 1")]
    assert effects == ids + [negative]  # each once; the handler itself keeps what it rejects


def test_an_unknown_topic_is_a_permanent_error_that_names_the_known(handler):
    event = handler.one("SELECT enqueue_event('mystery')")
    outcome = process(handler)[event]
    assert outcome.status == "error" and '"mystery"' in outcome.error and "known topics: " in outcome.error and ", t, " in outcome.error


def test_processing_keeps_others_from_taking_the_event(handler):
    (event,) = enqueue(handler, 1)
    ids, token = lease(handler, ttl=1)
    with handler.connect(autocommit=False) as connection:
        connection.execute("SELECT * FROM process_events(%s, %s)", (ids, token))
        time.sleep(1.1)  # the lease is over, the transaction is not
        assert lease(handler)[0] == []
        connection.commit()
    assert lease(handler)[0] == [] and status(handler, event).status == "done"
    assert handler.one("SELECT count(*) FROM effects") == 1


def test_health_counts_every_status_and_ages_only_what_waits(handler):
    handler.run("UPDATE events_queue SET created_at = now()")
    enqueue(handler, 10, "a")
    enqueue(handler, 4, "b")
    handler.run("SELECT enqueue_event('a', run_at => now() + interval '1 day')")
    ids, token = lease(handler, 5, topic="a")
    handler.run("SELECT * FROM ack_events(%s, %s)", (ids[:3], token))
    handler.run("SELECT * FROM fail_events(%s, %s, 'x', false)", ([ids[3]], token))
    handler.run("UPDATE events_queue SET created_at = now() - interval '2 days', updated_at = now() - interval '2 days' WHERE status IN ('done', 'error')")
    handler.run("UPDATE events_queue SET run_at = now() - interval '100 s' WHERE topic = 'b'")
    health = {(row.topic, row.status): row for row in handler.run("SELECT * FROM public.vw_events_queue_health")}
    assert {key: row.ct for key, row in health.items()} == {
        ("a", "queued"): 6, ("a", "leased"): 1, ("a", "done"): 3, ("a", "error"): 1, ("b", "queued"): 4}
    assert health["a", "done"].p95_age_sec is None and health["a", "error"].p95_age_sec is None and health["a", "leased"].p95_age_sec is None
    assert 0 <= health["a", "queued"].p95_age_sec < 60
    assert 100 <= health["b", "queued"].p95_age_sec < 160
    assert all(row.last_activity for row in health.values())


def test_health_view_has_the_runbooks_columns(db):
    columns = [row.column_name for row in db.run("SELECT column_name FROM information_schema.columns WHERE table_name = 'vw_events_queue_health' ORDER BY ordinal_position")]
    assert columns == ["topic", "status", "ct", "p95_age_sec", "last_activity", "oldest_ready_sec", "stuck_ct", "retry_ct", "deferred_ct",
                       "per_minute", "drain_sec", "topic_state"]


def test_health_reads_no_ended_event(db):
    plan = db.run("EXPLAIN (COSTS OFF) SELECT * FROM vw_events_queue_health")
    text = "\n".join(row[0] for row in plan)
    assert "events_queue_live" in text and "events_queue_done" not in text and "events_queue_error" not in text


def test_counts_stay_true_whatever_moves_the_rows(db):
    ids = enqueue(db, 300)
    for size in (1, 2, 3) * 30:
        leased, token = lease(db, size)
        db.run("SELECT * FROM ack_events(%s, %s)", (leased, token))
    leased, token = lease(db, 50)
    db.run("SELECT * FROM fail_events(%s, %s, 'x', false)", (leased, token))
    db.run("UPDATE events_queue SET status = 'queued' WHERE id = %s", (leased[0],))
    db.run("UPDATE events_queue SET status = 'done' WHERE id = %s", (leased[1],))
    db.run("DELETE FROM events_queue WHERE id = %s", (leased[2],))
    db.run("DELETE FROM events_queue WHERE status = 'done' AND id = %s", (ids[0],))
    db.run("SELECT * FROM requeue_events(%s)", (leased[3:5],))
    db.run("INSERT INTO events_queue (topic, status) VALUES ('t', 'done')")
    counted = "SELECT status, count(*) AS ct FROM events_queue GROUP BY status ORDER BY 1"
    shown = "SELECT status, ct FROM vw_events_queue_health ORDER BY 1"
    assert db.run(counted) == db.run(shown)
    with db.connect() as connection:
        for _ in range(800):  # each adds a row to the tally; unfolded they would all still be there (0.98 ** 800 is 1e-7)
            (row,) = connection.execute("SELECT id, lease_token FROM lease_events('t', 1)").fetchall()
            connection.execute("SELECT * FROM ack_events(%s, %s)", ([row.id], row.lease_token))
            connection.execute("SELECT enqueue_event('t')")
    assert db.one("SELECT count(*) FROM event_tally") < 800
    assert db.run(counted) == db.run(shown)
    db.run("TRUNCATE events_queue")
    assert db.run(shown) == []


@pytest.mark.parametrize("queue", ["events_queue", "marketplace_discovery_queue"])
def test_autovacuum_is_set_to_two_percent(db, queue):
    for partition in (f"{queue}_live", f"{queue}_done", f"{queue}_error"):
        options = db.one("SELECT reloptions FROM pg_class WHERE relname = %s", (partition,))
        assert {"autovacuum_vacuum_scale_factor=0.02", "autovacuum_analyze_scale_factor=0.02"} <= set(options)


def test_bad_input_is_refused(db):
    with db.connect() as connection:
        for call, code in (
                ("lease_events('t', 0)", "22023"), ("lease_events('t', -1)", "22023"), ("lease_events('t', 10001)", "22023"), ("lease_events('t', NULL)", "22004"),
                ("lease_events('t', 1, 0)", "22023"), ("lease_events('t', 1, 86401)", "22023"), ("lease_events('t', 1, NULL)", "22004"),
                ("ack_events(NULL, gen_random_uuid())", "22004"), ("ack_events('{1}', NULL)", "22004"), ("ack_events('{NULL}', gen_random_uuid())", "22004"),
                ("fail_events('{1}', NULL, 'x')", "22004"), ("fail_events('{1}', gen_random_uuid(), 'x', NULL)", "22004"),
                ("extend_events('{1}', gen_random_uuid(), 100000)", "22023"), ("release_events(NULL, NULL)", "22004"), ("requeue_events(NULL)", "22004"),
                ("process_events(NULL, gen_random_uuid())", "22004"),
                ("enqueue_event(NULL)", "22004"), ("enqueue_event('')", "22023"), ("enqueue_event('Upper')", "22023"), ("enqueue_event('a b')", "22023"),
                ("enqueue_event(repeat('x', 101))", "22023"), ("enqueue_event('ütf')", "22023"),
                ("enqueue_event('t', NULL)", "22004"), ("enqueue_event('t', '[]')", "22023"), ("enqueue_event('t', 'null')", "22023"), ("enqueue_event('t', '7')", "22023"),
                ("enqueue_event('t', '{}', '')", "22023"), ("enqueue_event('t', '{}', repeat('k', 501))", "22023"),
                ("enqueue_event('t', priority => 101)", "22023"), ("enqueue_event('t', priority => NULL)", "22004"),
                ("enqueue_event('t', max_attempts => 0)", "22023"), ("enqueue_event('t', max_attempts => 101)", "22023"),
                ("enqueue_event('t', run_at => 'infinity')", "22023"),
                ("enqueue_events('t', NULL)", "22004"), ("enqueue_events('t', ARRAY[NULL]::jsonb[])", "22023"),
                ("enqueue_events('t', ARRAY['{}']::jsonb[], ARRAY['a', 'b'])", "2202E"),
                ("register_topic(NULL)", "22004"), ("enqueue_events('t', '{}')", "22023"), ("ack_events('{}', gen_random_uuid())", "22023"),
                ("register_topic('marketplace.discovery', NULL)", "22023"), ("enqueue_events('t', array_fill('{}'::jsonb, ARRAY[100001]))", "54000"),
                ("ack_events(array_fill(1::bigint, ARRAY[1000000]), gen_random_uuid())", "54000"), ("cancel_events(NULL)", "22004"), ("discard_events('{}')", "22023"),
                ("enqueue_event('t', jsonb_build_object('x', repeat('y', 2097152)))", "54000"), ("enqueue_event('t', priority => -101)", "22023"),
                ("enqueue_event('t', ordering_key => '')", "22023"), ("enqueue_event('t', ordering_key => repeat('k', 201))", "22023"),
                ("enqueue_event('t', after => '{999}')", "22023"), ("enqueue_event('t', after => '{NULL}')", "22004"),
                ("enqueue_event('t', idempotency_key => 'k', after => '{1}')", "22023"), ("enqueue_events('t', '{\"{}\"}', ordering_keys => '{a,b}')", "2202E"),
                ("ack_events('{1,2}', gen_random_uuid(), '{\"{}\"}')", "2202E"), ("expire_events(0)", "22023"), ("expire_events(NULL)", "22023"),
                ("configure_topic('t', NULL)", "22004"), ("configure_topic('t', '[]')", "22023"), ("configure_topic('t', '{}')", "22023"),
                ("configure_topic('t', '{\"no such\": 1}')", "22023"), ("configure_topic('learning.reward', '{\"max_leased\": 0}')", "22023"),
                ("configure_topic('learning.reward', '{\"max_leased\": \"many\"}')", "22023"), ("configure_topic('learning.reward', '{\"keep_done\": \"-1 s\"}')", "22023"),
                ("configure_topic('t', '{\"max_leased\": 1}')", "42704"), ("pause_topic('t')", "42704"), ("pause_topic(NULL)", "22004"),
                ("register_topic('T T', 'now')", "22023"), ("register_topic('t', 'now')", "42P13")):
            refused(connection, f"SELECT * FROM {call}", code)
        refused(connection, "SELECT enqueue_event('t', '{\"broken')", "22P02", hint=False)
        assert connection.execute("SELECT count(*) FROM events_queue").fetchone()[0] == 0
        # odd but right
        assert connection.execute("SELECT enqueue_event('t', %s, %s)", (psycopg.types.json.Jsonb({"ключ": "🦀"}), "ключ 🦀")).fetchone()[0]


def test_notifications_only_while_a_worker_waits(db):
    def notified():
        with db.connect() as listener:
            listener.execute("LISTEN pgsteward")
            for _ in range(5):
                db.run("SELECT enqueue_event('t')")
            return [n.payload for n in listener.notifies(timeout=0.3)]
    assert notified() == []
    beat = "SELECT worker_beat('w', 'h', 1, '0', now(), 'running', %s, 0, 0)"
    db.run(beat, (True,))
    assert set(notified()) == {"events"}
    db.run(beat, (False,))
    assert notified() == []
