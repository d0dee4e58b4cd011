"""Random operations by several sessions, against a model in Python: after each of them tables and model agree.

PGSTEWARD_MODEL_SECONDS (default 5 per queue) and PGSTEWARD_MODEL_SEED (default 1) make it longer and other; a failure names its seed and operations.
"""

import os
import random
import time
from dataclasses import dataclass, field

import psycopg
import pytest

SECONDS = float(os.environ.get("PGSTEWARD_MODEL_SECONDS", "5"))
SEED = int(os.environ.get("PGSTEWARD_MODEL_SEED", "1"))
STEPS = 120
NOBODY = "00000000-0000-0000-0000-000000000000"


@dataclass
class Item:
    """What the model knows of an item. Status leased stands for processing as well."""

    id: int
    topic: str
    max_attempts: int
    ordering_key: str | None = None
    name: str | None = None  # idempotency key, or interest
    status: str = "queued"
    attempts: int = 0
    token: str | None = None
    expired: bool = False
    later: bool = False  # its time has not come
    again: bool = False  # enqueued anew while it is leased
    parents: set = field(default_factory=set)  # those it waits for
    in_turn: bool = True  # within its ordering key

    @property
    def live(self):
        """True if it has not ended."""
        return self.status in ("queued", "leased")

    @property
    def ready(self):
        """True if a lease may take it."""
        return (self.status == "queued" and not self.later and not self.parents and self.in_turn) or (self.status == "leased" and self.expired)

    @property
    def spent(self):
        """True if a lease ends it instead: it was its last attempt."""
        return self.status == "leased" and self.expired and self.attempts >= self.max_attempts

    def holds(self, token):
        """True if a call with this token acts on it."""
        return self.status == "leased" and self.token == token and not self.expired


class Model:
    """All items by id, and what the functions make of them."""

    def __init__(self):
        self.items, self.paused = {}, set()

    def of(self, ids):
        return [self.items[i] for i in ids if i in self.items]

    def named(self, topic, name):
        """The item that a key or interest names."""
        return next((item for item in self.items.values() if name and item.topic == topic and item.name == name), None)

    def advance(self, topic, key):
        """The next of an ordering key gets its turn if none has it."""
        same = [item for item in self.items.values() if key and item.topic == topic and item.ordering_key == key and item.live]
        waiting = sorted((item for item in same if not item.in_turn), key=lambda item: item.id)
        if waiting and not any(item.in_turn for item in same):
            waiting[0].in_turn = True

    def add(self, item):
        """A new item, or one that begins anew."""
        self.items[item.id] = item
        item.in_turn = item.ordering_key is None
        self.advance(item.topic, item.ordering_key)

    def end(self, item, status):
        """Done or failed for good; what was enqueued anew meanwhile waits again instead."""
        if item.again:
            item.status, item.token, item.attempts, item.again = "queued", None, 0, False
            return
        item.status, item.token, item.in_turn, item.expired = status, None, False, False
        if status == "done":
            for other in self.items.values():
                other.parents.discard(item.id)
        self.advance(item.topic, item.ordering_key)

    def discard(self, item):
        """A failed item goes, and what waits for it fails."""
        del self.items[item.id]
        for other in list(self.items.values()):
            if item.id in other.parents:
                other.parents.discard(item.id)
                if other.live:
                    self.end(other, "error")


