-- Both queues on one layout: events_queue (made anew, its events are kept) and marketplace_discovery_queue.
--
-- Items that wait or are leased live in a small table; ended ones move to tables that leasing never reads. A lease changes
-- no indexed column, so that it is one HOT update: nothing but the row is written. The tables have no CHECK constraints,
-- which would be planned anew by every statement (13 µs, more than the insert): the functions check what they write, and a
-- trigger on the queue's own name checks what is changed by hand.

DELETE FROM schema_migrations WHERE name = 'functions/queue.sql';  -- it is two now
CREATE TEMP TABLE kept_events ON COMMIT DROP AS SELECT * FROM events_queue;
DROP TABLE events_queue CASCADE;
DROP FUNCTION IF EXISTS enqueue_event(text, jsonb, text, int, timestamptz, int), enqueue_events(text, jsonb[], text[], int, timestamptz, int),
    end_events(bigint[], text, text), ack_events(bigint[], uuid, timestamptz), tally_events();

-- Topics: what may be leased, how fast, how often, and for how long ended items are kept.
ALTER TABLE event_topics
    DROP CONSTRAINT event_topics_topic_check,
    ALTER COLUMN topic SET DATA TYPE text COLLATE "C",
    ALTER COLUMN handler DROP NOT NULL,
    ADD CONSTRAINT event_topics_topic_check CHECK (topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
    ADD COLUMN registered        boolean NOT NULL DEFAULT true,
    ADD COLUMN state             text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'draining')),
    ADD COLUMN retry_base        interval NOT NULL DEFAULT '2 seconds' CHECK (retry_base >= '0' AND retry_base <= '1 day'),
    ADD COLUMN retry_factor      double precision NOT NULL DEFAULT 2 CHECK (retry_factor BETWEEN 1 AND 100),
    ADD COLUMN retry_cap         interval NOT NULL DEFAULT '1 hour' CHECK (retry_cap >= '0' AND retry_cap <= '30 days'),
    ADD COLUMN retry_jitter      double precision NOT NULL DEFAULT 0.125 CHECK (retry_jitter BETWEEN 0 AND 1),
    ADD COLUMN rearm             text NOT NULL DEFAULT 'error' CHECK (rearm IN ('error', 'ended', 'started')),
    ADD COLUMN max_payload_bytes int NOT NULL DEFAULT 1048576 CHECK (max_payload_bytes BETWEEN 16 AND 67108864),
    ADD COLUMN max_leased        int CHECK (max_leased BETWEEN 1 AND 1000000),
    ADD COLUMN rate_limit        int CHECK (rate_limit BETWEEN 1 AND 1000000),
    ADD COLUMN rate_window       interval NOT NULL DEFAULT '1 second' CHECK (rate_window BETWEEN '1 millisecond' AND '1 day'),
    ADD COLUMN key_concurrency   int NOT NULL DEFAULT 1 CHECK (key_concurrency BETWEEN 1 AND 10000),
    ADD COLUMN key_interval      interval NOT NULL DEFAULT '0' CHECK (key_interval >= '0' AND key_interval <= '1 day'),
    ADD COLUMN keep_done         interval NOT NULL DEFAULT '7 days' CHECK (keep_done >= '0' AND keep_done <= '1000 years'),
    ADD COLUMN keep_error        interval NOT NULL DEFAULT '90 days' CHECK (keep_error >= '1 hour' AND keep_error <= '1000 years');
