"""What a topic may say about its events: limits, order, waiting for others, keys, retries, retention, states."""

import time

import pytest
from conftest import in_parallel, refused, wait_until


def enqueue(db, topic="t", count=1, **arguments):
    """Enqueue events one by one; their ids."""
    named = "".join(f", {name} => %({name})s" for name in arguments)
    return [db.one(f"SELECT enqueue_event(%(topic)s{named})", {"topic": topic} | arguments) for _ in range(count)]


def lease(db, topic="t", limit=100, ttl=60):
    """Lease events of a topic; their ids and the token."""
    rows = db.run("SELECT * FROM lease_events(%s, %s, %s, 'tester')", (topic, limit, ttl))
    return [row.id for row in rows], rows[0].lease_token if rows else None


def ack(db, ids, token):
    """Ack events; the ids that were held."""
    return [row.id for row in db.run("SELECT * FROM ack_events(%s, %s)", (ids, token)) if row.held]


def fail(db, ids, token, retryable=True):
    """Fail events; the rows of the answer."""
    return db.run("SELECT * FROM fail_events(%s, %s, 'x', %s)", (ids, token, retryable))


def row_of(db, event):
    """The row of an event."""
    (row,) = db.run("SELECT * FROM events_queue WHERE id = %s", (event,))
    return row


def configure(db, topic="t", **settings):
    """Register a topic without a handler and change its rules."""
    db.run("SELECT register_topic(%s)", (topic,))
    pairs = ", ".join(f'"{name}": {value}' for name, value in settings.items())
    (row,) = db.run("SELECT * FROM configure_topic(%s, %s)", (topic, f"{{{pairs}}}"))
    return row


def make_due(db, event):
    """Let the retry time of an event come."""
    db.run("UPDATE events_queue SET run_at = now() WHERE id = %s", (event,))


# Priority

def test_a_low_priority_waits_longer_but_not_for_ever(db):
    (old,) = enqueue(db, priority=10)
    (new,) = enqueue(db)
    assert lease(db, limit=1)[0] == [new]  # ten steps are worth five minutes
    db.run("UPDATE events_queue SET turn_at = turn_at - interval '301 seconds' WHERE id = %s", (old,))
    urgent = enqueue(db, count=5)
    assert lease(db, limit=1)[0] == [old]
    assert lease(db)[0] == urgent


# Limits

def test_no_more_than_max_leased_over_all_workers(db):
    configure(db, max_leased=3)
    ids = enqueue(db, count=10)
    batches = in_parallel(*[lambda: lease(db, limit=2) for _ in range(6)])
    leased = [event for batch, _ in batches for event in batch]
    assert len(leased) == 3 and set(leased) <= set(ids)
    assert lease(db)[0] == []
    batch, token = next(pair for pair in batches if pair[0])
    ack(db, batch[:1], token)
    assert len(lease(db)[0]) == 1


@pytest.mark.parametrize("ending", ["fail_events(%s, %s, 'x')", "fail_events(%s, %s, 'x', false)", "release_events(%s, %s)", "ack_events(%s, %s)"])
def test_every_ending_frees_the_slot(db, ending):
    configure(db, max_leased=1)
    enqueue(db, count=2)
    ids, token = lease(db)
    db.run(f"SELECT * FROM {ending}", (ids, token))
    assert len(lease(db)[0]) == 1


def test_an_expired_lease_frees_the_slot_and_an_extended_one_keeps_it(db):
    configure(db, max_leased=1)
    first, second = enqueue(db, count=2)
    ids, token = lease(db, ttl=1)
    db.run("SELECT * FROM extend_events(%s, %s, 3)", (ids, token))
    assert lease(db)[0] == []
    assert wait_until(lambda: lease(db, ttl=1)[0], 10) == [first]
    assert ids == [first] and row_of(db, second).status == "queued"


def test_no_more_than_the_rate(db):
    configure(db, rate_limit=5, rate_window='"1 hour"')
    enqueue(db, count=20)
    assert sum(len(ids) for ids, _ in in_parallel(*[lambda: lease(db, limit=4) for _ in range(5)])) == 5
    assert lease(db)[0] == []
    db.run("UPDATE topic_usage SET refilled_at = refilled_at - interval '12 minutes'")
    assert len(lease(db)[0]) == 1
    db.run("UPDATE topic_usage SET refilled_at = refilled_at - interval '1 day'")
    assert len(lease(db)[0]) == 5  # never more than one window's worth at once