class Run:
    """One sequence of operations."""

    def __init__(self, db, sessions, seed):
        self.db, self.sessions, self.random, self.seed = db, sessions[1:], random.Random(seed), seed
        self._look = sessions[0]
        self.model, self.log, self.tokens = Model(), [], [NOBODY]
        self.prepare()

    def ask(self, sql, *parameters, fresh=False):
        """Run a statement in some session, and note it."""
        self.log.append(sql % tuple(repr(parameter) for parameter in parameters))
        if fresh:
            with self.db.connect() as connection:
                return connection.execute(sql, parameters).fetchall()
        cursor = self.random.choice(self.sessions).execute(sql, parameters)
        return cursor.fetchall() if cursor.description is not None else []

    def look(self, sql, *parameters):
        """Run a statement that is no operation."""
        cursor = self._look.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description is not None else []

    def go(self):
        """Operate and compare, over and over."""
        try:
            while len(self.log) < STEPS:
                before = len(self.log)
                getattr(self, self.random.choice(self.OPERATIONS))()
                if len(self.log) > before:
                    self.compare()
            self.compare_health()
        except (AssertionError, psycopg.Error) as error:
            steps = "\n".join(self.log[-40:])
            raise AssertionError(f"PGSTEWARD_MODEL_SEED={self.seed}: {error}\nafter {len(self.log)} operations, the last of them:\n{steps}") from error

    def some(self, items, most=4):
        """Ids of some items, now and then with one that does not exist; none of none, mostly."""
        items = list(items)
        ids = [item.id for item in self.random.sample(items, min(len(items), self.random.randint(1, most)))]
        return ids + [10**12] if self.random.random() < 0.05 else ids

    def leased_and_token(self):
        """Ids as a worker would give them, mostly of one lease, and a token, mostly theirs."""
        token = self.random.choice(self.tokens[-8:])
        mine = [item for item in self.model.items.values() if item.token == token]
        if self.random.random() < 0.15:
            mine = list(self.model.items.values())
        return self.some(mine), token

    def answers(self, rows, ids, token):
        """The held ones of the model; the answers must say the same."""
        held = [item for item in self.model.of(ids) if item.holds(token)]
        assert {row.id: row.held for row in rows} == {i: i in {item.id for item in held} for i in ids}
        return held

    # -- operations on both queues ---------------------------------------------------------

    def lease(self):
        limit, topic, fresh = self.random.randint(1, 6), self.lease_topic(), self.random.random() < 0.2
        call = self.LEASE.format(limit=limit)
        parameters = (topic,) if "%s" in call else ()
        if self.EVENTS and topic in self.model.paused:
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                self.ask(call, *parameters)
            return
        places = {row[0]: row[1] for row in self.look(f"SELECT id, turn_at FROM {self.TABLE}_live")} if fresh else {}
        ready = [item for item in self.model.items.values() if item.ready and item.topic not in self.model.paused and topic in (None, item.topic)]
        rows = self.ask(call, *parameters, fresh=fresh)
        leased = {row[0] for row in self.look(f"SELECT id FROM {self.TABLE}_live WHERE lease_token IS NOT NULL")}
        buried = {item.id for item in ready if item.status == "leased"} - leased
        taken = {row.id for row in rows}
        keys = {(item.topic, item.ordering_key) for item in ready if item.id in buried and item.ordering_key}
        next_of = {item.id for item in self.model.items.values() if (item.topic, item.ordering_key) in keys}  # their turn comes with the end of the first
        assert taken | buried <= {item.id for item in ready} | next_of, "leased or ended what was not ready"
        assert buried == {item.id for item in ready if item.spent and item.id in buried}, "ended what had attempts left"
        renewed = {item.id for item in ready if item.spent and item.again}  # enqueued anew while they were leased: they begin again
        assert not any(self.model.items[i].spent for i in taken - renewed), "leased what had no attempt left"
        if topic is not None:
            able = sum(not item.spent for item in ready)
            assert min(limit, able) <= len(taken) <= limit, f"{able} could be leased, {limit} wanted, {len(taken)} leased"
        else:
            assert len(taken) <= limit and (taken or buried or not ready)
        if fresh and topic is not None and not any(item.later is None for item in ready):
            last = max((places[i] for i in taken | buried if self.in_line(i)), default=None)
            assert not last or all(places[item.id] >= last for item in ready if item.id not in taken | buried and self.in_line(item.id)), "out of turn"
        for i in buried:
            self.model.end(self.model.items[i], "error")
        for row in rows:
            item = self.model.items[row.id]
            if item.spent and item.again:
                item.attempts = 0
            item.status, item.token, item.expired, item.again, item.attempts = "leased", str(row.lease_token), False, False, item.attempts + 1
            assert (row.attempts, row.max_attempts) == (item.attempts, item.max_attempts)
        if rows:
            assert len({row.lease_token for row in rows}) == 1
            self.tokens.append(str(rows[0].lease_token))

    def in_line(self, number):
        """True if its place was known before the lease: a lease itself puts those in line whose time has come."""
        return number in self.placed

    def ack(self):
        ids, token = self.leased_and_token()
        if not ids:
            return
        for item in self.answers(self.ask(f"SELECT * FROM ack_{self.ITEMS}(%s, %s)", ids, token), ids, token):
            self.model.end(item, "done")

    def fail(self):
        ids, token = self.leased_and_token()
        if not ids:
            return
        retryable = self.random.random() < 0.7
        rows = self.ask(f"SELECT * FROM fail_{self.ITEMS}(%s, %s, 'no', %s)", ids, token, retryable)
        told = {row.id: row.status for row in rows}
        for item in self.answers(rows, ids, token):
            if retryable and item.attempts < item.max_attempts:
                item.status, item.token, item.later = "queued", None, item.topic in self.SLOW
            else:
                self.model.end(item, "error")
            assert told[item.id] == item.status

    def extend(self):
        ids, token = self.leased_and_token()
        if not ids:
            return
        self.answers(self.ask(f"SELECT * FROM extend_{self.ITEMS}(%s, %s, 7200)", ids, token), ids, token)

    def hold(self):
        ids, token = self.leased_and_token()
        if not ids:
            return
        rows = self.ask(f"SELECT * FROM hold_{self.ITEMS}(%s, %s)", ids, token)
        assert {row.id: row.attempts for row in rows} == {item.id: item.attempts for item in self.model.of(ids) if item.holds(token)}

    def release(self):
        ids, token = self.leased_and_token()
        if not ids:
            return
        for item in self.answers(self.ask(f"SELECT * FROM release_{self.ITEMS}(%s, %s)", ids, token), ids, token):
            item.status, item.token, item.attempts = "queued", None, item.attempts - 1

    def expire(self):
        """The lease of some runs out."""
        leased = [item for item in self.model.items.values() if item.status == "leased"]
        ids = self.some(leased)
        if not ids:
            return
        self.ask(f"UPDATE {self.TABLE} SET lease_expires_at = now() - interval '1 hour' WHERE id = ANY (%s)", ids)
        for item in self.model.of(ids):
            item.expired = True

    def time_comes(self):
        """The time of some that were to run later comes."""
        ids = self.some(item for item in self.model.items.values() if item.later and item.status == "queued")
        if not ids:
            return
        self.ask(f"UPDATE {self.TABLE} SET run_at = now() - interval '1 hour' WHERE id = ANY (%s)", ids)
        for item in self.model.of(ids):
            item.later = False

    def requeue(self):
        ids = self.some(item for item in self.model.items.values() if item.status == "error" or item.expired or self.random.random() < 0.1)
        if not ids:
            return
        rows = {row.id: row for row in self.ask(f"SELECT * FROM requeue_{self.ITEMS}(%s)", ids)}
        expected = {i: False for i in ids}
        failed = [item for item in self.model.of(ids) if item.status == "error"]
        for item in failed:
            expected[item.id] = True
            item.status, item.attempts, item.later, item.in_turn = "queued", 0, False, item.ordering_key is None
        for item in failed:
            self.model.advance(item.topic, item.ordering_key)
        for item in self.model.of(ids):
            if item.status == "leased" and item.expired:
                expected[item.id] = True
                item.status, item.token, item.expired = "queued", None, False
        assert {i: row.requeued for i, row in rows.items()} == expected

    def cancel(self):
        ids = self.some(self.model.items.values(), 2)
        if not ids:
            return
        rows = {row.id: row for row in self.ask(f"SELECT * FROM cancel_{self.ITEMS}(%s, 'a test')", ids)}
        live = [item for item in self.model.of(ids) if item.live]
        assert {i: row.cancelled for i, row in rows.items()} == {i: i in {item.id for item in live} for i in ids}
        for item in live:  # all are gone before the next one gets its turn
            item.status, item.in_turn, item.again = "error", False, False
        for item in live:
            self.model.end(item, "error")

    def discard(self):
        ids = self.some((item for item in self.model.items.values() if item.status == "error" or self.random.random() < 0.1), 2)
        if not ids:
            return
        rows = {row.id: row.discarded for row in self.ask(f"SELECT * FROM discard_{self.ITEMS}(%s)", ids)}
        failed = [item for item in self.model.of(ids) if item.status == "error"]
        assert rows == {i: i in {item.id for item in failed} for i in ids}
        for item in failed:
            self.model.discard(item)

    def pause(self):
        topic = self.random.choice(self.TOPICS)
        self.ask("SELECT pause_topic(%s)", topic)
        self.model.paused.add(topic)

    def resume(self):
        topic = self.random.choice(sorted(self.model.paused) or self.TOPICS)
        self.ask("SELECT resume_topic(%s)", topic)
        self.model.paused.discard(topic)

    # -- comparing -------------------------------------------------------------------------

    def compare(self):
        """Tables and model tell the same."""
        rows = self.look(f"SELECT id, status, attempts, lease_token::text AS token, waits, deferred, run_at > clock_timestamp() AS later FROM {self.TABLE}")
        told = {(row.id, "leased" if row.status == "processing" else row.status, row.attempts) for row in rows}
        known = {(item.id, item.status, item.attempts) for item in self.model.items.values()}
        assert told == known, f"in the table: {sorted(told - known)}, in the model: {sorted(known - told)}"
        self.placed = {row.id for row in rows if not row.deferred}
        for row in rows:
            item = self.model.items[row.id]
            if item.status == "leased":
                assert row.token == item.token, f"{row.id} has another token"
            if item.status == "queued":
                waits = bool(item.parents) or not item.in_turn
                assert (row.waits > 0) == waits, f"{row.id} waits for {row.waits}, and {item} says {waits}"
                assert row.waits or row.later == item.later, f"{row.id}: {item}"

    def compare_health(self):
        """So do the counts of the view."""
        shown = {("leased" if status == "processing" else status): count for status, count in
                 self.look(f"SELECT status, sum(ct)::int FROM {self.HEALTH} GROUP BY status HAVING sum(ct) > 0")}
        statuses = [item.status for item in self.model.items.values()]
        assert shown == {status: statuses.count(status) for status in set(statuses)}