COMMENT ON TABLE event_topics IS 'The topics: which function handles each, and the rules of its queue. Written by register_topic(), configure_topic(), pause_topic(), resume_topic(), drain_topic().';
COMMENT ON COLUMN event_topics.handler IS 'Function (ids bigint[], payloads jsonb[]) that does the work of a batch and returns a row for each event that failed; NULL: leased by name only';
COMMENT ON COLUMN event_topics.registered IS 'False for a topic that was only seen in an event; its events end in error when a worker meets them';
COMMENT ON COLUMN event_topics.state IS 'active; paused: nothing is leased; draining: nothing new is accepted';
COMMENT ON COLUMN event_topics.retry_base IS 'Wait after the first failure';
COMMENT ON COLUMN event_topics.retry_factor IS 'Each further wait is so many times longer';
COMMENT ON COLUMN event_topics.retry_cap IS 'No wait is longer than this';
COMMENT ON COLUMN event_topics.retry_jitter IS 'Waits are spread by this share either way';
COMMENT ON COLUMN event_topics.rearm IS 'When a key is free again: error (its event ended in error), ended (its event ended) or started (its event was leased)';
COMMENT ON COLUMN event_topics.max_payload_bytes IS 'No payload is larger';
COMMENT ON COLUMN event_topics.max_leased IS 'No more are leased at the same time, over all workers; NULL: no limit';
COMMENT ON COLUMN event_topics.rate_limit IS 'No more are leased per rate_window, over all workers; NULL: no limit';
COMMENT ON COLUMN event_topics.rate_window IS 'The time that rate_limit is about';
COMMENT ON COLUMN event_topics.key_concurrency IS 'So many events of one ordering key may run at the same time; 1 keeps their order';
COMMENT ON COLUMN event_topics.key_interval IS 'At least so long between two events of one ordering key';
COMMENT ON COLUMN event_topics.keep_done IS 'How long done ones are kept; 0: not at all';
COMMENT ON COLUMN event_topics.keep_error IS 'How long failed ones are kept';
INSERT INTO event_topics (topic, handler, max_attempts, description) VALUES
    ('marketplace.discovery', NULL, 5, 'Rules of marketplace_discovery_queue'),
    ('discovery.user-signup', NULL, 5, 'A user has signed up: discover for each of their interests'),
    ('discovery.new-interest', NULL, 5, 'An interest is new: find its category'),
    ('telemetry.signal', NULL, 5, 'A signal to record'),
    ('learning.reward', NULL, 5, 'A reward for something that was shown')
ON CONFLICT DO NOTHING;
INSERT INTO event_topics (topic, registered) SELECT DISTINCT topic, false FROM kept_events ON CONFLICT DO NOTHING;

ALTER TABLE event_keys ALTER COLUMN topic SET DATA TYPE text COLLATE "C", ALTER COLUMN idempotency_key SET DATA TYPE text COLLATE "C";