# Order

def test_one_key_runs_in_order_and_one_at_a_time(db):
    a = enqueue(db, count=3, ordering_key="a")
    b = enqueue(db, count=2, ordering_key="b")
    free = enqueue(db)
    ids, token = lease(db)
    assert sorted(ids) == sorted([a[0], b[0]] + free)
    assert lease(db)[0] == []
    ack(db, [a[0]], token)
    (second,), token_2 = lease(db)
    assert second == a[1]
    fail(db, [second], token_2)
    assert lease(db)[0] == []  # a retry keeps its place
    make_due(db, second)
    (again,), token_3 = lease(db)
    assert again == second
    fail(db, [again], token_3, retryable=False)
    assert lease(db)[0] == [a[2]]  # one that failed for good lets the next pass


def test_order_of_a_batch_and_of_sessions(db):
    db.run("SELECT enqueue_events('t', array_agg('{}'::jsonb), ordering_keys => array_agg('k'::text)) FROM generate_series(1, 5)")
    in_parallel(*[lambda: enqueue(db, count=3, ordering_key="k") for _ in range(4)])
    seen = []
    while True:
        ids, token = lease(db)
        if not ids:
            break
        assert len(ids) == 1
        seen += ids
        ack(db, ids, token)
    assert len(seen) == 17 and seen == sorted(seen)


def test_more_than_one_of_a_key_at_a_time_if_the_topic_says_so(db):
    configure(db, key_concurrency=2)
    ids = enqueue(db, count=4, ordering_key="k")
    leased, token = lease(db)
    assert leased == ids[:2]
    ack(db, ids[1:2], token)
    assert lease(db)[0] == ids[2:3]


def test_a_pause_between_events_of_a_key(db):
    configure(db, key_interval='"1 hour"')
    first, second = enqueue(db, count=2, ordering_key="k")
    (other,) = enqueue(db, ordering_key="other")
    ids, token = lease(db)
    assert sorted(ids) == [first, other]
    ack(db, ids, token)
    assert lease(db)[0] == []
    assert 3500 < db.one("SELECT extract(epoch FROM run_at - now()) FROM events_queue WHERE id = %s", (second,)) <= 3600


def test_a_requeued_event_of_a_key_gets_in_line(db):
    first, second = enqueue(db, count=2, ordering_key="k")
    ids, token = lease(db)
    fail(db, ids, token, retryable=False)
    ids, token = lease(db)
    assert ids == [second]
    db.run("SELECT * FROM requeue_events(%s)", ([first],))
    assert lease(db)[0] == []
    ack(db, ids, token)
    assert lease(db)[0] == [first]


def test_cancelling_the_first_of_a_key_lets_the_next_pass(db):
    first, second = enqueue(db, count=2, ordering_key="k")
    db.run("SELECT * FROM cancel_events(%s)", ([first],))
    assert lease(db)[0] == [second]


# Waiting for others

def test_an_event_waits_until_all_its_parents_are_done(db):
    parents = enqueue(db, count=3)
    (child,) = enqueue(db, "child", after=parents)
    ids, token = lease(db)
    ack(db, ids[:2], token)
    assert lease(db, "child")[0] == []
    ack(db, ids[2:], token)
    assert lease(db, "child")[0] == [child]


def test_parents_that_are_done_already_do_not_hold_it_back(db):
    ids, token = (enqueue(db, count=2), None)
    ids, token = lease(db)
    ack(db, ids[:1], token)
    (child,) = enqueue(db, "child", after=ids)
    assert row_of(db, child).waits == 1
    ack(db, ids[1:], token)
    assert lease(db, "child")[0] == [child]
    (late,) = enqueue(db, "child", after=ids)
    assert lease(db, "child")[0] == [late]


def test_a_failed_parent_keeps_it_waiting_and_a_discarded_one_ends_it(db):
    parents = enqueue(db, count=2)
    (child,) = enqueue(db, "child", after=parents)
    ids, token = lease(db)
    fail(db, ids, token, retryable=False)
    assert row_of(db, child).status == "queued"
    assert {row.id: row.waiting_ct for row in db.run("SELECT * FROM vw_dead_letter_queue")} == {parents[0]: 1, parents[1]: 1}
    db.run("SELECT * FROM requeue_events(%s)", ([parents[0]],))
    ids, token = lease(db)
    ack(db, ids, token)
    assert row_of(db, child).waits == 1
    db.run("SELECT * FROM discard_events(%s, 'not needed')", ([parents[1]],))
    assert (row_of(db, child).status, f"event {parents[1]}" in row_of(db, child).last_error) == ("error", True)


