"""Two sessions at one item: each race is stepped into its worst order, and must end as if one had come after the other."""

import threading

import psycopg
import pytest
from conftest import in_parallel, wait_until


class Queue:
    """One of the two queues, by the same words."""

    def __init__(self, db, items):
        self.db, self.items = db, items
        self.table = {"events": "events_queue", "discovery_items": "marketplace_discovery_queue"}[items]
        self.topic = {"events": "t", "discovery_items": "marketplace.discovery"}[items]
        self.leased = {"events": "leased", "discovery_items": "processing"}[items]
        if items == "events":
            db.run("SELECT register_topic('t', max_attempts => 50)")
        db.run("SELECT configure_topic(%s, '{\"retry_base\": \"0\", \"retry_cap\": \"0\", \"max_attempts\": 50}')", (self.topic,))

    def enqueue(self, count=1):
        if self.items == "events":
            return [row[0] for row in self.db.run("SELECT enqueue_events('t', array_fill('{}'::jsonb, ARRAY[%s]))", (count,))]
        return [row[0] for row in self.db.run(
            "WITH i AS (INSERT INTO interest_catalog (domain, category, tag) SELECT 'd', 'c', gen_random_uuid()::text FROM generate_series(1, %s) RETURNING id) "
            "SELECT array_agg(id) AS ids FROM i", (count,)) for row in self.db.run("SELECT * FROM enqueue_discovery_items(%s)", (row.ids,))]

    def lease_call(self, limit=100, ttl=60):
        return f"SELECT * FROM lease_{self.items}({'%r, ' % 't' if self.items == 'events' else ''}{limit}, {ttl}, 'tester')"

    def lease(self, limit=100, ttl=60, session=None):
        rows = (session or self.db).run(self.lease_call(limit, ttl))
        return [row.id for row in rows], rows[0].lease_token if rows else None

    def call(self, verb, ids, token, *more, session=None):
        places = ", ".join(["%s"] * (2 + len(more)))
        return {row.id: row for row in (session or self.db).run(f"SELECT * FROM {verb}_{self.items}({places})", (ids, token, *more))}

    def held(self, verb, ids, token, *more, session=None):
        return [i for i, row in self.call(verb, ids, token, *more, session=session).items() if row.held]

    def expire(self, ids):
        self.db.run(f"UPDATE {self.table} SET lease_expires_at = now() - interval '1 second' WHERE id = ANY (%s)", (ids,))

    def row(self, item):
        (row,) = self.db.run(f"SELECT * FROM {self.table} WHERE id = %s", (item,))
        return row

    def status(self, item):
        return self.row(item).status


@pytest.fixture(params=["events", "discovery_items"])
def queue(db, request):
    return Queue(db, request.param)


@pytest.fixture
def events(db):
    return Queue(db, "events")