-- The columns that every queue has. Those that a lease changes stand together, so that the log of the change stays short.
CREATE SEQUENCE queue_id_seq;
CREATE TABLE queue_columns (
    id               bigint NOT NULL DEFAULT nextval('queue_id_seq'),
    run_at           timestamptz NOT NULL DEFAULT now(),
    turn_at          timestamptz NOT NULL DEFAULT now(),
    created_at       timestamptz NOT NULL DEFAULT now(),
    priority         smallint NOT NULL DEFAULT 0,
    max_attempts     smallint NOT NULL DEFAULT 5,
    waits            smallint NOT NULL DEFAULT 0,
    deferred         boolean NOT NULL DEFAULT false,
    watched          boolean NOT NULL DEFAULT false,
    again            boolean NOT NULL DEFAULT false,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    attempts         int NOT NULL DEFAULT 0,
    status           text NOT NULL DEFAULT 'queued',
    lease_token      uuid,
    lease_expires_at timestamptz,
    leased_by        text,
    topic            text COLLATE "C" NOT NULL,
    ordering_key     text COLLATE "C",
    idempotency_key  text COLLATE "C",
    last_error       text,
    result           jsonb
);
COMMENT ON COLUMN queue_columns.id IS 'Identifies the item in both queues; grows in the order of enqueueing';
COMMENT ON COLUMN queue_columns.run_at IS 'Not leased before then; a retry moves it into the future';
COMMENT ON COLUMN queue_columns.turn_at IS 'Place in the line: when it joined it, and 30 s later for each step of priority, so that waiting wins in the end';
COMMENT ON COLUMN queue_columns.created_at IS 'When it was enqueued';
COMMENT ON COLUMN queue_columns.priority IS 'Lower is leased first; -100 to 100';
COMMENT ON COLUMN queue_columns.max_attempts IS 'After so many attempts it ends in error';
COMMENT ON COLUMN queue_columns.waits IS 'How many things it waits for: events, or its turn within its ordering key';
COMMENT ON COLUMN queue_columns.deferred IS 'True while it is not in the line: run_at has not come, or it waits for something';
COMMENT ON COLUMN queue_columns.watched IS 'True if its end matters to others: they wait for it, or its topic is limited';
COMMENT ON COLUMN queue_columns.again IS 'True if it was enqueued anew while it was leased: its ack puts it back into the line';
COMMENT ON COLUMN queue_columns.updated_at IS 'When its status changed last';
COMMENT ON COLUMN queue_columns.attempts IS 'Leases given so far, counted when the lease is taken';
COMMENT ON COLUMN queue_columns.status IS 'Where it stands: waiting, leased, done or error';
COMMENT ON COLUMN queue_columns.lease_token IS 'Fencing token of the current lease: whoever does not hold it cannot ack, fail, extend or release';
COMMENT ON COLUMN queue_columns.lease_expires_at IS 'The lease holds until then, and not longer';
COMMENT ON COLUMN queue_columns.leased_by IS 'Name of the worker that leased it last';
COMMENT ON COLUMN queue_columns.topic IS 'Whose rules apply: a row of event_topics';
COMMENT ON COLUMN queue_columns.ordering_key IS 'Items of one topic with the same key run in the order of their ids';
COMMENT ON COLUMN queue_columns.idempotency_key IS 'Names the item within its topic; see enqueue_event()';
COMMENT ON COLUMN queue_columns.last_error IS 'Why the last attempt failed';
COMMENT ON COLUMN queue_columns.result IS 'What the worker noted when it was done';

CREATE TABLE events_queue (
    LIKE queue_columns INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS,
    payload jsonb NOT NULL DEFAULT '{}'
) PARTITION BY LIST (status);
CREATE TABLE events_queue_live PARTITION OF events_queue (PRIMARY KEY (id)) FOR VALUES IN ('queued', 'leased')
    WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE TABLE events_queue_done PARTITION OF events_queue FOR VALUES IN ('done')
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02);
CREATE TABLE events_queue_error PARTITION OF events_queue (PRIMARY KEY (id)) FOR VALUES IN ('error')
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

CREATE TABLE marketplace_discovery_queue (
    LIKE queue_columns INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS,
    interest_id uuid NOT NULL REFERENCES interest_catalog (id) ON DELETE CASCADE,
    category_id uuid REFERENCES marketplace_categories (id) ON DELETE CASCADE,
    reason      text NOT NULL,
    created_by  text NOT NULL DEFAULT session_user
) PARTITION BY LIST (status);
ALTER TABLE marketplace_discovery_queue ALTER COLUMN topic SET DEFAULT 'marketplace.discovery';
CREATE TABLE marketplace_discovery_queue_live PARTITION OF marketplace_discovery_queue (PRIMARY KEY (id)) FOR VALUES IN ('queued', 'processing')
    WITH (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE TABLE marketplace_discovery_queue_done PARTITION OF marketplace_discovery_queue FOR VALUES IN ('done')
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02);
CREATE TABLE marketplace_discovery_queue_error PARTITION OF marketplace_discovery_queue (PRIMARY KEY (id)) FOR VALUES IN ('error')
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
DROP TABLE queue_columns;

-- The line; those whose time has not come; the order within a key. No lease column is in any of them.
CREATE INDEX events_queue_line_idx ON events_queue_live (topic, turn_at) WHERE NOT deferred;
CREATE INDEX events_queue_due_idx ON events_queue_live (run_at) WHERE deferred AND waits = 0;
CREATE INDEX events_queue_order_idx ON events_queue_live (topic, ordering_key, waits, id) WHERE ordering_key IS NOT NULL;
CREATE INDEX events_queue_error_updated_idx ON events_queue_error (updated_at);
CREATE INDEX marketplace_discovery_queue_line_idx ON marketplace_discovery_queue_live (topic, turn_at) WHERE NOT deferred;
CREATE INDEX marketplace_discovery_queue_due_idx ON marketplace_discovery_queue_live (run_at) WHERE deferred AND waits = 0;
CREATE INDEX marketplace_discovery_queue_error_updated_idx ON marketplace_discovery_queue_error (updated_at);

