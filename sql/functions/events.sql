-- What events_queue has beyond the mechanism of queue.sql: enqueueing, the inbox, and leases in fair shares over topics.

CREATE OR REPLACE FUNCTION check_enqueue(topic text, priority int, run_at timestamptz, max_attempts int) RETURNS event_topics
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    rules event_topics;
BEGIN
    PERFORM check_topic(topic), require_argument(priority, 'priority');
    PERFORM require_valid(priority BETWEEN -100 AND 100, format('priority %s is out of range', priority), 'Give -100 (first) to 100 (last).');
    PERFORM require_valid(run_at IS NULL OR isfinite(run_at), 'run_at must be a finite time', 'Leave run_at out to run at once.');
    PERFORM require_valid(max_attempts IS NULL OR max_attempts BETWEEN 1 AND 100, format('max_attempts %s is out of range', max_attempts), 'Give 1 to 100.');
    SELECT t.* INTO rules FROM event_topics t WHERE t.topic = check_enqueue.topic;
    IF NOT FOUND THEN
        INSERT INTO event_topics (topic, registered) VALUES (check_enqueue.topic, false) ON CONFLICT DO NOTHING;
        SELECT t.* INTO rules FROM event_topics t WHERE t.topic = check_enqueue.topic;
    END IF;
    PERFORM require_valid(rules.state <> 'draining', format('topic "%s" is being drained and accepts nothing new', topic),
        format('SELECT resume_topic(%L) opens it again.', topic), 'object_not_in_prerequisite_state');
    RETURN rules;
END $$;
COMMENT ON FUNCTION check_enqueue(text, int, timestamptz, int) IS
    'Raises an error unless something may be enqueued so; returns the rules of the topic, which becomes known by it.';

