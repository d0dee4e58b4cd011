-- events_queue: leased work. Rows live in one small partition while they wait or are leased, and move to another when
-- they end, so that the cost of leasing follows the work that is left and never the work that was done.

CREATE TABLE event_topics (
    topic        text PRIMARY KEY CHECK (topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
    handler      text NOT NULL,
    max_attempts int NOT NULL DEFAULT 5 CHECK (max_attempts BETWEEN 1 AND 100),
    description  text NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE event_topics IS 'The topics that workers know, and the function that handles each. Written by register_topic().';
COMMENT ON COLUMN event_topics.topic IS 'Name of the topic: lower-case letters, digits, dot, dash, underscore';
COMMENT ON COLUMN event_topics.handler IS 'Function (ids bigint[], payloads jsonb[]) that does the work of a batch and returns a row for each event that failed';
COMMENT ON COLUMN event_topics.max_attempts IS 'Attempts that an event of this topic gets unless it says otherwise';
COMMENT ON COLUMN event_topics.description IS 'What the topic is for';
COMMENT ON COLUMN event_topics.created_at IS 'When the topic was registered first';

CREATE SEQUENCE events_queue_id_seq;
CREATE TABLE events_queue (
    id               bigint NOT NULL DEFAULT nextval('events_queue_id_seq'),
    lease_token      uuid,
    lease_expires_at timestamptz,
    run_at           timestamptz NOT NULL DEFAULT now(),
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    priority         int NOT NULL DEFAULT 0,
    attempts         int NOT NULL DEFAULT 0,
    max_attempts     int NOT NULL DEFAULT 5,
    status           text NOT NULL DEFAULT 'queued',
    topic            text NOT NULL,
    payload          jsonb NOT NULL DEFAULT '{}',
    idempotency_key  text,
    leased_by        text,
    last_error       text,
    CONSTRAINT events_queue_status_check CHECK (status IN ('queued', 'leased', 'done', 'error')),
    CONSTRAINT events_queue_lease_check CHECK (status <> 'leased' OR (lease_token IS NOT NULL AND lease_expires_at IS NOT NULL)),
    CONSTRAINT events_queue_topic_check CHECK (topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
    CONSTRAINT events_queue_priority_check CHECK (priority BETWEEN -100 AND 100),
    CONSTRAINT events_queue_attempts_check CHECK (attempts >= 0),
    CONSTRAINT events_queue_max_attempts_check CHECK (max_attempts BETWEEN 1 AND 100)
) PARTITION BY LIST (status);
ALTER SEQUENCE events_queue_id_seq OWNED BY events_queue.id;

CREATE TABLE events_queue_live PARTITION OF events_queue (PRIMARY KEY (id)) FOR VALUES IN ('queued', 'leased')
    WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE TABLE events_queue_done PARTITION OF events_queue (PRIMARY KEY (id)) FOR VALUES IN ('done')
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE TABLE events_queue_error PARTITION OF events_queue (PRIMARY KEY (id)) FOR VALUES IN ('error')
    WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

CREATE INDEX events_queue_ready_idx ON events_queue_live (priority, run_at, id) WHERE status = 'queued';
CREATE INDEX events_queue_ready_topic_idx ON events_queue_live (topic, priority, run_at, id) WHERE status = 'queued';
CREATE INDEX events_queue_lease_idx ON events_queue_live (lease_expires_at) WHERE status = 'leased';
CREATE INDEX events_queue_done_updated_idx ON events_queue_done (updated_at);
CREATE INDEX events_queue_error_updated_idx ON events_queue_error (updated_at);

COMMENT ON TABLE events_queue IS
    'Leased events: queued -> leased -> done or error. Partitioned by status: waiting and leased rows in events_queue_live, ended ones in events_queue_done and events_queue_error.';
COMMENT ON TABLE events_queue_live IS 'Events that wait or are leased';
COMMENT ON TABLE events_queue_done IS 'Events whose effect is committed';
COMMENT ON TABLE events_queue_error IS 'Events that failed for good: out of attempts, or failed permanently';
COMMENT ON COLUMN events_queue.id IS 'Identifies the event; grows in the order of enqueueing';
COMMENT ON COLUMN events_queue.lease_token IS 'Fencing token of the current lease: whoever does not hold it cannot ack, fail, extend or release';
COMMENT ON COLUMN events_queue.lease_expires_at IS 'The lease holds until then, and not longer';
COMMENT ON COLUMN events_queue.run_at IS 'Not leased before then; a retry moves it into the future';
COMMENT ON COLUMN events_queue.created_at IS 'When it was enqueued';
COMMENT ON COLUMN events_queue.updated_at IS 'When its status changed last';
COMMENT ON COLUMN events_queue.priority IS 'Lower is leased first; -100 to 100';
COMMENT ON COLUMN events_queue.attempts IS 'Leases given so far, counted when the lease is taken';
COMMENT ON COLUMN events_queue.max_attempts IS 'After so many attempts the event ends in error';
COMMENT ON COLUMN events_queue.status IS 'queued, leased, done or error';
COMMENT ON COLUMN events_queue.topic IS 'Which handler does the work';
COMMENT ON COLUMN events_queue.payload IS 'Argument of the handler';
COMMENT ON COLUMN events_queue.idempotency_key IS 'Names the event within its topic; see enqueue_event()';
COMMENT ON COLUMN events_queue.leased_by IS 'Name of the worker that leased it last';
COMMENT ON COLUMN events_queue.last_error IS 'Why the last attempt failed';

CREATE TABLE event_keys (
    topic           text NOT NULL,
    idempotency_key text NOT NULL,
    event_id        bigint NOT NULL,
    PRIMARY KEY (topic, idempotency_key)
);
COMMENT ON TABLE event_keys IS 'Which event an idempotency key names, for as long as the event is kept';
COMMENT ON COLUMN event_keys.topic IS 'Topic that the key belongs to';
COMMENT ON COLUMN event_keys.idempotency_key IS 'The key, chosen by whoever enqueues';
COMMENT ON COLUMN event_keys.event_id IS 'The event that the key names';

-- Ended rows are counted as they arrive and leave, so that no health view ever scans them.
CREATE TABLE event_tally (
    topic  text NOT NULL,
    status text NOT NULL,
    ct     bigint NOT NULL,
    at     timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE event_tally IS 'Changes to the number of ended events; the sum per topic and status is their count. Folded together now and then.';
COMMENT ON COLUMN event_tally.topic IS 'Topic of the events';
COMMENT ON COLUMN event_tally.status IS 'done or error';
COMMENT ON COLUMN event_tally.ct IS 'How many more, or fewer if negative';
COMMENT ON COLUMN event_tally.at IS 'When the last of them ended';

CREATE TABLE worker_heartbeats (
    worker_id   text PRIMARY KEY,
    host        text NOT NULL,
    pid         int NOT NULL,
    version     text NOT NULL,
    started_at  timestamptz NOT NULL,
    beat_at     timestamptz NOT NULL,
    state       text NOT NULL CHECK (state IN ('running', 'draining', 'stopped')),
    waiting     boolean NOT NULL DEFAULT false,
    leased      int NOT NULL DEFAULT 0,
    events_done bigint NOT NULL DEFAULT 0,
    last_error  text
) WITH (fillfactor = 50);
COMMENT ON TABLE worker_heartbeats IS 'A row per worker process, renewed every few seconds: idle is not stuck.';
COMMENT ON COLUMN worker_heartbeats.worker_id IS 'Name of the process, unique per start';
COMMENT ON COLUMN worker_heartbeats.host IS 'Where it runs';
COMMENT ON COLUMN worker_heartbeats.pid IS 'Its process id there';
COMMENT ON COLUMN worker_heartbeats.version IS 'Version of the worker';
COMMENT ON COLUMN worker_heartbeats.started_at IS 'When it started';
COMMENT ON COLUMN worker_heartbeats.beat_at IS 'When it was last alive';
COMMENT ON COLUMN worker_heartbeats.state IS 'running, draining (finishing what it leased) or stopped';
COMMENT ON COLUMN worker_heartbeats.waiting IS 'True while it has nothing to do and listens; only then does enqueueing notify';
COMMENT ON COLUMN worker_heartbeats.leased IS 'Events that it holds now';
COMMENT ON COLUMN worker_heartbeats.events_done IS 'Events that it has completed since it started';
COMMENT ON COLUMN worker_heartbeats.last_error IS 'Its last failure, if any';