-- Done rows are only appended, in the order of time: block ranges find them by id or time, and cost next to nothing to keep.
CREATE INDEX events_queue_done_range_idx ON events_queue_done USING brin (id, updated_at) WITH (pages_per_range = 16, autosummarize = on);
CREATE INDEX events_queue_done_key_idx ON events_queue_done (id) WHERE idempotency_key IS NOT NULL;
CREATE INDEX marketplace_discovery_queue_done_range_idx ON marketplace_discovery_queue_done USING brin (id, updated_at)
    WITH (pages_per_range = 16, autosummarize = on);

CREATE INDEX marketplace_discovery_queue_category_idx ON marketplace_discovery_queue (category_id);
ALTER TABLE events_queue_done REPLICA IDENTITY FULL;
ALTER TABLE marketplace_discovery_queue_done REPLICA IDENTITY FULL;
ALTER TABLE event_tally REPLICA IDENTITY FULL;

-- One item per interest, category (none counts as one) and reason in each state.
CREATE UNIQUE INDEX marketplace_discovery_queue_live_key ON marketplace_discovery_queue_live (interest_id, category_id, reason) NULLS NOT DISTINCT;
CREATE UNIQUE INDEX marketplace_discovery_queue_done_key ON marketplace_discovery_queue_done (interest_id, category_id, reason) NULLS NOT DISTINCT;
CREATE UNIQUE INDEX marketplace_discovery_queue_error_key ON marketplace_discovery_queue_error (interest_id, category_id, reason) NULLS NOT DISTINCT;

COMMENT ON TABLE events_queue IS
    'Leased events: queued -> leased -> done or error. Partitioned by status: waiting and leased rows in events_queue_live, ended ones in events_queue_done and events_queue_error.';
COMMENT ON TABLE events_queue_live IS 'Events that wait or are leased';
COMMENT ON TABLE events_queue_done IS 'Events whose effect is committed';
COMMENT ON TABLE events_queue_error IS 'Events that failed for good: out of attempts, failed permanently, or cancelled';
COMMENT ON COLUMN events_queue.payload IS 'Argument of the handler: a JSON object';
COMMENT ON TABLE marketplace_discovery_queue IS
    'Interests whose marketplace has to be looked at: queued -> processing -> done or error. Partitioned by status, as events_queue.';
COMMENT ON TABLE marketplace_discovery_queue_live IS 'Discovery items that wait or are leased';
COMMENT ON TABLE marketplace_discovery_queue_done IS 'Discovery items that were looked at; enqueueing the same again arms it anew';
COMMENT ON TABLE marketplace_discovery_queue_error IS 'Discovery items that failed for good';
COMMENT ON COLUMN marketplace_discovery_queue.interest_id IS 'The interest';
COMMENT ON COLUMN marketplace_discovery_queue.category_id IS 'One category, or NULL for all that the interest is mapped to';
COMMENT ON COLUMN marketplace_discovery_queue.reason IS 'Why: new-interest, user-signup, or another word';
COMMENT ON COLUMN marketplace_discovery_queue.created_by IS 'Who enqueued it';