BOTH = ["lease"] * 8 + ["ack"] * 4 + ["fail"] * 3 + ["extend", "hold", "release", "expire", "expire", "time_comes", "requeue", "requeue", "cancel", "discard",
                                                      "pause", "resume", "resume"]


class Events(Run):
    """events_queue."""

    EVENTS, ITEMS, TABLE, HEALTH = True, "events", "events_queue", "vw_events_queue_health"
    TOPICS, SLOW = ["quick", "slow"], {"slow"}
    LEASE = "SELECT * FROM lease_events(%s, {limit}, 3600, 'tester')"
    OPERATIONS = BOTH + ["enqueue"] * 5 + ["enqueue_named"] * 2 + ["enqueue_ordered"] * 4 + ["enqueue_after"] * 2 + ["enqueue_batch"] * 2

    def prepare(self):
        """Nothing is left of the sequence before."""
        self.look("TRUNCATE events_queue, event_keys, event_parents")
        self.look("DELETE FROM event_tally")
        for topic, wait in (("quick", "0"), ("slow", "1 day")):
            self.look("SELECT register_topic(%s, 'model_handle')", topic)
            self.look("SELECT configure_topic(%s, jsonb_build_object('retry_base', %s::text, 'retry_cap', '1 day'))", topic, wait)
            self.look("SELECT resume_topic(%s)", topic)

    def lease_topic(self):
        """Mostly by name."""
        return self.random.choice(["quick", "slow", "quick", "slow", None])

    def enqueue(self, **more):
        topic, later, attempts = self.random.choice(self.TOPICS), self.random.random() < 0.2, self.random.choice([1, 2, 3, 5])
        arguments = {"priority": self.random.randint(-100, 100), "max_attempts": attempts} | more
        names = "".join(f", {name} => %s" for name in arguments) + (", run_at => now() + interval '1 day'" if later else "")
        ((number,),) = self.ask(f"SELECT enqueue_event(%s{names})", topic, *arguments.values())
        name = more.get("idempotency_key")
        known = self.model.named(topic, name)
        if known and known.status != "error":
            assert number == known.id
            return
        assert number == known.id if known else number not in self.model.items
        parents = {i for i in more.get("after", []) if self.model.items[i].status != "done"}
        self.model.add(Item(number, topic, attempts, more.get("ordering_key"), name, later=later, parents=parents))

    def enqueue_named(self):
        self.enqueue(idempotency_key=self.random.choice("abcd"), **({"ordering_key": self.random.choice("xy")} if self.random.random() < 0.3 else {}))

    def enqueue_ordered(self):
        self.enqueue(ordering_key=self.random.choice("xyz"))

    def enqueue_after(self):
        if self.model.items:
            self.enqueue(after=[i for i in self.some(self.model.items.values()) if i in self.model.items] or [self.random.choice(list(self.model.items))])

    def enqueue_batch(self):
        topic, keys = self.random.choice(self.TOPICS), [self.random.choice(["x", "y", None]) for _ in range(self.random.randint(1, 4))]
        rows = self.ask("SELECT enqueue_events(%s, array_fill('{}'::jsonb, ARRAY[cardinality(%s::text[])]), ordering_keys => %s, max_attempts => 2)", topic, keys, keys)
        for (number,), key in zip(rows, keys):
            self.model.add(Item(number, topic, 2, key))