# Keys

def test_rearm_ended_is_unique_while_pending(db):
    configure(db, rearm='"ended"')
    (first,) = enqueue(db, idempotency_key="k")
    assert enqueue(db, idempotency_key="k") == [first]
    ids, token = lease(db)
    assert enqueue(db, idempotency_key="k") == [first]
    ack(db, ids, token)
    (second,) = enqueue(db, idempotency_key="k")
    assert second != first and row_of(db, first).status == "done" and lease(db)[0] == [second]


def test_rearm_started_frees_the_key_with_the_lease(db):
    configure(db, rearm='"started"')
    (first,) = enqueue(db, idempotency_key="k")
    assert enqueue(db, idempotency_key="k") == [first]
    ids, token = lease(db)
    (second,) = enqueue(db, idempotency_key="k")
    assert second != first
    assert ack(db, ids, token) == [first] and lease(db)[0] == [second]


# Retries

def test_each_topic_has_its_own_retry_policy(db):
    configure(db, retry_base='"10 seconds"', retry_factor=3, retry_cap='"1 minute"', retry_jitter=0, max_attempts=4)
    (event,) = enqueue(db)
    for wait in (10, 30, 60):
        ids, token = lease(db)
        (row,) = db.run("SELECT extract(epoch FROM run_at - clock_timestamp()) AS wait FROM fail_events(%s, %s, 'x')", (ids, token))
        assert wait - 1 < row.wait <= wait
        make_due(db, event)
    ids, token = lease(db)
    assert fail(db, ids, token)[0].status == "error"


def test_null_sets_a_rule_back(db):
    assert configure(db, max_leased=3, keep_done='"1 day"').max_leased == 3
    row = configure(db, max_leased="null", keep_done="null")
    assert row.max_leased is None and row.keep_done.days == 7


# States

def test_a_paused_topic_is_not_leased_and_goes_on_when_resumed(db):
    (event,) = enqueue(db)
    assert db.one("SELECT pause_topic('t')") == "active"
    with db.connect() as connection:
        refused(connection, "SELECT * FROM lease_events('t')", "55000")
    assert db.run("SELECT * FROM lease_events()") == []
    (other,) = enqueue(db)
    assert db.one("SELECT resume_topic('t')") == "paused"
    assert lease(db)[0] == [event, other]
    assert [row.detail["after"] for row in db.run("SELECT detail FROM audit_log WHERE action = 'set_topic_state' ORDER BY id")] == ["paused", "active"]


def test_what_is_leased_when_its_topic_is_paused_may_be_finished(db):
    enqueue(db)
    ids, token = lease(db)
    db.run("SELECT pause_topic('t')")
    assert ack(db, ids, token) == ids


def test_a_draining_topic_refuses_new_events_and_empties(db):
    (event,) = enqueue(db)
    db.run("SELECT drain_topic('t')")
    with db.connect() as connection:
        for call in ("enqueue_event('t')", "enqueue_events('t', ARRAY['{}'::jsonb])"):
            refused(connection, f"SELECT {call}", "55000")
    assert lease(db)[0] == [event]
    db.run("SELECT resume_topic('t')")
    enqueue(db)


def test_the_discovery_queue_is_paused_by_its_topic(db):
    db.run("INSERT INTO interest_catalog (domain, category, tag) VALUES ('d', 'c', 't')")
    db.run("SELECT enqueue_discovery_item(id) FROM interest_catalog")
    db.run("SELECT pause_topic('marketplace.discovery')")
    assert db.run("SELECT * FROM lease_discovery_items()") == []
    db.run("SELECT resume_topic('marketplace.discovery')")
    assert len(db.run("SELECT * FROM lease_discovery_items()")) == 1


# Fair shares