-- What is copied in is enqueued in the same statement and does not stay, so it needs no log.
CREATE UNLOGGED TABLE events_inbox (
    topic           text NOT NULL,
    payload         jsonb NOT NULL DEFAULT '{}',
    idempotency_key text,
    ordering_key    text,
    priority        int NOT NULL DEFAULT 0,
    run_at          timestamptz,
    max_attempts    int,
    inbox_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
) WITH (autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE events_inbox IS 'What is inserted or copied into it is enqueued, by the rules of enqueue_events(), and leaves it at once: COPY events_inbox (topic, payload) FROM STDIN.';
COMMENT ON COLUMN events_inbox.topic IS 'The topic';
COMMENT ON COLUMN events_inbox.payload IS 'The payload';
COMMENT ON COLUMN events_inbox.idempotency_key IS 'The idempotency key, if any';
COMMENT ON COLUMN events_inbox.ordering_key IS 'The ordering key, if any';
COMMENT ON COLUMN events_inbox.priority IS 'The priority';
COMMENT ON COLUMN events_inbox.run_at IS 'Not before then';
COMMENT ON COLUMN events_inbox.max_attempts IS 'Attempts; those of the topic if left out';
COMMENT ON COLUMN events_inbox.inbox_id IS 'The order of arrival';

-- Who waits for whom, and what limited topics have given out.
CREATE TABLE event_parents (
    parent_id bigint NOT NULL,
    child_id  bigint NOT NULL,
    PRIMARY KEY (parent_id, child_id)
);
CREATE INDEX event_parents_child_idx ON event_parents (child_id);
COMMENT ON TABLE event_parents IS 'Events that wait until others are done';
COMMENT ON COLUMN event_parents.parent_id IS 'The event that must be done first';
COMMENT ON COLUMN event_parents.child_id IS 'The event that waits for it';
CREATE TABLE topic_usage (
    topic       text COLLATE "C" PRIMARY KEY,
    tokens      double precision NOT NULL,
    refilled_at timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE topic_usage IS 'What is left of the rate of limited topics; also the lock under which their leases are counted';
COMMENT ON COLUMN topic_usage.topic IS 'The topic';
COMMENT ON COLUMN topic_usage.tokens IS 'How many could be leased at refilled_at';
COMMENT ON COLUMN topic_usage.refilled_at IS 'When that was';
CREATE TABLE topic_slots (
    lease_token uuid NOT NULL,
    topic       text COLLATE "C" NOT NULL,
    ct          bigint NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (lease_token, topic)
) WITH (fillfactor = 50);
COMMENT ON TABLE topic_slots IS 'How many items of limited topics each lease holds';
COMMENT ON COLUMN topic_slots.lease_token IS 'The lease';
COMMENT ON COLUMN topic_slots.topic IS 'The topic';
COMMENT ON COLUMN topic_slots.ct IS 'Items that it holds still';
COMMENT ON COLUMN topic_slots.expires_at IS 'Not counted after that';
CREATE TABLE key_pace (
    topic        text COLLATE "C" NOT NULL,
    ordering_key text COLLATE "C" NOT NULL,
    next_at      timestamptz NOT NULL,
    PRIMARY KEY (topic, ordering_key)
) WITH (fillfactor = 50);
COMMENT ON TABLE key_pace IS 'When the next event of an ordering key may run, for topics with a key_interval';
COMMENT ON COLUMN key_pace.topic IS 'The topic';
COMMENT ON COLUMN key_pace.ordering_key IS 'The ordering key';
COMMENT ON COLUMN key_pace.next_at IS 'Not before';

INSERT INTO events_queue (id, run_at, turn_at, created_at, priority, max_attempts, deferred, updated_at, attempts, status, lease_token, lease_expires_at,
                          leased_by, topic, last_error, payload, idempotency_key)
SELECT id, run_at, run_at + priority * interval '30 seconds', created_at, priority, max_attempts, status = 'queued' AND run_at > now(), updated_at, attempts,
       status, lease_token, lease_expires_at, leased_by, topic, last_error, payload, idempotency_key
  FROM kept_events ORDER BY updated_at;
SELECT setval('queue_id_seq', coalesce((SELECT max(id) FROM kept_events), 0) + 1, false);

COMMENT ON COLUMN worker_heartbeats.leased IS 'Items of both queues that it holds now';
COMMENT ON COLUMN worker_heartbeats.events_done IS 'Items of both queues that it has completed since it started';