class Discovery(Run):
    """marketplace_discovery_queue."""

    EVENTS, ITEMS, TABLE, HEALTH = False, "discovery_items", "marketplace_discovery_queue", "vw_discovery_queue_health"
    TOPICS, SLOW = ["marketplace.discovery"], set()
    LEASE = "SELECT * FROM lease_discovery_items({limit}, 3600, 'tester')"
    OPERATIONS = BOTH + ["enqueue"] * 7

    def prepare(self):
        """Nothing is left of the sequence before."""
        self.look("TRUNCATE marketplace_discovery_queue, interest_catalog CASCADE")
        self.look("DELETE FROM event_tally")
        self.look("SELECT resume_topic('marketplace.discovery')")
        self.look("SELECT configure_topic('marketplace.discovery', '{\"retry_base\": \"0\", \"max_attempts\": 3}')")
        self.interests = [row[0] for row in self.look(
            "INSERT INTO interest_catalog (domain, category, tag) SELECT 'd', 'c', i::text FROM generate_series(1, 12) i RETURNING id")]

    def lease_topic(self):
        """There is one."""
        return self.TOPICS[0]

    def enqueue(self):
        interests = self.random.sample(self.interests, self.random.randint(1, 3))
        priority, later = self.random.randint(-100, 100), self.random.random() < 0.2
        rows = self.ask("SELECT enqueue_discovery_items(%s, priority => %s, run_at => now() + %s::interval)", interests, priority, "1 day" if later else "0")
        for (number,), interest in zip(rows, interests, strict=True):
            known = self.model.named(self.TOPICS[0], str(interest))
            if known and known.live:
                assert number == known.id
                known.again = known.again or known.status == "leased"
                continue
            if known:
                del self.model.items[known.id]
            self.model.add(Item(number, self.TOPICS[0], 3, name=str(interest), later=later))


@pytest.mark.parametrize("kind", [Events, Discovery], ids=["events", "discovery"])
def test_tables_and_model_agree_after_every_operation(db, kind):
    db.run("""CREATE FUNCTION model_handle(ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean)
              LANGUAGE sql AS $$ SELECT NULL::bigint, NULL::text, NULL::boolean WHERE false $$""")
    sessions = [db.connect() for _ in range(4)]
    seed, end = SEED, time.monotonic() + SECONDS
    try:
        while time.monotonic() < end:
            kind(db, sessions, seed).go()
            seed += 1
    finally:
        for connection in sessions:
            connection.close()
    assert seed > SEED