def test_topics_share_a_lease(db):
    db.run("CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS 'SELECT NULL::bigint, NULL, NULL::boolean LIMIT 0'")
    for topic, count in (("big", 500), ("small", 5), ("middle", 50)):
        db.run("SELECT register_topic(%s, 'public.handle')", (topic,))
        db.run("SELECT enqueue_events(%s, array_agg('{}'::jsonb)) FROM generate_series(1, %s)", (topic, count))
    enqueue(db, "learning.reward", 3)  # registered without a handler: by name only
    rows = db.run("SELECT topic_name, count(*) AS ct FROM lease_events(NULL, 90) GROUP BY 1 ORDER BY 1")
    assert {row.topic_name: row.ct for row in rows} in ({"big": 43, "middle": 42, "small": 5}, {"big": 42, "middle": 43, "small": 5},
                                                        {"big": 55, "middle": 30, "small": 5}, {"big": 35, "middle": 50, "small": 5}, {"big": 45, "middle": 40, "small": 5}, {"big": 40, "middle": 45, "small": 5})
    assert db.one("SELECT count(DISTINCT lease_token) FROM events_queue WHERE status = 'leased'") == 1
    assert len(db.run("SELECT * FROM lease_events('learning.reward')")) == 3


# Cancel, discard, results, retention

def test_cancelling_ends_waiting_and_leased_events_with_audit(db):
    waiting, leased = enqueue(db, count=2)
    ids, token = lease(db, limit=1)
    assert ids == [waiting]
    rows = {row.id: (row.cancelled, row.status) for row in db.run("SELECT * FROM cancel_events(%s, 'a mistake')", ([waiting, leased, 99],))}
    assert rows == {waiting: (True, "error"), leased: (True, "error"), 99: (False, None)}
    assert row_of(db, leased).last_error == "cancelled by postgres: a mistake"
    assert ack(db, ids, token) == []
    (entry,) = db.run("SELECT * FROM audit_log WHERE action = 'cancel_events'")
    assert sorted(entry.detail["ids"]) == [waiting, leased] and entry.detail["reason"] == "a mistake" and entry.actor == "postgres"


def test_dead_letters_are_listed_requeued_and_discarded(db):
    ids = enqueue(db, count=3, payload='{"n": 1}', idempotency_key=None)
    leased, token = lease(db)
    fail(db, leased, token, retryable=False)
    letters = db.run("SELECT * FROM vw_dead_letter_queue ORDER BY id")
    assert [row.id for row in letters] == ids and letters[0].item == {"n": 1} and letters[0].last_error == "x" and letters[0].leased_by == "tester"
    assert {row.id: row.discarded for row in db.run("SELECT * FROM discard_events(%s)", (ids[:2] + [99],))} == {ids[0]: True, ids[1]: True, 99: False}
    assert [row.id for row in db.run("SELECT * FROM vw_dead_letter_queue")] == ids[2:]
    assert db.one("SELECT count(*) FROM audit_log WHERE action = 'discard_events' AND actor = 'postgres'") == 1


def test_a_discarded_event_frees_its_key(db):
    (event,) = enqueue(db, idempotency_key="k")
    ids, token = lease(db)
    fail(db, ids, token, retryable=False)
    db.run("SELECT * FROM discard_events(%s)", (ids,))
    assert db.one("SELECT count(*) FROM event_keys") == 0
    assert enqueue(db, idempotency_key="k") != [event]


def test_results_are_kept(db):
    ids = enqueue(db, count=2)
    leased, token = lease(db)
    db.run("SELECT * FROM ack_events(%s, %s, ARRAY['{\"sum\": 3}', NULL]::jsonb[])", (leased, token))
    assert [row_of(db, event).result for event in ids] == [{"sum": 3}, None]


def test_a_handler_gives_results(db):
    db.run("""CREATE FUNCTION double(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean, result jsonb) LANGUAGE sql AS
              $$ SELECT i, CASE WHEN p ? 'bad' THEN 'bad' END, false, to_jsonb((p ->> 'n')::int * 2) FROM unnest(ids, payloads) AS e (i, p) $$""")
    db.run("SELECT register_topic('t', 'double')")
    good = db.one("SELECT enqueue_event('t', '{\"n\": 4}')")
    bad = db.one("SELECT enqueue_event('t', '{\"n\": 4, \"bad\": 1}')")
    rows = db.run("SELECT p.* FROM (SELECT lease_token, array_agg(id) AS ids FROM lease_events() GROUP BY 1) l, process_events(l.ids, l.lease_token) p")
    assert {row.id: row.status for row in rows} == {good: "done", bad: "error"}
    assert row_of(db, good).result == 8 and row_of(db, bad).result is None


