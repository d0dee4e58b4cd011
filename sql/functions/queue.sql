-- events_queue: enqueue, lease, and the four ways a lease ends (ack, fail, release, expiry).
-- The tables are hidden: applications and workers use these functions, which run with the rights of their owner.

CREATE OR REPLACE FUNCTION require_valid(valid boolean, message text, hint text DEFAULT '', code text DEFAULT '22023') RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF valid IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, HINT = hint;
    END IF;
END $$;
COMMENT ON FUNCTION require_valid(boolean, text, text, text) IS
    'Raises the message with its hint and SQLSTATE unless the condition is true. Used by the other functions to check their arguments.';

CREATE OR REPLACE FUNCTION require_argument(value anyelement, name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = format('%s must not be NULL', name),
            HINT = format('Give a value for %s.', name);
    END IF;
END $$;
COMMENT ON FUNCTION require_argument(anyelement, text) IS 'Raises 22004 with the name of the argument if its value is NULL.';

CREATE OR REPLACE FUNCTION wake_workers(queue text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM worker_heartbeats WHERE waiting AND beat_at > now() - interval '1 minute') THEN
        PERFORM pg_notify('pgsteward', queue);
    END IF;
END $$;
COMMENT ON FUNCTION wake_workers(text) IS
    'Notifies channel "pgsteward" with the name of the queue, but only while some worker waits: a notification in every transaction would make commits wait for each other. Workers poll as well, so a lost notification costs a second, never an event.';

CREATE OR REPLACE FUNCTION register_topic(topic text, handler regproc, max_attempts int DEFAULT 5, description text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    handler_name text;
BEGIN
    PERFORM require_argument(topic, 'topic'), require_argument(handler, 'handler');
    PERFORM require_valid(topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$', format('topic "%s" is not a valid name', topic),
        'Use up to 100 lower-case letters, digits, dots, dashes and underscores.');
    PERFORM require_valid(max_attempts BETWEEN 1 AND 100, format('max_attempts %s is out of range', max_attempts), 'Give 1 to 100.');
    SELECT format('%I.%I', n.nspname, p.proname) INTO handler_name
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE p.oid = handler AND p.prokind = 'f' AND p.proretset
       AND p.proargtypes = ARRAY['bigint[]'::regtype, 'jsonb[]'::regtype]::oidvector
       AND p.proargnames[3:5] = ARRAY['event_id', 'error', 'retryable'];
    PERFORM require_valid(handler_name IS NOT NULL, format('%s cannot handle events', handler),
        'A handler is a function (ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean).',
        'invalid_function_definition');
    INSERT INTO event_topics AS t (topic, handler, max_attempts, description)
    VALUES (register_topic.topic, handler_name, register_topic.max_attempts, coalesce(register_topic.description, ''))
    ON CONFLICT ON CONSTRAINT event_topics_pkey
    DO UPDATE SET handler = excluded.handler, max_attempts = excluded.max_attempts, description = excluded.description;
    INSERT INTO audit_log (action, subject, detail) VALUES ('register_topic', topic, jsonb_build_object('handler', handler_name));
END $$;
COMMENT ON FUNCTION register_topic(text, regproc, int, text) IS
    'Names the function that handles a topic. The handler is called with the ids and payloads of a batch, in one transaction with the acknowledgement, and returns a row (event_id, error, retryable) for each event that failed. Registering again replaces.';

CREATE OR REPLACE FUNCTION enqueue_events(
    topic text, payloads jsonb[], idempotency_keys text[] DEFAULT NULL,
    priority int DEFAULT 0, run_at timestamptz DEFAULT NULL, max_attempts int DEFAULT NULL) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    ids      bigint[];
    attempts int := coalesce(max_attempts, (SELECT t.max_attempts FROM event_topics t WHERE t.topic = enqueue_events.topic), 5);
    due      timestamptz := coalesce(run_at, now());
    bad      int;
BEGIN
    PERFORM require_argument(topic, 'topic'), require_argument(payloads, 'payloads'), require_argument(priority, 'priority');
    PERFORM require_valid(topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$', format('topic "%s" is not a valid name', topic),
        'Use up to 100 lower-case letters, digits, dots, dashes and underscores.');
    PERFORM require_valid(priority BETWEEN -100 AND 100, format('priority %s is out of range', priority), 'Give -100 (first) to 100 (last).');
    PERFORM require_valid(attempts BETWEEN 1 AND 100, format('max_attempts %s is out of range', attempts), 'Give 1 to 100.');
    PERFORM require_valid(isfinite(due), 'run_at must be a finite time', 'Leave run_at out to run at once.');
    SELECT n INTO bad FROM unnest(payloads) WITH ORDINALITY AS p(payload, n) WHERE jsonb_typeof(payload) IS DISTINCT FROM 'object' LIMIT 1;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('payload %s is not a JSON object', bad),
            DETAIL = format('The payload is: %s', coalesce(left(payloads[bad]::text, 200), 'NULL')),
            HINT = 'Give a JSON object such as {"user_id": "..."}; {} if there is nothing to say.';
    END IF;

    IF idempotency_keys IS NULL THEN
        RETURN QUERY
        INSERT INTO events_queue_live (topic, payload, priority, run_at, max_attempts)
        SELECT enqueue_events.topic, p.payload, enqueue_events.priority, due, attempts
          FROM unnest(payloads) WITH ORDINALITY AS p(payload, n) ORDER BY n
        RETURNING id;
    ELSE
        PERFORM require_valid(cardinality(idempotency_keys) = cardinality(payloads),
            format('%s idempotency keys for %s payloads', cardinality(idempotency_keys), cardinality(payloads)),
            'Give one key per payload; NULL for an event without a key.', 'array_subscript_error');
        PERFORM require_valid(NOT EXISTS (SELECT FROM unnest(idempotency_keys) k WHERE k = '' OR length(k) > 500),
            'an idempotency key is empty or longer than 500 characters', 'Leave the key out (NULL), or give 1 to 500 characters.');
        -- Keys are claimed in one order by everybody, so that two callers with the same keys wait for each other and never deadlock.
        WITH wanted AS MATERIALIZED (
            SELECT key, min(n) AS n, nextval('events_queue_id_seq') AS id
              FROM unnest(idempotency_keys) WITH ORDINALITY AS k(key, n)
             GROUP BY key, CASE WHEN key IS NULL THEN n END ORDER BY key
        ), claimed AS (
            INSERT INTO event_keys AS e (topic, idempotency_key, event_id)
            SELECT enqueue_events.topic, key, id FROM wanted WHERE key IS NOT NULL ORDER BY key
            ON CONFLICT ON CONSTRAINT event_keys_pkey DO NOTHING
            RETURNING event_id
        )
        INSERT INTO events_queue_live (id, topic, payload, priority, run_at, max_attempts, idempotency_key)
        SELECT w.id, enqueue_events.topic, payloads[w.n], enqueue_events.priority, due, attempts, w.key
          FROM wanted w WHERE w.key IS NULL OR w.id IN (SELECT event_id FROM claimed);

        -- A key whose event ended in error starts that event anew, with the new payload.
        WITH failed AS (
            DELETE FROM events_queue_error q USING event_keys k
             WHERE k.topic = enqueue_events.topic AND k.idempotency_key = ANY (idempotency_keys) AND q.id = k.event_id
            RETURNING q.id, q.idempotency_key, q.created_at
        )
        INSERT INTO events_queue_live (id, topic, payload, priority, run_at, max_attempts, idempotency_key, created_at)
        SELECT f.id, enqueue_events.topic, payloads[array_position(idempotency_keys, f.idempotency_key)],
               enqueue_events.priority, due, attempts, f.idempotency_key, f.created_at
          FROM failed f;

        -- A key whose event has been deleted is free again. Whoever was faster has given the key another event.
        WITH orphaned AS MATERIALIZED (
            SELECT k.idempotency_key AS key, k.event_id FROM event_keys k
             WHERE k.topic = enqueue_events.topic AND k.idempotency_key = ANY (idempotency_keys)
               AND NOT EXISTS (SELECT FROM events_queue q WHERE q.id = k.event_id)
             ORDER BY k.idempotency_key FOR UPDATE
        ), renamed AS (
            UPDATE event_keys k SET event_id = nextval('events_queue_id_seq') FROM orphaned o
             WHERE k.topic = enqueue_events.topic AND k.idempotency_key = o.key AND k.event_id = o.event_id
            RETURNING k.idempotency_key AS key, k.event_id
        )
        INSERT INTO events_queue_live (id, topic, payload, priority, run_at, max_attempts, idempotency_key)
        SELECT r.event_id, enqueue_events.topic, payloads[array_position(idempotency_keys, r.key)], enqueue_events.priority, due, attempts, r.key
          FROM renamed r;

        RETURN QUERY
        SELECT k.event_id FROM unnest(idempotency_keys) WITH ORDINALITY AS w(key, n)
          LEFT JOIN event_keys k ON k.topic = enqueue_events.topic AND k.idempotency_key = w.key ORDER BY n;
    END IF;
    PERFORM wake_workers('events');
END $$;
COMMENT ON FUNCTION enqueue_events(text, jsonb[], text[], int, timestamptz, int) IS
    'Enqueues a batch of events of one topic and returns their ids in order. The rule of idempotency keys is that of enqueue_event(); the id of an event enqueued without a key in a batch with keys is returned as NULL.';

CREATE OR REPLACE FUNCTION enqueue_event(
    topic text, payload jsonb DEFAULT '{}', idempotency_key text DEFAULT NULL,
    priority int DEFAULT 0, run_at timestamptz DEFAULT NULL, max_attempts int DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_argument(payload, 'payload');
    RETURN (SELECT id FROM enqueue_events(topic, ARRAY[payload],
        CASE WHEN idempotency_key IS NOT NULL THEN ARRAY[idempotency_key] END, priority, run_at, max_attempts) AS id);
END $$;
COMMENT ON FUNCTION enqueue_event(text, jsonb, text, int, timestamptz, int) IS
    'Enqueues an event in the transaction of the caller and returns its id. An idempotency key names one event of the topic for as long as that event is kept: enqueueing it again returns the same id and changes nothing, unless the event ended in error; then it starts anew with the new payload. Lower priority is leased first (-100 to 100); run_at delays it; max_attempts defaults to that of the topic.';

CREATE OR REPLACE FUNCTION check_lease_arguments(ids bigint[], lease_token uuid) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_argument(ids, 'ids'), require_argument(lease_token, 'lease_token');
    PERFORM require_valid(array_position(ids, NULL) IS NULL, 'ids must not contain NULL', 'Give the ids that lease_events() returned.', '22004');
END $$;
COMMENT ON FUNCTION check_lease_arguments(bigint[], uuid) IS 'Raises 22004 if the ids or the lease token of a call are missing.';

CREATE OR REPLACE FUNCTION check_ttl(ttl_seconds int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_argument(ttl_seconds, 'ttl_seconds');
    PERFORM require_valid(ttl_seconds BETWEEN 1 AND 86400, format('ttl_seconds %s is out of range', ttl_seconds),
        'Give 1 to 86400 seconds (a day); extend_events() lengthens a lease while the work goes on.');
END $$;
COMMENT ON FUNCTION check_ttl(int) IS 'Raises 22023 unless a lease time is 1 second to a day.';

CREATE OR REPLACE FUNCTION lease_events(topic text DEFAULT NULL, max_events int DEFAULT 100, ttl_seconds int DEFAULT 60, worker text DEFAULT NULL)
RETURNS TABLE (id bigint, topic_name text, payload jsonb, attempts int, max_attempts int, lease_token uuid, lease_expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz := clock_timestamp();
    token  uuid := gen_random_uuid();
    chosen bigint[];
    ready  bigint[];
BEGIN
    PERFORM require_argument(max_events, 'max_events'), check_ttl(ttl_seconds);
    PERFORM require_valid(max_events BETWEEN 1 AND 10000, format('max_events %s is out of range', max_events), 'Lease 1 to 10000 events at a time.');

    -- Whoever held these died or was too slow on the last attempt.
    WITH exhausted AS MATERIALIZED (
        SELECT q.id FROM events_queue_live q
         WHERE q.status = 'leased' AND q.lease_expires_at < moment AND q.attempts >= q.max_attempts
           AND (lease_events.topic IS NULL OR q.topic = lease_events.topic)
         ORDER BY q.lease_expires_at LIMIT lease_events.max_events FOR UPDATE SKIP LOCKED
    )
    SELECT array_agg(id) INTO chosen FROM exhausted;
    IF chosen IS NOT NULL THEN
        PERFORM end_events(chosen, 'error', 'the lease expired on the last attempt: the worker died or needed longer than the lease');
    END IF;

    WITH expired AS MATERIALIZED (
        SELECT q.id FROM events_queue_live q
         WHERE q.status = 'leased' AND q.lease_expires_at < moment AND q.attempts < q.max_attempts
           AND (lease_events.topic IS NULL OR q.topic = lease_events.topic)
         ORDER BY q.lease_expires_at LIMIT lease_events.max_events FOR UPDATE SKIP LOCKED
    )
    SELECT coalesce(array_agg(id), '{}') INTO chosen FROM expired;
    IF lease_events.topic IS NULL THEN
        SELECT array_agg(r.id) INTO ready FROM (
            SELECT q.id FROM events_queue_live q WHERE q.status = 'queued' AND q.run_at <= moment
             ORDER BY q.priority, q.run_at, q.id LIMIT lease_events.max_events - cardinality(chosen) FOR UPDATE SKIP LOCKED) r;
    ELSE
        SELECT array_agg(r.id) INTO ready FROM (
            SELECT q.id FROM events_queue_live q WHERE q.status = 'queued' AND q.run_at <= moment AND q.topic = lease_events.topic
             ORDER BY q.priority, q.run_at, q.id LIMIT lease_events.max_events - cardinality(chosen) FOR UPDATE SKIP LOCKED) r;
    END IF;
    chosen := chosen || ready;
    IF cardinality(chosen) = 0 THEN
        RETURN;
    END IF;

    RETURN QUERY
    WITH leased AS (
        UPDATE events_queue_live q
           SET status = 'leased', lease_token = token, lease_expires_at = clock_timestamp() + make_interval(secs => ttl_seconds),
               attempts = q.attempts + 1, leased_by = worker, updated_at = moment
         WHERE q.id = ANY (chosen)
        RETURNING q.*
    )
    SELECT l.id, l.topic, l.payload, l.attempts, l.max_attempts, l.lease_token, l.lease_expires_at
      FROM leased l ORDER BY l.priority, l.run_at, l.id;
END $$;
COMMENT ON FUNCTION lease_events(text, int, int, text) IS
    'Leases up to max_events ready events of a topic (NULL: of any) for ttl_seconds and returns them with one lease token. Expired leases are leased again first. The attempt counts now, so an event whose worker dies every time ends in error after max_attempts.';

CREATE OR REPLACE FUNCTION end_events(ids bigint[], final_status text, reason text) RETURNS SETOF bigint
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    WITH ended AS (
        DELETE FROM events_queue_live WHERE id = ANY (ids) RETURNING *
    ), done AS (
        INSERT INTO events_queue_done (id, run_at, created_at, updated_at, priority, attempts, max_attempts, status, topic, payload, idempotency_key, leased_by)
        SELECT id, run_at, created_at, clock_timestamp(), priority, attempts, max_attempts, 'done', topic, payload, idempotency_key, leased_by
          FROM ended WHERE final_status = 'done'
    ), error AS (
        INSERT INTO events_queue_error (id, run_at, created_at, updated_at, priority, attempts, max_attempts, status, topic, payload, idempotency_key, leased_by, last_error)
        SELECT id, run_at, created_at, clock_timestamp(), priority, attempts, max_attempts, 'error', topic, payload, idempotency_key, leased_by, reason
          FROM ended WHERE final_status = 'error'
    )
    SELECT id FROM ended
$$;
COMMENT ON FUNCTION end_events(bigint[], text, text) IS
    'Moves events that the caller has locked to done or error. Internal: ack_events() and fail_events() check the lease first.';

CREATE OR REPLACE FUNCTION hold_events(ids bigint[], lease_token uuid, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, topic text, payload jsonb, attempts int, max_attempts int)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_lease_arguments(ids, lease_token);
    RETURN QUERY
    SELECT q.id, q.topic, q.payload, q.attempts, q.max_attempts FROM events_queue_live q
     WHERE q.id = ANY (ids) AND q.status = 'leased' AND q.lease_token = hold_events.lease_token AND q.lease_expires_at >= hold_events.now
     ORDER BY q.id FOR UPDATE;
END $$;
COMMENT ON FUNCTION hold_events(bigint[], uuid, timestamptz) IS
    'The events among ids that this lease still holds, locked until the end of the transaction: nobody can take them over meanwhile, so an effect and its acknowledgement commit together or not at all.';

CREATE OR REPLACE FUNCTION ack_events(ids bigint[], lease_token uuid, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
DECLARE
    mine bigint[];
BEGIN
    SELECT coalesce(array_agg(h.id), '{}') INTO mine FROM hold_events(ids, lease_token, now) h;
    PERFORM end_events(mine, 'done', NULL);
    RETURN QUERY SELECT i, i = ANY (mine) FROM unnest(ids) AS i;
END $$;
COMMENT ON FUNCTION ack_events(bigint[], uuid, timestamptz) IS
    'Completes events. held is false for each id whose lease has expired or belongs to somebody else: nothing was changed for it.';

CREATE OR REPLACE FUNCTION fail_events(ids bigint[], lease_token uuid, error text, retryable boolean DEFAULT true, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean, status text, run_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    mine      bigint[];
    again     bigint[];
    exhausted bigint[];
    reason    text := left(coalesce(nullif(fail_events.error, ''), 'no reason given'), 2000);
BEGIN
    PERFORM require_argument(retryable, 'retryable');
    SELECT coalesce(array_agg(h.id) FILTER (WHERE retryable AND h.attempts < h.max_attempts), '{}'),
           coalesce(array_agg(h.id) FILTER (WHERE NOT retryable OR h.attempts >= h.max_attempts), '{}')
      INTO again, exhausted FROM hold_events(ids, lease_token, now) h;
    PERFORM end_events(exhausted, 'error', reason);
    RETURN QUERY
    WITH retried AS (
        UPDATE events_queue_live q
           SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, last_error = reason, updated_at = clock_timestamp(),
               run_at = clock_timestamp() + queue_retry_delay(q.attempts, random())
         WHERE q.id = ANY (again)
        RETURNING q.id, q.run_at
    )
    SELECT i, i = ANY (again || exhausted), CASE WHEN i = ANY (again) THEN 'queued' WHEN i = ANY (exhausted) THEN 'error' END, r.run_at
      FROM unnest(ids) AS i LEFT JOIN retried r ON r.id = i;
END $$;
COMMENT ON FUNCTION fail_events(bigint[], uuid, text, boolean, timestamptz) IS
    'Records a failure. A retryable one goes back to queued after queue_retry_delay(), until attempts are used up; then, and at once if not retryable, it ends in error. held is false for each id whose lease was lost: nothing was changed for it.';

CREATE OR REPLACE FUNCTION extend_events(ids bigint[], lease_token uuid, ttl_seconds int DEFAULT 60, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean, lease_expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    mine bigint[];
BEGIN
    PERFORM check_ttl(ttl_seconds);
    SELECT coalesce(array_agg(h.id), '{}') INTO mine FROM hold_events(ids, lease_token, now) h;
    RETURN QUERY
    WITH extended AS (
        UPDATE events_queue_live q SET lease_expires_at = greatest(q.lease_expires_at, clock_timestamp() + make_interval(secs => ttl_seconds))
         WHERE q.id = ANY (mine) RETURNING q.id, q.lease_expires_at
    )
    SELECT i, e.id IS NOT NULL, e.lease_expires_at FROM unnest(ids) AS i LEFT JOIN extended e ON e.id = i;
END $$;
COMMENT ON FUNCTION extend_events(bigint[], uuid, int, timestamptz) IS
    'Lengthens leases that are still held to ttl_seconds from now. held is false for each id whose lease was lost.';

CREATE OR REPLACE FUNCTION release_events(ids bigint[], lease_token uuid, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    mine bigint[];
BEGIN
    SELECT coalesce(array_agg(h.id), '{}') INTO mine FROM hold_events(ids, lease_token, now) h;
    UPDATE events_queue_live q
       SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, attempts = q.attempts - 1, updated_at = clock_timestamp()
     WHERE q.id = ANY (mine);
    RETURN QUERY SELECT i, i = ANY (mine) FROM unnest(ids) AS i;
END $$;
COMMENT ON FUNCTION release_events(bigint[], uuid, timestamptz) IS
    'Gives leased events back untouched; the attempt does not count. Used by a worker that shuts down.';

CREATE OR REPLACE FUNCTION requeue_events(ids bigint[])
RETURNS TABLE (id bigint, requeued boolean, status text)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moved bigint[];
    freed bigint[];
BEGIN
    PERFORM require_argument(ids, 'ids');
    WITH failed AS (
        DELETE FROM events_queue_error q WHERE q.id = ANY (ids) RETURNING q.*
    ), requeued AS (
        INSERT INTO events_queue_live (id, created_at, priority, max_attempts, topic, payload, idempotency_key, last_error)
        SELECT f.id, f.created_at, f.priority, f.max_attempts, f.topic, f.payload, f.idempotency_key, f.last_error FROM failed f RETURNING id
    )
    SELECT coalesce(array_agg(r.id), '{}') INTO moved FROM requeued r;
    WITH stuck AS MATERIALIZED (
        SELECT q.id FROM events_queue_live q
         WHERE q.id = ANY (ids) AND q.status = 'leased' AND q.lease_expires_at < clock_timestamp() ORDER BY q.id FOR UPDATE
    ), requeued AS (
        UPDATE events_queue_live q SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, updated_at = clock_timestamp()
          FROM stuck s WHERE q.id = s.id RETURNING q.id
    )
    SELECT coalesce(array_agg(r.id), '{}') INTO freed FROM requeued r;
    IF cardinality(moved || freed) > 0 THEN
        INSERT INTO audit_log (action, subject, detail) VALUES ('requeue_events', 'events_queue', jsonb_build_object('ids', moved || freed));
        PERFORM wake_workers('events');
    END IF;
    RETURN QUERY
    SELECT i, i = ANY (moved || freed), q.status FROM unnest(ids) AS i LEFT JOIN events_queue q ON q.id = i;
END $$;
COMMENT ON FUNCTION requeue_events(bigint[]) IS
    'Puts events that ended in error, or whose lease has expired, back to queued; failed ones start with all their attempts. Others are left as they are. Written to audit_log.';

CREATE OR REPLACE FUNCTION run_handler(handler text, ids bigint[], payloads jsonb[])
RETURNS TABLE (event_id bigint, error text, retryable boolean)
LANGUAGE plpgsql ROWS 10 SET search_path FROM CURRENT AS $$
DECLARE
    n        int;
    failures jsonb;
BEGIN
    IF cardinality(ids) > 0 IS NOT TRUE THEN
        RETURN;
    END IF;
    BEGIN
        -- Gathered before the first row is returned: rows of a call that fails half-way must not count.
        EXECUTE format('SELECT jsonb_agg(f) FROM %s($1, $2) AS f', handler::regproc) INTO failures USING ids, payloads;
        RETURN QUERY SELECT f.event_id, f.error, f.retryable
                       FROM jsonb_to_recordset(failures) AS f (event_id bigint, error text, retryable boolean);
        RETURN;
    EXCEPTION WHEN OTHERS THEN
        IF cardinality(ids) = 1 THEN
            -- Wrong data stays wrong; anything else may go away.
            event_id := ids[1]; error := format('%s (SQLSTATE %s)', SQLERRM, SQLSTATE); retryable := SQLSTATE NOT LIKE '22%';
            RETURN NEXT;
            RETURN;
        END IF;
    END;
    -- Something in the batch failed and undid all of it: halve it until the culprit stands alone.
    n := cardinality(ids) / 2;
    RETURN QUERY SELECT * FROM run_handler(handler, ids[:n], payloads[:n]);
    RETURN QUERY SELECT * FROM run_handler(handler, ids[n + 1:], payloads[n + 1:]);
END $$;
COMMENT ON FUNCTION run_handler(text, bigint[], jsonb[]) IS
    'Calls a handler with a batch and returns the events that failed. If it raises an error, the batch is halved until the failing events stand alone; an error about data (SQLSTATE class 22) is permanent.';

CREATE OR REPLACE FUNCTION process_events(ids bigint[], lease_token uuid)
RETURNS TABLE (id bigint, held boolean, status text, error text)
LANGUAGE plpgsql ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moment   timestamptz := clock_timestamp();
    batch    record;
    failure  record;
    outcome  jsonb := '{}';
    handled  bigint[] := '{}';
    failed   bigint[];
BEGIN
    FOR batch IN
        SELECT h.topic, t.handler, array_agg(h.id ORDER BY h.id) AS ids, array_agg(h.payload ORDER BY h.id) AS payloads
          FROM hold_events(process_events.ids, process_events.lease_token, moment) h LEFT JOIN event_topics t ON t.topic = h.topic
         GROUP BY h.topic, t.handler
    LOOP
        failed := '{}';
        FOR failure IN
            SELECT f.event_id, f.error, coalesce(f.retryable, true) AS retryable
              FROM run_handler(batch.handler, batch.ids, batch.payloads) f WHERE batch.handler IS NOT NULL
            UNION ALL
            SELECT i, format('no handler for topic "%s"; known topics: %s', batch.topic,
                             coalesce((SELECT string_agg(t.topic, ', ' ORDER BY t.topic) FROM event_topics t), 'none')), false
              FROM unnest(batch.ids) AS i WHERE batch.handler IS NULL
        LOOP
            IF failure.event_id = ANY (batch.ids) AND NOT failure.event_id = ANY (failed) THEN
                failed := failed || failure.event_id;
                outcome := outcome || (SELECT jsonb_build_object(f.id, jsonb_build_object('status', f.status, 'error', failure.error))
                    FROM fail_events(ARRAY[failure.event_id], process_events.lease_token, failure.error, failure.retryable, moment) f);
            END IF;
        END LOOP;
        PERFORM ack_events(ARRAY(SELECT i FROM unnest(batch.ids) AS i WHERE NOT i = ANY (failed)), process_events.lease_token, moment);
        handled := handled || batch.ids;
    END LOOP;
    RETURN QUERY
    SELECT i, i = ANY (handled), CASE WHEN i = ANY (handled) THEN coalesce(outcome #>> ARRAY[i::text, 'status'], 'done') END, outcome #>> ARRAY[i::text, 'error']
      FROM unnest(process_events.ids) AS i;
END $$;
COMMENT ON FUNCTION process_events(bigint[], uuid) IS
    'Does the work of leased events: locks those still held, calls the handler of each topic with its batch, and acks or fails each event in the same transaction, so every effect inside the database happens exactly once. An event of an unregistered topic ends in error, which names the known topics.';

CREATE OR REPLACE FUNCTION tally_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM event_tally WHERE 'events_queue_' || status = TG_TABLE_NAME OR TG_TABLE_NAME = 'events_queue';
        RETURN NULL;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        INSERT INTO event_tally (topic, status, ct, at)
        SELECT topic, status, count(*), max(updated_at) FROM arrived WHERE status IN ('done', 'error') GROUP BY topic, status;
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        INSERT INTO event_tally (topic, status, ct, at)
        SELECT topic, status, -count(*), max(updated_at) FROM left_behind WHERE status IN ('done', 'error') GROUP BY topic, status;
    END IF;
    IF random() < 0.02 THEN
        WITH folded AS (
            DELETE FROM event_tally WHERE ctid = ANY (ARRAY(SELECT ctid FROM event_tally FOR UPDATE SKIP LOCKED)) RETURNING *
        )
        INSERT INTO event_tally (topic, status, ct, at) SELECT topic, status, sum(ct), max(at) FROM folded GROUP BY topic, status;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION tally_events() IS 'Trigger: counts events that arrive in or leave done and error, whoever moves them, and folds the counts together now and then.';

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['events_queue', 'events_queue_done', 'events_queue_error'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER tally_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION tally_events()', table_name);
        EXECUTE format('CREATE OR REPLACE TRIGGER tally_delete AFTER DELETE ON %I REFERENCING OLD TABLE AS left_behind FOR EACH STATEMENT EXECUTE FUNCTION tally_events()', table_name);
        EXECUTE format('CREATE OR REPLACE TRIGGER tally_update AFTER UPDATE ON %I REFERENCING OLD TABLE AS left_behind NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION tally_events()', table_name);
        EXECUTE format('CREATE OR REPLACE TRIGGER tally_truncate AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION tally_events()', table_name);
    END LOOP;
END $$;