class Session:
    """A transaction of its own that can be left waiting for a lock."""

    def __init__(self, db, isolation=None):
        self.connection = db.connect(autocommit=False)
        self.connection.isolation_level = isolation
        self.pid, self._db, self._thread, self._outcome = self.connection.info.backend_pid, db, None, None

    def run(self, sql, parameters=None):
        cursor = self.connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description is not None else []

    def start(self, sql, parameters=None):
        """Run a statement that waits for somebody, and return once it does."""
        def work():
            try:
                self._outcome = self.run(sql, parameters)
            except psycopg.Error as error:
                self._outcome = error
        self._thread = threading.Thread(target=work)
        self._thread.start()
        wait_until(lambda: self._db.one("SELECT cardinality(pg_blocking_pids(%s)) > 0", (self.pid,)) or not self._thread.is_alive(), 10, "a wait for a lock")
        return self

    @property
    def waits(self):
        return self._thread.is_alive()

    def result(self):
        """What the statement that waited has returned."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "it waits for ever"
        if isinstance(self._outcome, psycopg.Error):
            raise self._outcome
        return self._outcome

    def commit(self):
        self.connection.commit()

    def rollback(self):
        self.connection.rollback()


@pytest.fixture
def session(db):
    sessions = []

    def start(**options):
        sessions.append(Session(db, **options))
        return sessions[-1]
    yield start
    for one in sessions:
        one.connection.close()


REPEATABLE = psycopg.IsolationLevel.REPEATABLE_READ
REFUSED = (psycopg.errors.SerializationFailure, psycopg.errors.FeatureNotSupported)


# -- claim, ack, expiry --------------------------------------------------------------------


def test_claim_against_claim(queue, session):
    ids = queue.enqueue(10)
    first, second = session(), session()
    one, token = queue.lease(6, session=first)
    two, other = queue.lease(6, session=second)
    assert one == ids[:6] and two == ids[6:] and token != other
    first.rollback()
    assert queue.lease()[0] == one
    second.commit()
    assert {queue.row(i).attempts for i in ids} == {1}


def test_twenty_claimers_at_once_share_without_overlap(queue):
    ids = queue.enqueue(200)
    start = threading.Barrier(20)

    def take():
        start.wait(10)
        mine = []
        with queue.db.connect() as connection:
            while rows := connection.execute(queue.lease_call(7)).fetchall():
                mine += [row.id for row in rows]
        return mine
    assert sorted(i for mine in in_parallel(*[take] * 20) for i in mine) == sorted(ids)


def test_claim_passes_over_what_is_being_acknowledged(queue, session):
    ids = queue.enqueue(2)
    _, token = queue.lease(1)
    acking = session()
    assert queue.held("ack", ids[:1], token, session=acking) == ids[:1]
    assert queue.lease()[0] == ids[1:]
    acking.commit()
    assert queue.lease()[0] == [] and queue.status(ids[0]) == "done"


def test_claim_of_an_expired_lease_against_its_late_ack(queue, session):
    (item,) = queue.enqueue()
    _, old = queue.lease()
    queue.expire([item])
    claiming = session()
    ids, new = queue.lease(session=claiming)
    late = session().start(f"SELECT * FROM ack_{queue.items}(%s, %s)", ([item], old))
    claiming.commit()
    assert [row.held for row in late.result()] == [False]
    late.commit()
    assert ids == [item] and queue.held("ack", ids, new) == [item] and queue.row(item).attempts == 2


def test_a_lease_that_expires_while_its_ack_commits_is_not_taken_over(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease(ttl=1)
    acking = session()
    assert queue.held("ack", [item], token, session=acking) == [item]
    wait_until(lambda: queue.db.one(f"SELECT lease_expires_at < clock_timestamp() FROM {queue.table} WHERE id = %s", (item,)))
    assert queue.lease()[0] == []
    acking.commit()
    assert queue.lease()[0] == [] and queue.status(item) == "done"


def test_an_ack_that_is_rolled_back_leaves_the_lease(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    acking = session()
    assert queue.held("ack", [item], token, session=acking) == [item]
    acking.rollback()
    assert queue.status(item) == queue.leased and queue.held("ack", [item], token) == [item]


def test_two_acks_of_one_lease(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    first = session()
    assert queue.held("ack", [item], token, session=first) == [item]
    second = session().start(f"SELECT * FROM ack_{queue.items}(%s, %s)", ([item], token))
    first.commit()
    assert [row.held for row in second.result()] == [False]


def test_ack_against_fail_of_one_lease(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    failing = session()
    assert queue.held("fail", [item], token, "late", False, session=failing) == [item]
    acking = session().start(f"SELECT * FROM ack_{queue.items}(%s, %s)", ([item], token))
    failing.commit()
    assert [row.held for row in acking.result()] == [False] and queue.status(item) == "error"


def test_extend_against_claim_of_the_expired(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    holding = session()
    assert queue.held("extend", [item], token, 60, session=holding) == [item]
    assert queue.lease()[0] == []
    holding.commit()
    queue.expire([item])
    claiming = session()
    assert queue.lease(session=claiming)[0] == [item]
    late = session().start(f"SELECT * FROM extend_{queue.items}(%s, %s, 60)", ([item], token))
    claiming.commit()
    assert [row.held for row in late.result()] == [False]


# -- what operators do meanwhile -----------------------------------------------------------


def test_requeue_against_the_ack_of_a_lease_that_held(queue, session):
    """The rescuer that overwrote a completed job: it looked before the ack, and wrote after it."""
    (item,) = queue.enqueue()
    _, token = queue.lease(ttl=1)
    acking = session()
    assert queue.held("ack", [item], token, session=acking) == [item]
    wait_until(lambda: queue.db.one(f"SELECT lease_expires_at < clock_timestamp() FROM {queue.table} WHERE id = %s", (item,)))
    rescuing = session().start(f"SELECT * FROM requeue_{queue.items}(%s)", ([item],))
    acking.commit()
    assert [(row.requeued, row.status) for row in rescuing.result()] in ([(False, "done")], [(False, None)])
    rescuing.commit()
    assert queue.status(item) == "done" and queue.lease()[0] == []


def test_the_runbooks_own_rescue_against_an_ack(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease(ttl=1)
    acking = session()
    assert queue.held("ack", [item], token, session=acking) == [item]
    wait_until(lambda: queue.db.one(f"SELECT lease_expires_at < clock_timestamp() FROM {queue.table} WHERE id = %s", (item,)))
    rescuing = session().start(
        f"UPDATE {queue.table} SET status='queued', lease_token=NULL, lease_expires_at=NULL WHERE status='{queue.leased}' AND lease_expires_at < now()")
    acking.commit()
    rescuing.result()
    rescuing.commit()
    assert queue.status(item) == "done" and queue.lease()[0] == []


def test_requeue_of_an_expired_lease_takes_it_from_its_holder(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    queue.expire([item])
    rescuing = session()
    assert [row.requeued for row in rescuing.run(f"SELECT * FROM requeue_{queue.items}(%s)", ([item],))] == [True]
    late = session().start(f"SELECT * FROM ack_{queue.items}(%s, %s, now => '-infinity')", ([item], token))
    rescuing.commit()
    assert [row.held for row in late.result()] == [False]
    late.commit()
    assert queue.lease()[0] == [item]


def test_pause_against_lease(queue, session):
    ids = queue.enqueue(2)
    leasing = session()
    assert queue.lease(1, session=leasing)[0] == ids[:1]
    queue.db.run("SELECT pause_topic(%s)", (queue.topic,))
    leasing.commit()
    if queue.items == "events":
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            queue.lease()
    else:
        assert queue.lease()[0] == []
    token = queue.row(ids[0]).lease_token
    assert queue.held("ack", ids[:1], token) == ids[:1]  # what was leased may be finished
    queue.db.run("SELECT resume_topic(%s)", (queue.topic,))
    assert queue.lease()[0] == ids[1:]


def test_cancel_waits_for_an_ack_and_loses(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    acking = session()
    assert queue.held("ack", [item], token, session=acking) == [item]
    cancelling = session().start(f"SELECT * FROM cancel_{queue.items}(%s, 'too late')", ([item],))
    acking.commit()
    assert [row.cancelled for row in cancelling.result()] == [False]
    cancelling.commit()
    assert queue.status(item) == "done"


def test_ack_waits_for_a_cancel_and_loses(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    cancelling = session()
    assert [row.cancelled for row in cancelling.run(f"SELECT * FROM cancel_{queue.items}(%s, 'stop')", ([item],))] == [True]
    acking = session().start(f"SELECT * FROM ack_{queue.items}(%s, %s)", ([item], token))
    cancelling.commit()
    assert [row.held for row in acking.result()] == [False]
    assert queue.status(item) == "error" and "stop" in queue.row(item).last_error


def test_discard_against_requeue(queue, session):
    (item,) = queue.enqueue()
    _, token = queue.lease()
    queue.call("fail", [item], token, "no", False)
    requeueing = session()
    assert [row.requeued for row in requeueing.run(f"SELECT * FROM requeue_{queue.items}(%s)", ([item],))] == [True]
    discarding = session().start(f"SELECT * FROM discard_{queue.items}(%s)", ([item],))
    requeueing.commit()
    assert [row.discarded for row in discarding.result()] == [False]
    discarding.commit()
    assert queue.lease()[0] == [item]


# -- rescue --------------------------------------------------------------------------------


def test_a_full_page_of_held_leases_does_not_starve_the_expired_one(queue):
    ids = queue.enqueue(10_001)
    for _ in range(3):
        queue.lease(5000, ttl=3600)
    queue.expire(ids[-1:])
    assert queue.lease(1)[0] == ids[-1:]
    queue.expire(ids[:1])
    assert queue.lease(1)[0] == ids[:1]


def test_a_full_line_does_not_starve_the_expired_lease(queue):
    """The session that finds as much as it wants, again and again, still comes back to what expired behind it."""
    ids = queue.enqueue(3000)
    with queue.db.connect() as connection:
        def lease():
            return [row.id for row in connection.execute(queue.lease_call(1, 3600)).fetchall()]
        assert lease() == ids[:1]
        queue.expire(ids[:1])
        (limit,) = connection.execute("SELECT clock_timestamp() + interval '1 second'").fetchone()
        while (taken := lease()) != ids[:1]:
            assert taken, "the line ended first"
            assert connection.execute("SELECT clock_timestamp() < %s", (limit,)).fetchone()[0], "not found within a second"


def test_an_item_leased_for_long_and_extended_runs_once(queue):
    """Three times the length of its lease, extended in time, while another worker looks for expired leases all along."""
    (item,) = queue.enqueue()
    _, token = queue.lease(ttl=1)
    began = queue.db.one("SELECT clock_timestamp()")
    while queue.db.one("SELECT clock_timestamp() < %s + interval '3 seconds'", (began,)):
        assert queue.lease()[0] == []
        assert queue.held("extend", [item], token, 1) == [item]
    assert queue.held("ack", [item], token) == [item] and queue.row(item).attempts == 1


def test_one_that_cannot_be_rescued_does_not_stop_the_rescue_of_others(queue, session):
    ids = queue.enqueue(5)
    queue.lease()
    queue.expire(ids)
    stuck = session()
    stuck.run(f"SELECT FROM {queue.table} WHERE id = %s FOR UPDATE", (ids[2],))
    assert queue.lease()[0] == ids[:2] + ids[3:]
    stuck.rollback()
    assert queue.lease()[0] == ids[2:3]


def test_an_expired_last_attempt_is_ended_once_by_two_claimers(queue, session):
    (item,) = queue.enqueue()
    queue.lease()
    queue.db.run(f"UPDATE {queue.table} SET attempts = max_attempts WHERE id = %s", (item,))
    queue.expire([item])
    first, second = session(), session()
    assert queue.lease(session=first)[0] == [] and queue.lease(session=second)[0] == []
    first.commit(), second.commit()
    assert queue.status(item) == "error" and queue.db.one(f"SELECT count(*) FROM {queue.table}") == 1


# -- payloads ------------------------------------------------------------------------------

HANDLER = """CREATE FUNCTION handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean) LANGUAGE plpgsql AS $$
             BEGIN
                 IF cardinality(ids) > 4 THEN PERFORM pg_sleep(0.01); RAISE query_canceled USING MESSAGE = 'too many at once'; END IF;
                 IF EXISTS (SELECT FROM unnest(payloads) p WHERE p ? 'poison') THEN RAISE 'cannot read this'; END IF;
                 INSERT INTO effects SELECT unnest(ids);
             END $$"""


def test_an_event_that_nobody_can_read_backs_off_and_ends_in_error(db):
    db.run("CREATE TABLE effects (event_id bigint)")
    db.run(HANDLER)
    db.run("SELECT register_topic('t', 'handle', 3)")
    poison = db.one("SELECT enqueue_event('t', '{\"poison\": \"\\u0007\"}')")
    good = [row[0] for row in db.run("SELECT enqueue_events('t', array_fill('{}'::jsonb, ARRAY[3]))")]
    for attempt in (1, 2, 3):
        rows = db.run("SELECT * FROM lease_events('t')")
        outcome = {row.id: row for row in db.run("SELECT * FROM process_events(%s, %s)", ([row.id for row in rows], rows[0].lease_token))}
        assert outcome[poison].status == ("error" if attempt == 3 else "queued") and "cannot read" in outcome[poison].error
        db.run("UPDATE events_queue SET run_at = now() - interval '1 second' WHERE id = %s AND status = 'queued'", (poison,))
    assert [row[0] for row in db.run("SELECT event_id FROM effects ORDER BY 1")] == good
    assert db.run("SELECT id FROM events_queue_error") == [(poison,)]


def test_a_batch_that_is_too_much_is_halved_until_it_is_not(db):
    db.run("CREATE TABLE effects (event_id bigint)")
    db.run(HANDLER.replace("RAISE query_canceled USING MESSAGE =", "RAISE"))
    db.run("SELECT register_topic('t', 'handle', 3)")
    ids = [row[0] for row in db.run("SELECT enqueue_events('t', array_fill('{}'::jsonb, ARRAY[100]))")]
    token = db.run("SELECT * FROM lease_events('t')")[0].lease_token
    assert {row.status for row in db.run("SELECT * FROM process_events(%s, %s)", (ids, token))} == {"done"}
    assert sorted(row[0] for row in db.run("SELECT event_id FROM effects")) == ids


# -- discovery items: armed anew -----------------------------------------------------------


def interests(db, count):
    return [row[0] for row in db.run(
        "INSERT INTO interest_catalog (id, domain, category, tag) SELECT ('00000000-0000-0000-0000-' || lpad(i::text, 12, '0'))::uuid, 'd', 'c', i::text "
        "FROM generate_series(1, %s) i RETURNING id", (count,))]


ARM = "SELECT * FROM enqueue_discovery_items(%s)"


def test_arming_waits_for_the_ack_and_arms_anew(db, session):
    queue = Queue(db, "discovery_items")
    (interest,) = interests(db, 1)
    ((item,),) = db.run(ARM, ([interest],))
    _, token = queue.lease()
    acking = session()
    assert queue.held("ack", [item], token, session=acking) == [item]
    arming = session().start(ARM, ([interest],))
    acking.commit()
    ((again,),) = arming.result()
    arming.commit()
    assert queue.lease()[0] == [again]
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 1


def test_an_ack_that_comes_while_others_are_armed_does_not_swallow_the_request(db, session):
    queue = Queue(db, "discovery_items")
    first, second = interests(db, 2)
    ((item,),) = db.run(ARM, ([first],))
    _, token = queue.lease()
    other = session()
    other.run(ARM, ([second],))
    arming = session().start(ARM, ([first, second],))  # has passed the first, waits for the second
    assert queue.held("ack", [item], token) == [item]
    other.commit()
    armed = arming.result()
    arming.commit()
    assert len(armed) == 2 and all(row[0] for row in armed)
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue WHERE interest_id = %s", (first,)) == 1


def test_arming_against_requeue_of_the_same_item(db, session):
    queue = Queue(db, "discovery_items")
    first, second = interests(db, 2)
    ((item,),) = db.run(ARM, ([first],))
    _, token = queue.lease()
    queue.call("fail", [item], token, "no", False)
    other = session()
    other.run(ARM, ([second],))
    arming = session().start(ARM, ([first, second],))
    requeueing = session().start("SELECT * FROM requeue_discovery_items(%s)", ([item],))
    other.commit()
    in_parallel(lambda: (arming.result(), arming.commit()), lambda: (requeueing.result(), requeueing.commit()))
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue_live WHERE interest_id = %s", (first,)) == 1
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue_error") == 0


def test_fifty_sessions_arm_one_item(db):
    (interest,) = interests(db, 1)
    ids = in_parallel(*[lambda: db.one(ARM, ([interest],))] * 50)
    assert len(set(ids)) == 1 and db.one("SELECT count(*) FROM marketplace_discovery_queue") == 1


def test_an_interest_that_is_deleted_takes_its_leased_item_along(db, session):
    queue = Queue(db, "discovery_items")
    (interest,) = interests(db, 1)
    ((item,),) = db.run(ARM, ([interest],))
    _, token = queue.lease()
    deleting = session()
    deleting.run("DELETE FROM interest_catalog")
    acking = session().start("SELECT * FROM ack_discovery_items(%s, %s)", ([item], token))
    deleting.commit()
    assert [row.held for row in acking.result()] == [False]
    acking.commit()
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue") == 0


# -- events that wait for others -----------------------------------------------------------

CHILD = "SELECT enqueue_event('t', after => %s)"


def test_a_child_enqueued_while_its_parent_is_acknowledged(events, session):
    (parent,) = events.enqueue()
    _, token = events.lease()
    acking = session()
    assert events.held("ack", [parent], token, session=acking) == [parent]
    enqueueing = session().start(CHILD, ([parent],))
    acking.commit()
    ((child,),) = enqueueing.result()
    enqueueing.commit()
    assert events.lease()[0] == [child]


def test_a_parent_acknowledged_while_its_child_is_enqueued(events, session):
    (parent,) = events.enqueue()
    _, token = events.lease()
    enqueueing = session()
    ((child,),) = enqueueing.run(CHILD, ([parent],))
    acking = session().start("SELECT * FROM ack_events(%s, %s)", ([parent], token))
    assert events.lease()[0] == []
    enqueueing.commit()
    assert [row.held for row in acking.result()] == [True]
    acking.commit()
    assert events.lease()[0] == [child]


def test_two_parents_acknowledged_at_once(events, session):
    parents = events.enqueue(2)
    _, token = events.lease()
    ((child,),) = events.db.run(CHILD, (parents,))
    first = session()
    first.run("SELECT * FROM ack_events(%s, %s)", (parents[:1], token))
    second = session().start("SELECT * FROM ack_events(%s, %s)", (parents[1:], token))
    first.commit()
    second.result()
    assert events.lease()[0] == []
    second.commit()
    assert events.lease()[0] == [child]


def test_a_parent_requeued_while_its_child_is_enqueued(events, session):
    (parent,) = events.enqueue()
    _, token = events.lease()
    events.call("fail", [parent], token, "no", False)
    enqueueing = session()
    ((child,),) = enqueueing.run(CHILD, ([parent],))
    requeueing = session().start("SELECT * FROM requeue_events(%s)", ([parent],))
    if not requeueing.waits:
        requeueing.result()
        requeueing.commit()
    enqueueing.commit()
    requeueing.result()
    requeueing.commit()
    ids, token = events.lease()
    assert ids == [parent] and events.held("ack", ids, token) == ids
    assert events.lease()[0] == [child]


def test_a_parent_discarded_while_its_child_is_enqueued(events, session):
    (parent,) = events.enqueue()
    _, token = events.lease()
    events.call("fail", [parent], token, "no", False)
    enqueueing = session()
    ((child,),) = enqueueing.run(CHILD, ([parent],))
    discarding = session().start("SELECT * FROM discard_events(%s)", ([parent],))
    if not discarding.waits:
        discarding.result()
        discarding.commit()
    enqueueing.commit()
    discarding.result()
    discarding.commit()
    assert events.status(child) == "error"  # or it would wait for ever


def test_a_hundred_children_of_parents_that_end_in_all_orders(events):
    """Eight sessions acknowledge parents of shared children; nobody deadlocks, and every child is freed once."""
    parents = events.enqueue(64)
    _, token = events.lease()
    for n in range(100):
        events.db.run(CHILD, ([parents[(n * 7) % 64], parents[(n * 13 + 5) % 64], parents[(n * 29 + 11) % 64]],))
    start = threading.Barrier(8)

    def ack(mine):
        start.wait(10)
        return len(events.held("ack", mine, token))
    assert in_parallel(*[lambda n=n: ack(parents[n::8]) for n in range(8)]) == [8] * 8
    assert len(events.lease()[0]) == 100 and events.db.one("SELECT count(*) FROM event_parents") == 0


# -- events that run in order --------------------------------------------------------------

NEXT = "SELECT enqueue_event('t', ordering_key => 'k')"


@pytest.mark.parametrize("isolation", [None, REPEATABLE], ids=["read-committed", "repeatable-read"])
def test_next_in_order_enqueued_while_the_running_one_is_acknowledged(events, session, isolation):
    first = events.db.one(NEXT)
    _, token = events.lease()
    enqueueing = session(isolation=isolation)
    enqueueing.run("SELECT count(*) FROM events_queue")  # its snapshot, if it keeps one
    acking = session()
    assert events.held("ack", [first], token, session=acking) == [first]
    enqueueing.start(NEXT)
    acking.commit()
    try:
        ((second,),) = enqueueing.result()
        enqueueing.commit()
    except psycopg.errors.FeatureNotSupported:  # may refuse, but not leave it waiting for ever
        return
    assert events.lease()[0] == [second]


@pytest.mark.parametrize("isolation", [None, REPEATABLE], ids=["read-committed", "repeatable-read"])
def test_the_running_one_acknowledged_while_the_next_in_order_is_enqueued(events, session, isolation):
    first = events.db.one(NEXT)
    _, token = events.lease()
    acking = session(isolation=isolation)
    acking.run("SELECT count(*) FROM events_queue")
    enqueueing = session()
    ((second,),) = enqueueing.run(NEXT)
    acking.start("SELECT * FROM ack_events(%s, %s)", ([first], token))
    assert events.lease()[0] == []
    enqueueing.commit()
    try:
        assert [row.held for row in acking.result()] == [True]
        acking.commit()
    except psycopg.errors.FeatureNotSupported:
        acking.rollback()
        assert events.held("ack", [first], token) == [first]
    assert events.lease()[0] == [second]


def test_two_enqueuers_of_one_ordering_key(events, session):
    one = session()
    ((first,),) = one.run(NEXT)
    other = session().start(NEXT)
    one.commit()
    ((second,),) = other.result()
    other.commit()
    ids, token = events.lease()
    assert ids == [first]
    events.held("ack", ids, token)
    assert events.lease()[0] == [second]


def test_an_enqueuer_of_an_ordering_key_that_rolls_back(events, session):
    one = session()
    one.run(NEXT)
    other = session().start(NEXT)
    one.rollback()
    ((second,),) = other.result()
    other.commit()
    assert events.lease()[0] == [second]


def test_cancel_of_the_next_in_order_while_the_running_one_is_acknowledged(events, session):
    first, second, third = (events.db.one(NEXT) for _ in range(3))
    _, token = events.lease()
    enqueueing = session()
    enqueueing.run(NEXT)  # holds the ordering key
    acking = session().start("SELECT * FROM ack_events(%s, %s)", ([first], token))
    cancelling = session().start("SELECT * FROM cancel_events(%s)", ([second],))
    enqueueing.commit()
    in_parallel(lambda: (acking.result(), acking.commit()), lambda: (cancelling.result(), cancelling.commit()))  # neither may deadlock
    assert events.lease()[0] == [third] or events.status(second) != "error"


def test_requeue_of_one_in_order_while_the_next_is_acknowledged(events, session):
    first, second, third = (events.db.one(NEXT) for _ in range(3))
    _, token = events.lease()
    events.call("fail", [first], token, "no", False)
    ids, token = events.lease()
    assert ids == [second]
    acking = session()
    assert events.held("ack", [second], token, session=acking) == [second]
    requeueing = session().start("SELECT * FROM requeue_events(%s)", ([first],))
    acking.commit()
    requeueing.result()
    requeueing.commit()
    order = []
    while (leased := events.lease())[0]:
        assert len(leased[0]) == 1, "two of one ordering key at a time"
        order += leased[0]
        events.held("ack", *leased)
    assert sorted(order) == [first, third]


def test_sessions_that_enqueue_lease_and_acknowledge_many_ordering_keys(events):
    """Nobody deadlocks, each key runs in order and one at a time, and nothing is left waiting."""
    keys = [f"k{n}" for n in range(5)]
    start = threading.Barrier(6)

    def produce(number):
        start.wait(10)
        with events.db.connect() as connection:
            for n in range(15):
                mine = keys[::-1] if (n + number) % 2 else keys
                connection.execute("SELECT enqueue_events('t', array_fill('{}'::jsonb, ARRAY[5]), ordering_keys => %s)", (mine,))

    def consume():
        start.wait(10)
        seen = []
        with events.db.connect() as connection:
            while len(seen) < 1000:
                rows = connection.execute("SELECT l.id, q.ordering_key, l.lease_token FROM lease_events('t', 5) l JOIN events_queue q USING (id)").fetchall()
                seen += [(row.ordering_key, row.id) for row in rows]
                if rows:
                    connection.execute("SELECT * FROM ack_events(%s, %s)", ([row.id for row in rows], rows[0].lease_token))
                elif done.is_set() and not connection.execute("SELECT FROM events_queue_live").fetchone():
                    return seen
        return seen

    done = threading.Event()
    producers = [threading.Thread(target=produce, args=(n,)) for n in range(3)]
    for thread in producers:
        thread.start()
    ending = threading.Thread(target=lambda: ([thread.join() for thread in producers], done.set()))
    ending.start()
    seen = [entry for mine in in_parallel(*[consume] * 3) for entry in mine]
    ending.join()
    assert len(seen) == len(set(seen)) == 3 * 15 * 5
    ended = events.db.run("SELECT ordering_key, array_agg(id ORDER BY updated_at, id) AS ids FROM events_queue_done GROUP BY 1")
    assert all(row.ids == sorted(row.ids) for row in ended) and len(ended) == 5


# -- idempotency keys ----------------------------------------------------------------------


def test_a_key_that_expires_while_it_is_enqueued_again(events, session):
    db = events.db
    failed, done = (db.one("SELECT enqueue_event('t', idempotency_key => %s)", (key,)) for key in ("a", "b"))
    _, token = events.lease()
    events.call("fail", [failed], token, "no", False)
    events.held("ack", [done], token)
    blocking = session()
    blocking.run("SELECT FROM events_queue WHERE id = %s FOR UPDATE", (failed,))
    enqueueing = session().start("SELECT enqueue_events('t', ARRAY['{}', '{}']::jsonb[], ARRAY['a', 'b'])")  # has seen both keys, waits for the first event
    db.run("SELECT configure_topic('t', '{\"keep_done\": \"0\"}')")
    assert db.one("SELECT expire_events(now => clock_timestamp() + interval '1 second')") == 1
    blocking.rollback()
    ids = [row[0] for row in enqueueing.result()]
    enqueueing.commit()
    assert None not in ids, "the second event was not enqueued, and nobody was told"
    assert set(ids) == set(events.lease()[0])


def test_a_key_enqueued_while_its_event_is_acknowledged(events, session):
    db = events.db
    db.run("SELECT configure_topic('t', '{\"rearm\": \"ended\"}')")
    first = db.one("SELECT enqueue_event('t', idempotency_key => 'a')")
    _, token = events.lease()
    acking = session()
    assert events.held("ack", [first], token, session=acking) == [first]
    again = db.one("SELECT enqueue_event('t', idempotency_key => 'a')")  # not ended yet
    acking.commit()
    later = db.one("SELECT enqueue_event('t', idempotency_key => 'a')")
    assert again == first and later != first and events.lease()[0] == [later]
