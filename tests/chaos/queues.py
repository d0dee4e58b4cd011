"""What the clients call for each of the two queues."""

from dataclasses import dataclass

TOPIC = "chaos.client"
LEASE_SECONDS = 2


@dataclass(frozen=True)
class Queue:
    """The SQL of one queue. A key is a UUID in text; it names one item for the checker."""

    name: str
    live: str
    done: str
    leased: str
    enqueue: tuple
    lease: str
    hold: str
    ack: str
    fail: str
    extend: str
    rows: str
    health: str


def _queue(name, items, table, leased, **own):
    return Queue(
        name=name, live=f"{table}_live", done=f"{table}_done", leased=leased,
        hold=f"SELECT id FROM hold_{items}(%(ids)s, %(token)s)",
        ack=f"SELECT id, held FROM ack_{items}(%(ids)s, %(token)s)",
        fail=f"SELECT id, held, extract(epoch FROM run_at)::float8 AS run_at FROM fail_{items}(%(ids)s, %(token)s, 'told to fail', %(retryable)s)",
        extend=f"SELECT id, held, extract(epoch FROM lease_expires_at)::float8 AS expires FROM extend_{items}(%(ids)s, %(token)s, {LEASE_SECONDS})",
        **own)


EVENTS = _queue(
    "events", "events", "events_queue", "leased",
    enqueue=(f"SELECT enqueue_events('{TOPIC}', (SELECT array_agg(jsonb_build_object('key', k, 'lane', l) ORDER BY n) FROM unnest(%(keys)s::text[], %(lanes)s::text[]) "
            "WITH ORDINALITY AS u(k, l, n)), %(keys)s::text[], ordering_keys => %(lanes)s::text[]) AS id",),
    lease="SELECT id, payload ->> 'key' AS key, attempts, lease_token AS token, extract(epoch FROM lease_expires_at)::float8 AS expires "
          f"FROM lease_events('{TOPIC}', %(asked)s, {LEASE_SECONDS}, %(worker)s)",
    rows="SELECT id, payload ->> 'key' AS key, status, attempts FROM events_queue",
    health="vw_events_queue_health")

DISCOVERY = _queue(
    "discovery", "discovery_items", "marketplace_discovery_queue", "processing",
    enqueue=("INSERT INTO interest_catalog (id, domain, category, tag) SELECT k::uuid, 'chaos', 'chaos', k FROM unnest(%(keys)s::text[]) k",
             "SELECT enqueue_discovery_items(%(keys)s::uuid[]) AS id"),
    lease="SELECT id, interest_id::text AS key, attempts, lease_token AS token, extract(epoch FROM lease_expires_at)::float8 AS expires "
          f"FROM lease_discovery_items(%(asked)s, {LEASE_SECONDS}, %(worker)s)",
    rows="SELECT id, interest_id::text AS key, status, attempts FROM marketplace_discovery_queue",
    health="vw_discovery_queue_health")

QUEUES = {queue.name: queue for queue in (EVENTS, DISCOVERY)}


def doomed(key):
    """Consumers fail these for good, so they must end in error; all others must end in done."""
    return key.startswith("0")