CREATE OR REPLACE FUNCTION check_payloads(topic text, payloads jsonb[], max_bytes int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    bad int;
BEGIN
    SELECT n INTO bad FROM unnest(payloads) WITH ORDINALITY AS p(payload, n)
     WHERE jsonb_typeof(payload) IS DISTINCT FROM 'object' OR pg_column_size(payload) > max_bytes LIMIT 1;
    IF bad IS NOT NULL THEN
        IF jsonb_typeof(payloads[bad]) = 'object' THEN
            RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded', MESSAGE = format('payload %s is larger than topic "%s" allows', bad, topic),
                DETAIL = format('It has %s bytes; the limit is %s.', pg_column_size(payloads[bad]), max_bytes),
                HINT = format('Enqueue a reference instead, or raise the limit: SELECT configure_topic(%L, ''{"max_payload_bytes": ...}'').', topic);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('payload %s is not a JSON object', bad),
            DETAIL = format('The payload is: %s', coalesce(left(payloads[bad]::text, 200), 'NULL')),
            HINT = 'Give a JSON object such as {"user_id": "..."}; {} if there is nothing to say.';
    END IF;
END $$;
COMMENT ON FUNCTION check_payloads(text, jsonb[], int) IS 'Raises 22023 or 54000 unless every payload is a JSON object of at most so many bytes.';

CREATE OR REPLACE FUNCTION enqueue_events(
    topic text, payloads jsonb[], idempotency_keys text[] DEFAULT NULL,
    priority int DEFAULT 0, run_at timestamptz DEFAULT NULL, max_attempts int DEFAULT NULL, ordering_keys text[] DEFAULT NULL) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    rules     event_topics;
    due       timestamptz := coalesce(enqueue_events.run_at, now());
    later     boolean := due > clock_timestamp();
    line      timestamptz := due + enqueue_events.priority * interval '30 seconds';
    lane      text;
    n         int;
BEGIN
    SELECT t.* INTO rules FROM event_topics t WHERE t.topic = enqueue_events.topic;
    IF topic = 'marketplace.discovery' THEN
        PERFORM require_valid(false, 'topic "marketplace.discovery" is that of marketplace_discovery_queue', 'SELECT enqueue_discovery_item(...) instead.');
    END IF;
    IF (rules.state <> 'draining' AND priority BETWEEN -100 AND 100 AND isfinite(due) AND coalesce(max_attempts, 1) BETWEEN 1 AND 100
        AND cardinality(payloads) BETWEEN 1 AND 100000) IS NOT TRUE
    THEN
        rules := check_enqueue(topic, priority, run_at, max_attempts);
        PERFORM require_argument(payloads, 'payloads');
        PERFORM require_valid(cardinality(payloads) > 0, 'payloads is empty', 'Give at least one payload.');
        PERFORM require_valid(cardinality(payloads) <= 100000, format('%s payloads are too many', cardinality(payloads)), 'Enqueue at most 100000 in a call.', '54000');
    END IF;
    max_attempts := coalesce(max_attempts, rules.max_attempts);
    IF idempotency_keys IS NOT NULL OR ordering_keys IS NOT NULL THEN
        PERFORM check_payloads(topic, payloads, rules.max_payload_bytes);
    END IF;
    IF ordering_keys IS NOT NULL THEN
        PERFORM require_valid(cardinality(ordering_keys) = cardinality(payloads),
            format('%s ordering keys for %s payloads', cardinality(ordering_keys), cardinality(payloads)),
            'Give one key per payload; NULL for an event without.', 'array_subscript_error');
        PERFORM require_valid(NOT EXISTS (SELECT FROM unnest(ordering_keys) k WHERE k = '' OR length(k) > 200),
            'an ordering key is empty or longer than 200 characters', 'Leave the key out (NULL), or give 1 to 200 characters.');
        PERFORM lock_keys(array_fill(topic, ARRAY[cardinality(ordering_keys)]), ordering_keys);
    END IF;

    IF idempotency_keys IS NULL AND ordering_keys IS NULL THEN
        RETURN QUERY
        INSERT INTO events_queue_live AS q (topic, payload, priority, run_at, turn_at, deferred, max_attempts)
        SELECT enqueue_events.topic, p.payload, enqueue_events.priority, due, line + p.at * interval '1 microsecond', later, enqueue_events.max_attempts
          FROM unnest(payloads) WITH ORDINALITY AS p(payload, at)
         WHERE jsonb_typeof(p.payload) = 'object' AND pg_column_size(p.payload) <= rules.max_payload_bytes
        RETURNING q.id;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(payloads) THEN
            PERFORM check_payloads(topic, payloads, rules.max_payload_bytes);
        END IF;
    ELSIF idempotency_keys IS NULL THEN
        RETURN QUERY
        INSERT INTO events_queue_live AS q (topic, payload, priority, run_at, turn_at, max_attempts, ordering_key, waits, deferred, watched)
        SELECT enqueue_events.topic, p.payload, enqueue_events.priority, due, line + p.at * interval '1 microsecond', enqueue_events.max_attempts,
               p.key, (p.key IS NOT NULL)::int, later OR p.key IS NOT NULL, p.key IS NOT NULL
          FROM unnest(payloads, ordering_keys) WITH ORDINALITY AS p(payload, key, at) ORDER BY p.at
        RETURNING q.id;
    ELSE
        PERFORM require_valid(cardinality(idempotency_keys) = cardinality(payloads),
            format('%s idempotency keys for %s payloads', cardinality(idempotency_keys), cardinality(payloads)),
            'Give one key per payload; NULL for an event without a key.', 'array_subscript_error');
        PERFORM require_valid(NOT EXISTS (SELECT FROM unnest(idempotency_keys) k WHERE k = '' OR length(k) > 500),
            'an idempotency key is empty or longer than 500 characters', 'Leave the key out (NULL), or give 1 to 500 characters.');
        IF array_position(idempotency_keys, NULL) IS NOT NULL THEN
            INSERT INTO events_queue_live (topic, payload, priority, run_at, turn_at, max_attempts, ordering_key, waits, deferred, watched)
            SELECT enqueue_events.topic, p.payload, enqueue_events.priority, due, line + p.at * interval '1 microsecond', enqueue_events.max_attempts,
                   ordering_keys[p.at], (ordering_keys[p.at] IS NOT NULL)::int, later OR ordering_keys[p.at] IS NOT NULL, ordering_keys[p.at] IS NOT NULL
              FROM unnest(payloads, idempotency_keys) WITH ORDINALITY AS p (payload, key, at) WHERE p.key IS NULL;
        END IF;
        LOOP
            -- Keys are claimed in one order by everybody, so that two callers with the same keys wait for each other and never deadlock.
            WITH wanted AS MATERIALIZED (
                SELECT key, min(k.at) AS n, nextval('queue_id_seq') AS id
                  FROM unnest(idempotency_keys) WITH ORDINALITY AS k (key, at) WHERE key IS NOT NULL GROUP BY key ORDER BY key
            ), claimed AS (
                INSERT INTO event_keys AS e (topic, idempotency_key, event_id)
                SELECT enqueue_events.topic, key, id FROM wanted ORDER BY key
                ON CONFLICT ON CONSTRAINT event_keys_pkey DO NOTHING
                RETURNING event_id
            )
            INSERT INTO events_queue_live (id, topic, payload, priority, run_at, turn_at, max_attempts, idempotency_key, ordering_key, waits, deferred, watched)
            SELECT w.id, enqueue_events.topic, payloads[w.n], enqueue_events.priority, due, line + w.n * interval '1 microsecond', enqueue_events.max_attempts, w.key,
                   ordering_keys[w.n], (ordering_keys[w.n] IS NOT NULL)::int, later OR ordering_keys[w.n] IS NOT NULL, ordering_keys[w.n] IS NOT NULL
              FROM wanted w WHERE w.id IN (SELECT event_id FROM claimed);

            -- With rearm = started, what is leased from now on must not miss this call.
            IF rules.rearm = 'started' THEN
                PERFORM FROM events_queue_live q JOIN event_keys k ON k.event_id = q.id
                  WHERE k.topic = enqueue_events.topic AND k.idempotency_key = ANY (idempotency_keys) ORDER BY q.id FOR SHARE OF q;
            END IF;

            -- A key whose event ended in error starts that event anew, with the new payload.
            WITH failed AS (
                DELETE FROM events_queue_error q USING event_keys k
                 WHERE k.topic = enqueue_events.topic AND k.idempotency_key = ANY (idempotency_keys) AND q.id = k.event_id
                RETURNING q.id, q.topic, q.idempotency_key, q.created_at
            ), counted AS (
                INSERT INTO event_tally (topic, status, ct) SELECT f.topic, 'error', -count(*) FROM failed f GROUP BY f.topic
            ), placed AS (
                SELECT f.*, array_position(idempotency_keys, f.idempotency_key) AS n FROM failed f
            )
            INSERT INTO events_queue_live (id, topic, payload, priority, run_at, turn_at, max_attempts, idempotency_key, created_at, ordering_key, waits, deferred, watched)
            SELECT f.id, f.topic, payloads[f.n], enqueue_events.priority, due, line, enqueue_events.max_attempts, f.idempotency_key, f.created_at,
                   ordering_keys[f.n], (ordering_keys[f.n] IS NOT NULL)::int, later OR ordering_keys[f.n] IS NOT NULL,
                   ordering_keys[f.n] IS NOT NULL
              FROM placed f;
            PERFORM watch_parents(ARRAY(SELECT k.event_id FROM event_keys k WHERE k.topic = enqueue_events.topic AND k.idempotency_key = ANY (idempotency_keys)));

            -- A key is free again when its event is gone, or has come as far as the topic says. Whoever was faster has given the key another event.
            WITH freed AS MATERIALIZED (
                SELECT k.idempotency_key AS key, k.event_id FROM event_keys k
                 WHERE k.topic = enqueue_events.topic AND k.idempotency_key = ANY (idempotency_keys)
                   AND NOT EXISTS (SELECT FROM events_queue_live q WHERE q.id = k.event_id AND (rules.rearm <> 'started' OR q.status = 'queued'))
                   AND (rules.rearm <> 'error' OR NOT EXISTS (SELECT FROM events_queue_done q WHERE q.id = k.event_id AND q.idempotency_key IS NOT NULL))
                 ORDER BY k.idempotency_key FOR UPDATE
            ), renamed AS (
                UPDATE event_keys k SET event_id = nextval('queue_id_seq') FROM freed o
                 WHERE k.topic = enqueue_events.topic AND k.idempotency_key = o.key AND k.event_id = o.event_id
                RETURNING k.idempotency_key AS key, k.event_id AS id, array_position(idempotency_keys, k.idempotency_key) AS n
            )
            INSERT INTO events_queue_live (id, topic, payload, priority, run_at, turn_at, max_attempts, idempotency_key, ordering_key, waits, deferred, watched)
            SELECT r.id, enqueue_events.topic, payloads[r.n], enqueue_events.priority, due, line, enqueue_events.max_attempts, r.key,
                   ordering_keys[r.n], (ordering_keys[r.n] IS NOT NULL)::int, later OR ordering_keys[r.n] IS NOT NULL, ordering_keys[r.n] IS NOT NULL
              FROM renamed r;

            -- Whose key expired at this moment, with its event, is enqueued at the next try.
            EXIT WHEN NOT EXISTS (SELECT FROM unnest(idempotency_keys) AS w (key) WHERE w.key IS NOT NULL
                AND NOT EXISTS (SELECT FROM event_keys k WHERE k.topic = enqueue_events.topic AND k.idempotency_key = w.key));
        END LOOP;
        RETURN QUERY
        SELECT k.event_id FROM unnest(idempotency_keys) WITH ORDINALITY AS w(key, at)
          LEFT JOIN event_keys k ON k.topic = enqueue_events.topic AND k.idempotency_key = w.key ORDER BY w.at;
    END IF;
    IF ordering_keys IS NOT NULL THEN
        FOR lane IN SELECT DISTINCT k FROM unnest(ordering_keys) AS k WHERE k IS NOT NULL LOOP
            PERFORM advance_key(topic, lane, rules, false);
        END LOOP;
    END IF;
    IF EXISTS (SELECT FROM worker_heartbeats h WHERE h.waiting) THEN
        PERFORM wake_workers('events');
    END IF;
END $$;
COMMENT ON FUNCTION enqueue_events(text, jsonb[], text[], int, timestamptz, int, text[]) IS
    'Enqueues a batch of events of one topic and returns their ids in order. The rules are those of enqueue_event(); the id of an event enqueued without a key in a batch with idempotency keys is returned as NULL.';

CREATE OR REPLACE FUNCTION enqueue_event(
    topic text, payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL, priority int DEFAULT 0, run_at timestamptz DEFAULT NULL,
    max_attempts int DEFAULT NULL, ordering_key text DEFAULT NULL, after bigint[] DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    event  bigint;
    wanted boolean;
    locked bigint[];
BEGIN
    -- The usual case in one statement; whatever does not fit it is dealt with, or refused, below.
    IF idempotency_key IS NULL AND ordering_key IS NULL AND after IS NULL AND run_at IS NULL AND max_attempts IS NULL THEN
        INSERT INTO events_queue_live AS q (topic, payload, priority, turn_at, max_attempts)
        SELECT t.topic, enqueue_event.payload, enqueue_event.priority, now() + enqueue_event.priority * interval '30 seconds', t.max_attempts
          FROM event_topics t
         WHERE t.topic = enqueue_event.topic AND t.topic <> 'marketplace.discovery' AND t.state <> 'draining' AND jsonb_typeof(enqueue_event.payload) = 'object'
           AND pg_column_size(enqueue_event.payload) <= t.max_payload_bytes AND enqueue_event.priority BETWEEN -100 AND 100
        RETURNING q.id, EXISTS (SELECT FROM worker_heartbeats h WHERE h.waiting) INTO event, wanted;
        IF FOUND THEN
            IF wanted THEN
                PERFORM wake_workers('events');
            END IF;
            RETURN event;
        END IF;
    END IF;
    PERFORM require_argument(payload, 'payload');
    IF after IS NULL THEN
        RETURN (SELECT id FROM enqueue_events(topic, ARRAY[payload], CASE WHEN idempotency_key IS NOT NULL THEN ARRAY[idempotency_key] END,
            priority, run_at, max_attempts, CASE WHEN ordering_key IS NOT NULL THEN ARRAY[ordering_key] END) AS id);
    END IF;
    PERFORM require_valid(ordering_key IS NULL AND idempotency_key IS NULL, 'an event that waits for others cannot have a key as well',
        'Leave out either after or idempotency_key and ordering_key.');
    PERFORM check_ids(after);
    PERFORM require_valid(cardinality(after) <= 1000, format('%s events to wait for are too many', cardinality(after)), 'Wait for at most 1000.', '54000');
    -- Locked, no parent ends, is requeued or goes until this one is known to wait for it. One that moved meanwhile is locked at the next try.
    LOOP
        SELECT array_agg(q.id) INTO locked FROM (SELECT e.id FROM events_queue e WHERE e.id = ANY (after) ORDER BY e.id FOR UPDATE) q;
        SELECT p INTO event FROM unnest(after) AS p WHERE NOT p = ANY (coalesce(locked, '{}')) LIMIT 1;
        EXIT WHEN event IS NULL;
        PERFORM require_valid(EXISTS (SELECT FROM events_queue q WHERE q.id = event), format('there is no event %s to wait for', event),
            'It was never enqueued, or is not kept any more; leave it out.');
    END LOOP;
    event := (SELECT id FROM enqueue_events(topic, ARRAY[payload], NULL, priority, run_at, max_attempts) AS id);
    INSERT INTO event_parents (parent_id, child_id)
    SELECT DISTINCT p, event FROM unnest(after) AS p WHERE NOT EXISTS (SELECT FROM events_queue_done d WHERE d.id = p);
    IF FOUND THEN
        UPDATE events_queue_live q SET watched = true WHERE q.id = ANY (after) AND NOT q.watched;
        UPDATE events_queue_live q SET waits = (SELECT count(*) FROM event_parents p WHERE p.child_id = event), deferred = true WHERE q.id = event;
    END IF;
    RETURN event;
END $$;
COMMENT ON FUNCTION enqueue_event(text, jsonb, text, int, timestamptz, int, text, bigint[]) IS
    'Enqueues an event in the transaction of the caller and returns its id. An idempotency key names one event of the topic for as long as that event is kept: enqueueing it again returns the same id and changes nothing, unless the event has come as far as the topic''s setting rearm says (by default: ended in error). Lower priority is leased first (-100 to 100), each step being worth 30 s of waiting; run_at delays it; max_attempts defaults to that of the topic. Events with the same ordering_key run one after the other. after: ids of events that must be done first.';

CREATE OR REPLACE FUNCTION enqueue_inbox() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    batch record;
BEGIN
    PERFORM lock_keys(array_agg(a.topic), array_agg(a.ordering_key)) FROM arrived a WHERE a.ordering_key IS NOT NULL;
    FOR batch IN
        SELECT a.topic, a.priority, a.run_at, a.max_attempts, array_agg(a.payload ORDER BY a.inbox_id) AS payloads,
               CASE WHEN count(a.idempotency_key) > 0 THEN array_agg(a.idempotency_key ORDER BY a.inbox_id) END AS idempotency_keys,
               CASE WHEN count(a.ordering_key) > 0 THEN array_agg(a.ordering_key ORDER BY a.inbox_id) END AS ordering_keys
          FROM arrived a GROUP BY a.topic, a.priority, a.run_at, a.max_attempts, a.inbox_id / 50000 ORDER BY min(a.inbox_id)
    LOOP
        PERFORM enqueue_events(batch.topic, batch.payloads, batch.idempotency_keys, batch.priority, batch.run_at, batch.max_attempts, batch.ordering_keys);
    END LOOP;
    DELETE FROM events_inbox i USING arrived a WHERE i.inbox_id = a.inbox_id;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION enqueue_inbox() IS 'Trigger of events_inbox: what arrives there is enqueued, and leaves it.';

CREATE OR REPLACE TRIGGER enqueue_inbox AFTER INSERT ON events_inbox REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION enqueue_inbox();

CREATE OR REPLACE FUNCTION lease_events(topic text DEFAULT NULL, max_events int DEFAULT 100, ttl_seconds int DEFAULT 60, worker text DEFAULT NULL)
RETURNS TABLE (id bigint, topic_name text, payload jsonb, attempts int, max_attempts int, lease_token uuid, lease_expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    token  uuid := gen_random_uuid();
    left_over int := max_events;
    lanes  text[];
    full_lanes text[] := '{}';
    lane   text;
    share  int;
    n      int;
    i      int := 0;
BEGIN
    PERFORM check_ttl(ttl_seconds);
    IF max_events BETWEEN 1 AND 10000 IS NOT TRUE THEN
        PERFORM require_argument(max_events, 'max_events');
        PERFORM require_valid(false, format('max_events %s is out of range', max_events), 'Lease 1 to 10000 events at a time.');
    END IF;
    PERFORM promote_events();
    IF topic IS NOT NULL THEN
        IF EXISTS (SELECT FROM event_topics t WHERE t.topic = lease_events.topic AND t.state = 'paused') THEN
            PERFORM require_valid(false, format('topic "%s" is paused', topic), format('SELECT resume_topic(%L) lets it go on.', topic), 'object_not_in_prerequisite_state');
        END IF;
        RETURN QUERY SELECT * FROM claim_events(topic, max_events, ttl_seconds, worker, token, true);
        RETURN;
    END IF;

    -- Every topic that has something in line gets the same share, in random order; what one leaves the next may have.
    lanes := ARRAY(SELECT t.topic FROM event_topics t
                    WHERE t.state <> 'paused' AND (t.handler IS NOT NULL OR NOT t.registered)
                      AND (SELECT true FROM events_queue_live q WHERE q.topic = t.topic AND NOT q.deferred LIMIT 1) ORDER BY random());
    FOREACH lane IN ARRAY lanes LOOP
        share := ceil(left_over::float8 / (cardinality(lanes) - i));
        i := i + 1;
        RETURN QUERY SELECT * FROM claim_events(lane, share, ttl_seconds, worker, token, false);
        GET DIAGNOSTICS n = ROW_COUNT;
        left_over := left_over - n;
        IF n = share THEN
            full_lanes := full_lanes || lane;
        END IF;
        EXIT WHEN left_over <= 0;
    END LOOP;
    FOREACH lane IN ARRAY full_lanes LOOP
        EXIT WHEN left_over <= 0;
        RETURN QUERY SELECT * FROM claim_events(lane, left_over, ttl_seconds, worker, token, false);
        GET DIAGNOSTICS n = ROW_COUNT;
        left_over := left_over - n;
    END LOOP;
END $$;
COMMENT ON FUNCTION lease_events(text, int, int, text) IS
    'Leases up to max_events ready events of a topic for ttl_seconds and returns them with one lease token. Without a topic: of all topics that have a handler, in fair shares. Expired leases count as ready. The attempt counts now, so an event whose worker dies every time ends in error after max_attempts. A paused topic is refused by name (55000) and passed over otherwise.';