def test_done_events_of_a_topic_that_keeps_none_are_gone_and_counted_in_the_pace(db):
    configure(db, keep_done='"0"')
    enqueue(db, count=10)
    ids, token = lease(db, limit=5)
    ack(db, ids, token)
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'done'") == 0
    (row,) = db.run("SELECT * FROM vw_events_queue_health")
    assert (row.status, row.ct, row.per_minute, row.drain_sec) == ("queued", 5, 1.0, 300)


@pytest.mark.parametrize("queue", ["events", "discovery_items"])
def test_ended_items_expire_in_batches_by_the_rules_of_their_topic(db, queue):
    if queue == "events":
        configure(db, keep_done='"1 day"', keep_error='"10 days"')
        enqueue(db, count=30)
        enqueue(db, idempotency_key="kept")
    else:
        db.run("SELECT * FROM configure_topic('marketplace.discovery', '{\"keep_done\": \"1 day\", \"keep_error\": \"10 days\"}')")
        db.run("INSERT INTO interest_catalog (domain, category, tag) SELECT 'd', 'c', 't' || i FROM generate_series(1, 31) i")
        db.run("SELECT enqueue_discovery_item(id) FROM interest_catalog")
    call = "lease_events('t')" if queue == "events" else "lease_discovery_items(100)"
    rows = db.run(f"SELECT * FROM {call}")
    ids, token = [row.id for row in rows], rows[0].lease_token
    db.run(f"SELECT * FROM ack_{queue}(%s, %s)", (ids[:21], token))
    db.run(f"SELECT * FROM fail_{queue}(%s, %s, 'x', false)", (ids[21:], token))
    expire = f"SELECT expire_{queue}(%s, now() + %s::interval)"
    assert db.one(expire, (100, "23 hours")) == 0
    assert [db.one(expire, (15, "25 hours")) for _ in range(3)] == [15, 6, 0]
    assert db.one(expire, (100, "11 days")) == 10
    assert db.one("SELECT count(*) FROM event_keys") == 0
    table = "events_queue" if queue == "events" else "marketplace_discovery_queue"
    assert db.one(f"SELECT count(*) FROM {table}") == 0
    assert db.one("SELECT coalesce(sum(ct), 0) FROM event_tally WHERE status IN ('done', 'error')") == 0


def test_rows_copied_into_the_inbox_are_enqueued(db):
    with db.connect() as connection, connection.cursor() as cursor:
        with cursor.copy("COPY events_inbox (topic, payload, idempotency_key) FROM STDIN") as copy:
            for n in range(100):
                copy.write_row(("t", '{"n": %d}' % (n // 2), f"key {n // 2}"))
        refused(connection, "INSERT INTO events_inbox (topic, payload) VALUES ('t', '[]')", "22023")
        connection.execute("INSERT INTO events_inbox (topic, priority, run_at) VALUES ('t', 5, now() + interval '1 hour')")
    rows = db.run("SELECT payload, deferred, priority FROM events_queue ORDER BY id")
    assert db.one("SELECT count(*) FROM events_inbox") == 0
    assert len(rows) == 51 and rows[0].payload == {"n": 0} and (rows[50].deferred, rows[50].priority) == (True, 5)


# Searching the line

def test_a_search_that_goes_on_where_the_last_ended_misses_nothing(db):
    with db.connect() as connection:
        def leased(count):
            return [row.id for row in connection.execute("SELECT id FROM lease_events('t', %s)", (count,)).fetchall()]
        enqueue(db, count=6)
        first = leased(2)
        (urgent,) = enqueue(db, priority=-100)
        assert leased(2) == [first[1] + 1, first[1] + 2]  # it went on behind what it had found
        assert leased(10) == [urgent, first[1] + 3, first[1] + 4]  # and looked at the front when it found too few
        more = enqueue(db, count=4)
        assert leased(2) == more[:2]
        (urgent,) = enqueue(db, priority=-100)
        time.sleep(0.51)  # the session's own clock is what is tested
        assert leased(2) == [urgent, more[2]]


def test_a_page_of_leases_that_hold_does_not_hide_an_expired_one(db):
    db.run("SELECT enqueue_events('t', array_agg('{}'::jsonb)) FROM generate_series(1, 10001)")
    with db.connect() as connection:
        connection.execute("SELECT count(*) FROM lease_events('t', 10000)")
        connection.execute("SELECT count(*) FROM lease_events('t', 10000)")
    expired = db.one("SELECT max(id) - 1 FROM events_queue")
    db.run("UPDATE events_queue SET lease_expires_at = now() - interval '1 s' WHERE id = %s", (expired,))
    assert lease(db)[0] == [expired]


def test_a_lease_is_a_hot_update(db):
    db.run("SELECT enqueue_events('t', array_agg('{}'::jsonb)) FROM generate_series(1, 1000)")
    with db.connect() as connection:
        for _ in range(20):
            connection.execute("SELECT count(*) FROM lease_events('t', 50)")
        connection.execute("SELECT pg_stat_force_next_flush()")
    counts = wait_until(lambda: [row for row in db.run("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'events_queue_live'") if row.n_tup_upd >= 1000], 10)
    assert counts[0].n_tup_hot_upd > 900
    assert db.run("""SELECT a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid, pg_attribute a
                     WHERE c.relname IN ('events_queue_live', 'marketplace_discovery_queue_live') AND a.attrelid = c.oid
                       AND a.attname IN ('status', 'attempts', 'lease_token', 'lease_expires_at', 'leased_by', 'updated_at', 'watched', 'again')
                       AND (a.attnum = ANY (i.indkey) OR pg_get_expr(i.indpred, i.indrelid) ~ ('\\m' || a.attname || '\\M'))""") == []


# What others may not hold up

def test_limited_topics_neither_deadlock_nor_hold_up_others(db):
    db.run("CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS 'SELECT NULL::bigint, NULL, NULL::boolean LIMIT 0'")
    for topic in ("a", "b", "free"):
        db.run("SELECT register_topic(%s, 'public.handle')", (topic,))
        if topic != "free":
            db.run("SELECT * FROM configure_topic(%s, '{\"max_leased\": 50}')", (topic,))
        enqueue(db, topic, 30)

    def work():
        for _ in range(30):
            rows = db.run("SELECT id, lease_token FROM lease_events(NULL, 10)")
            if rows:
                db.run("SELECT * FROM release_events(%s, %s)", ([row.id for row in rows], rows[0].lease_token))

    in_parallel(*[work] * 6)
    with db.connect(autocommit=False) as holder:
        holder.execute("SELECT * FROM lease_events('a', 1)")
        with db.connect() as other:
            other.execute("SET statement_timeout = '5s'")
            topics = {row.topic_name for row in other.execute("SELECT topic_name FROM lease_events(NULL, 90)").fetchall()}
        holder.rollback()
    assert topics == {"b", "free"}


def test_a_limit_counts_work_that_outlives_its_lease(db):
    configure(db, max_leased=1)
    enqueue(db, count=2)
    ids, token = lease(db, ttl=1)
    with db.connect(autocommit=False) as working:
        working.execute("SELECT * FROM hold_events(%s, %s)", (ids, token))
        time.sleep(1.1)  # the server's own clock is what is tested
        assert lease(db)[0] == []
        working.execute("SELECT * FROM ack_events(%s, %s, NULL, now() - interval '1 minute')", (ids, token))
        working.commit()
    assert len(lease(db)[0]) == 1


def test_a_lease_does_not_wait_for_the_ordering_key_of_a_spent_event(db):
    (spent,) = enqueue(db, ordering_key="k", max_attempts=1)
    lease(db)
    db.run("UPDATE events_queue SET lease_expires_at = now() - interval '1 s'")
    (free,) = enqueue(db)
    with db.connect(autocommit=False) as enqueuing:
        enqueuing.execute("SELECT enqueue_event('t', ordering_key => 'k')")
        with db.connect() as other:
            other.execute("SET statement_timeout = '5s'")
            assert [row.id for row in other.execute("SELECT id FROM lease_events('t')").fetchall()] == [free]
        enqueuing.commit()
    assert lease(db)[0] == [free + 1]
    assert row_of(db, spent).status == "error"


def test_spent_events_do_not_hide_those_behind_them(db):
    enqueue(db, count=20, max_attempts=1)
    lease(db)
    db.run("UPDATE events_queue SET lease_expires_at = now() - interval '1 s'")
    ready = enqueue(db, count=20)
    assert lease(db, limit=20)[0] == ready
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'error'") == 20


def test_the_pause_between_events_of_a_key_counts_from_the_end_of_the_last(db):
    configure(db, key_interval='"2 seconds"')
    first, second = enqueue(db, count=2, ordering_key="k")
    db.run("UPDATE key_pace SET next_at = now() - interval '1 hour'")  # as if it had waited in a backlog
    ids, token = lease(db)
    assert ids == [first]
    ack(db, ids, token)
    assert 1 < db.one("SELECT extract(epoch FROM run_at - now()) FROM events_queue WHERE id = %s", (second,)) <= 2
    db.run("SELECT expire_events(now => now() + interval '1 hour')")
    assert db.one("SELECT count(*) FROM key_pace") == 0


def test_batches_of_many_keys_do_not_deadlock(db):
    db.run("""CREATE FUNCTION half(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE sql AS
              $$ SELECT i, 'no', false FROM unnest(ids) AS i WHERE i % 2 = 0 $$""")
    for topic in ("a", "b"):
        db.run("SELECT register_topic(%s, 'public.half')", (topic,))

    def produce():
        for n in range(20):
            db.run("""INSERT INTO events_inbox (topic, ordering_key) SELECT CASE WHEN (i + %s) %% 2 = 0 THEN 'a' ELSE 'b' END, 'k' || i %% 20
                        FROM generate_series(1, 40) i ORDER BY random()""", (n,))

    def work():
        for _ in range(40):
            rows = db.run("SELECT id, lease_token FROM lease_events(NULL, 30)")
            if rows:
                db.run("SELECT count(*) FROM process_events(%s, %s)", ([row.id for row in rows], rows[0].lease_token))

    in_parallel(*[produce] * 2, *[work] * 3)


# Changes by hand

def test_what_is_changed_by_hand_follows_the_rules(db):
    db.run("INSERT INTO events_queue (topic, run_at) VALUES ('t', now() + interval '1 hour')")
    db.run("INSERT INTO events_queue (topic, ordering_key) VALUES ('t', 'k'), ('t', 'k')")
    later, first, second = [row.id for row in db.run("SELECT id FROM events_queue ORDER BY id")]
    assert lease(db)[0] == [first]
    db.run("DELETE FROM events_queue WHERE id = %s", (first,))
    assert lease(db)[0] == [second]
    (parent,) = enqueue(db)
    (child,) = enqueue(db, "child", after=[parent])
    db.run("UPDATE events_queue SET status = 'done' WHERE id = %s", (parent,))
    assert lease(db, "child")[0] == [child]
    (parent,) = enqueue(db)
    (child,) = enqueue(db, "child", after=[parent])
    db.run("DELETE FROM events_queue WHERE id = %s", (parent,))
    assert row_of(db, child).status == "error"
    (parent,) = enqueue(db)
    ids, token = lease(db)
    (child,) = enqueue(db, "child", after=[parent])
    fail(db, ids, token, retryable=False)
    db.run("UPDATE events_queue SET status = 'queued' WHERE id = %s", (parent,))
    ids, token = lease(db)
    assert ids == [parent] and row_of(db, later).deferred
    ack(db, ids, token)
    assert lease(db, "child")[0] == [child]


def test_a_thousand_failures_and_results_of_a_batch(db):
    db.run("""CREATE FUNCTION judge(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean, result jsonb) LANGUAGE sql AS
              $$ SELECT i, CASE i % 3 WHEN 0 THEN 'odd ' || i % 2 END, i % 2 = 0, CASE i % 3 WHEN 1 THEN to_jsonb(i) END FROM unnest(ids) AS i WHERE i % 3 < 2 $$""")
    db.run("SELECT register_topic('t', 'judge')")
    db.run("SELECT enqueue_events('t', array_agg('{}'::jsonb)) FROM generate_series(1, 3000)")
    rows = db.run("SELECT p.* FROM (SELECT lease_token, array_agg(id) AS ids FROM lease_events('t', 3000) GROUP BY 1) l, process_events(l.ids, l.lease_token) p")
    assert {(row.id % 3 == 0, row.id % 2 == 0 if row.id % 3 == 0 else None, row.status) for row in rows} == {(True, True, "queued"), (True, False, "error"), (False, None, "done")}
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'done' AND result = to_jsonb(id)") == 1000
    assert db.one("SELECT count(*) FROM events_queue WHERE status = 'error' AND last_error = 'odd 1'") == 500
