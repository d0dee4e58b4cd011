-- What events_queue has beyond the mechanism of queue.sql: topics, enqueueing, fair leases over topics, order, handlers.

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

CREATE OR REPLACE FUNCTION check_ids(ids bigint[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF cardinality(ids) BETWEEN 1 AND 100000 AND array_position(ids, NULL) IS NULL THEN
        RETURN;
    END IF;
    PERFORM require_argument(ids, 'ids');
    PERFORM require_valid(cardinality(ids) > 0, 'ids is empty', 'Give at least one id.');
    PERFORM require_valid(cardinality(ids) <= 100000, format('%s ids are too many', cardinality(ids)), 'Give at most 100000 in a call.', '54000');
    PERFORM require_valid(false, 'ids must not contain NULL', 'Give the ids that the lease returned.', '22004');
END $$;
COMMENT ON FUNCTION check_ids(bigint[]) IS 'Raises 22004, 22023 or 54000 unless ids holds 1 to 100000 ids and no NULL.';

CREATE OR REPLACE FUNCTION check_lease_arguments(ids bigint[], lease_token uuid) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_ids(ids);
    IF lease_token IS NULL THEN
        PERFORM require_argument(lease_token, 'lease_token');
    END IF;
END $$;
COMMENT ON FUNCTION check_lease_arguments(bigint[], uuid) IS 'Raises an error if the ids or the lease token of a call are missing or malformed.';

CREATE OR REPLACE FUNCTION check_ttl(ttl_seconds int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF ttl_seconds BETWEEN 1 AND 86400 THEN
        RETURN;
    END IF;
    PERFORM require_argument(ttl_seconds, 'ttl_seconds');
    PERFORM require_valid(false, format('ttl_seconds %s is out of range', ttl_seconds),
        'Give 1 to 86400 seconds (a day); extend the lease while the work goes on.');
END $$;
COMMENT ON FUNCTION check_ttl(int) IS 'Raises 22023 unless a lease time is 1 second to a day.';

CREATE OR REPLACE FUNCTION wake_workers(queue text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM worker_heartbeats WHERE waiting AND beat_at > now() - interval '1 minute')
       AND pg_try_advisory_xact_lock(hashtext('pgsteward:' || queue), (extract(epoch FROM clock_timestamp()) * 20)::bigint::bit(31)::int)
    THEN
        PERFORM pg_notify('pgsteward', queue);
    END IF;
END $$;
COMMENT ON FUNCTION wake_workers(text) IS
    'Notifies channel "pgsteward" with the name of the queue, but only while some worker waits, and from one open transaction per 50 ms: notifying transactions commit one after the other. Workers poll as well, so a lost notification costs a second, never an event.';

-- Topics -----------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION check_topic(topic text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_argument(topic, 'topic');
    PERFORM require_valid(topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$', format('topic "%s" is not a valid name', left(topic, 200)),
        'Use up to 100 lower-case letters, digits, dots, dashes and underscores.');
END $$;
COMMENT ON FUNCTION check_topic(text) IS 'Raises 22004 or 22023 unless the topic is a valid name.';

CREATE OR REPLACE FUNCTION register_topic(topic text, handler regproc DEFAULT NULL, max_attempts int DEFAULT 5, description text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    handler_name text;
BEGIN
    PERFORM check_topic(topic);
    PERFORM require_valid(topic <> 'marketplace.discovery', 'topic "marketplace.discovery" is that of marketplace_discovery_queue',
        'Its rules are set by configure_topic(); choose another name for events.');
    PERFORM require_valid(max_attempts BETWEEN 1 AND 100, format('max_attempts %s is out of range', max_attempts), 'Give 1 to 100.');
    IF handler IS NOT NULL THEN
        SELECT format('%I.%I', n.nspname, p.proname) INTO handler_name
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE p.oid = handler AND p.prokind = 'f' AND p.proretset
           AND p.proargtypes = ARRAY['bigint[]'::regtype, 'jsonb[]'::regtype]::oidvector
           AND p.proargnames[3:] IN (ARRAY['event_id', 'error', 'retryable'], ARRAY['event_id', 'error', 'retryable', 'result']);
        PERFORM require_valid(handler_name IS NOT NULL, format('%s cannot handle events', handler),
            'A handler is a function (ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean), if wanted with a fourth column result jsonb.',
            'invalid_function_definition');
    END IF;
    INSERT INTO event_topics AS t (topic, handler, max_attempts, description)
    VALUES (register_topic.topic, handler_name, register_topic.max_attempts, coalesce(register_topic.description, ''))
    ON CONFLICT ON CONSTRAINT event_topics_pkey
    DO UPDATE SET handler = excluded.handler, max_attempts = excluded.max_attempts, description = excluded.description, registered = true;
    INSERT INTO audit_log (action, subject, detail) VALUES ('register_topic', topic, jsonb_build_object('handler', handler_name));
END $$;
COMMENT ON FUNCTION register_topic(text, regproc, int, text) IS
    'Makes a topic known and names the function that handles it. The handler is called with the ids and payloads of a batch, in one transaction with the acknowledgement, and returns a row (event_id, error, retryable) for each event that failed. Without a handler, events are leased by the name of the topic only: for applications that do the work themselves. Registering again replaces.';

CREATE OR REPLACE FUNCTION configure_topic(topic text, settings jsonb) RETURNS SETOF event_topics
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    known   text[] := '{max_attempts,retry_base,retry_factor,retry_cap,retry_jitter,rearm,max_payload_bytes,max_leased,rate_limit,rate_window,key_concurrency,key_interval,keep_done,keep_error}';
    unknown text;
    changes text;
BEGIN
    PERFORM check_topic(topic), require_argument(settings, 'settings');
    PERFORM require_valid(jsonb_typeof(settings) = 'object' AND settings <> '{}', 'settings must be a JSON object with at least one setting',
        'For example {"max_leased": 5, "keep_done": "1 day"}.');
    SELECT k INTO unknown FROM jsonb_object_keys(settings) k WHERE k <> ALL (known) LIMIT 1;
    PERFORM require_valid(unknown IS NULL, format('there is no setting "%s" of a topic', unknown), 'Settings are: ' || array_to_string(known, ', ') || '.');
    SELECT string_agg(CASE WHEN value = 'null' THEN format('%I = DEFAULT', key)
                           ELSE format('%I = %L::%s', key, value #>> '{}', (SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
                                       WHERE a.attrelid = 'event_topics'::regclass AND a.attname = key)) END, ', ')
      INTO changes FROM jsonb_each(settings) AS s (key, value);
    BEGIN
        RETURN QUERY EXECUTE format('UPDATE event_topics SET %s WHERE topic = $1 RETURNING *', changes) USING topic;
    EXCEPTION WHEN check_violation OR data_exception OR numeric_value_out_of_range THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('a setting of topic "%s" is out of range', topic), DETAIL = SQLERRM,
            HINT = 'SELECT col_description(''event_topics''::regclass, attnum), attname FROM pg_attribute WHERE attrelid = ''event_topics''::regclass says what each is.';
    END;
    PERFORM require_valid(FOUND, format('there is no topic "%s"', topic), 'Register it: SELECT register_topic(''' || topic || ''').', 'undefined_object');
    INSERT INTO topic_usage (topic, tokens, refilled_at)
    SELECT t.topic, coalesce(t.rate_limit, 0), clock_timestamp() FROM event_topics t WHERE t.topic = configure_topic.topic ON CONFLICT DO NOTHING;
    INSERT INTO audit_log (action, subject, detail) VALUES ('configure_topic', topic, settings);
END $$;
COMMENT ON FUNCTION configure_topic(text, jsonb) IS
    'Changes rules of a topic and returns its row; null sets one back to its default. Settings: max_attempts, retry_base, retry_factor, retry_cap, retry_jitter, rearm, max_payload_bytes, max_leased, rate_limit, rate_window, key_concurrency, key_interval, keep_done, keep_error; they are described at the columns of event_topics.';

CREATE OR REPLACE FUNCTION set_topic_state(topic text, state text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    before text;
BEGIN
    PERFORM check_topic(topic);
    SELECT t.state INTO before FROM event_topics t WHERE t.topic = set_topic_state.topic FOR UPDATE;
    PERFORM require_valid(FOUND, format('there is no topic "%s"', topic), 'SELECT topic, state FROM event_topics; lists them.', 'undefined_object');
    UPDATE event_topics t SET state = set_topic_state.state WHERE t.topic = set_topic_state.topic;
    INSERT INTO audit_log (action, subject, detail) VALUES ('set_topic_state', topic, jsonb_build_object('before', before, 'after', state));
    PERFORM wake_workers(CASE topic WHEN 'marketplace.discovery' THEN 'discovery' ELSE 'events' END);
    RETURN before;
END $$;
COMMENT ON FUNCTION set_topic_state(text, text) IS 'Internal: pause_topic(), resume_topic() and drain_topic() say it in words.';

CREATE OR REPLACE FUNCTION pause_topic(topic text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN set_topic_state(topic, 'paused');
END $$;
COMMENT ON FUNCTION pause_topic(text) IS
    'From now on nothing of the topic is leased; what is leased already may be finished. Enqueueing goes on. Returns the state before (active, paused, draining). "marketplace.discovery" is the discovery queue.';

CREATE OR REPLACE FUNCTION resume_topic(topic text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN set_topic_state(topic, 'active');
END $$;
COMMENT ON FUNCTION resume_topic(text) IS 'Ends a pause or a drain. Returns the state before.';

CREATE OR REPLACE FUNCTION drain_topic(topic text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN set_topic_state(topic, 'draining');
END $$;
COMMENT ON FUNCTION drain_topic(text) IS 'From now on the topic accepts nothing new; what waits is worked off. Returns the state before.';

-- Enqueueing -------------------------------------------------------------------------------------------------------

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

-- Leasing ----------------------------------------------------------------------------------------------------------

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

CREATE OR REPLACE FUNCTION topic_room(lane text, wanted int, patient boolean) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    rules  event_topics;
    spare  topic_usage;
    moment timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM topic_usage u WHERE u.topic = lane) THEN
        IF NOT pg_try_advisory_xact_lock(hashtextextended('topic_usage ' || lane, 7)) THEN
            RETURN 0;  -- another one makes it at this moment
        END IF;
        INSERT INTO topic_usage (topic, tokens, refilled_at) SELECT t.topic, coalesce(t.rate_limit, 0), clock_timestamp() FROM event_topics t WHERE t.topic = lane ON CONFLICT DO NOTHING;
    END IF;
    IF patient THEN
        SELECT u.* INTO spare FROM topic_usage u WHERE u.topic = lane FOR UPDATE;
    ELSE
        SELECT u.* INTO spare FROM topic_usage u WHERE u.topic = lane FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    SELECT t.* INTO rules FROM event_topics t WHERE t.topic = lane;
    moment := clock_timestamp();
    IF rules.max_leased IS NOT NULL THEN
        -- A lease that has expired counts no more, unless its work goes on: then hold has locked its slot.
        DELETE FROM topic_slots s WHERE s.ctid = ANY (ARRAY(
            SELECT o.ctid FROM topic_slots o WHERE o.topic = lane AND (o.ct <= 0 OR o.expires_at < moment) FOR UPDATE SKIP LOCKED));
        wanted := least(wanted, rules.max_leased - (SELECT coalesce(sum(s.ct), 0) FROM topic_slots s WHERE s.topic = lane AND s.ct > 0));
    END IF;
    IF rules.rate_limit IS NOT NULL THEN
        spare.tokens := least(rules.rate_limit, spare.tokens + rules.rate_limit
            * greatest(extract(epoch FROM moment - spare.refilled_at) / extract(epoch FROM rules.rate_window), 0));
        UPDATE topic_usage u SET tokens = spare.tokens, refilled_at = greatest(moment, spare.refilled_at) WHERE u.topic = lane;
        wanted := least(wanted, floor(spare.tokens)::int);
    END IF;
    RETURN wanted;
END $$;
COMMENT ON FUNCTION topic_room(text, int, boolean) IS
    'How many of a limited topic may be leased now, up to wanted; the answer holds until the end of the transaction. If another lease of the topic has not committed, a patient caller waits and another gets 0. Internal.';

CREATE OR REPLACE FUNCTION topic_took(lane text, taken int, token uuid, expiry timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO topic_slots AS s (lease_token, topic, ct, expires_at) VALUES (token, lane, taken, expiry)
    ON CONFLICT ON CONSTRAINT topic_slots_pkey DO UPDATE SET ct = s.ct + excluded.ct;
    UPDATE topic_usage u SET tokens = u.tokens - taken WHERE u.topic = lane;
END $$;
COMMENT ON FUNCTION topic_took(text, int, uuid, timestamptz) IS 'Notes what was leased of a limited topic. Internal.';

CREATE OR REPLACE FUNCTION free_slots(token uuid, topics text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF topics IS NOT NULL AND token IS NOT NULL THEN
        UPDATE topic_slots s SET ct = s.ct - e.ct
          FROM (SELECT t.topic, count(*) AS ct FROM unnest(topics) AS t (topic) GROUP BY t.topic) e
         WHERE s.lease_token = token AND s.topic = e.topic;
    END IF;
END $$;
COMMENT ON FUNCTION free_slots(uuid, text[]) IS 'Gives back what a lease held of limited topics. Internal.';

-- Order ------------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION key_lock(topic text, key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
    SELECT hashtextextended(topic || ' ' || key, 7)
$$;
COMMENT ON FUNCTION key_lock(text, text) IS 'The advisory lock of an ordering key. Internal.';

CREATE OR REPLACE FUNCTION lock_keys(topics text[], keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    locks bigint[] := ARRAY(SELECT DISTINCT hashtextextended(e.topic || ' ' || e.key, 7) FROM unnest(topics, keys) AS e (topic, key) WHERE e.key IS NOT NULL ORDER BY 1);
    lock  bigint;
BEGIN
    IF locks = '{}' THEN
        RETURN;
    END IF;
    PERFORM require_valid(current_setting('transaction_isolation') = 'read committed', 'ordering keys need transactions that are READ COMMITTED',
        'An older snapshot cannot see whose turn it is: BEGIN ISOLATION LEVEL READ COMMITTED.', 'feature_not_supported');
    PERFORM require_valid(cardinality(locks) <= 10000, format('%s ordering keys at once are too many', cardinality(locks)), 'Give at most 10000 different ones in a call.', '54000');
    -- In one order by everybody, so that nobody deadlocks.
    FOREACH lock IN ARRAY locks LOOP
        PERFORM pg_advisory_xact_lock(lock);
    END LOOP;
END $$;
COMMENT ON FUNCTION lock_keys(text[], text[]) IS 'Makes whoever changes the order of these keys (topics and keys, in step) wait for each other. Internal.';

CREATE OR REPLACE FUNCTION lock_order(ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    topics text[];
    keys   text[];
BEGIN
    SELECT array_agg(q.topic), array_agg(q.ordering_key) INTO topics, keys FROM events_queue_live q WHERE q.id = ANY (ids) AND q.ordering_key IS NOT NULL;
    IF keys IS NOT NULL THEN
        PERFORM lock_keys(topics, keys);
    END IF;
END $$;
COMMENT ON FUNCTION lock_order(bigint[]) IS 'Locks the ordering keys of these events at once, for whoever ends them in several steps. Internal.';

CREATE OR REPLACE FUNCTION advance_key(topic text, key text, rules event_topics, ended boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET enable_seqscan = off AS $$
DECLARE
    room   int;
    event  bigint;
    due    timestamptz;
BEGIN
    IF ended AND rules.key_interval > '0' THEN
        INSERT INTO key_pace AS p (topic, ordering_key, next_at) VALUES (advance_key.topic, key, clock_timestamp() + rules.key_interval)
        ON CONFLICT ON CONSTRAINT key_pace_pkey DO UPDATE SET next_at = greatest(p.next_at, excluded.next_at);
    END IF;
    room := rules.key_concurrency
        - (SELECT count(*) FROM events_queue_live q WHERE q.topic = advance_key.topic AND q.ordering_key = key AND q.waits = 0);
    WHILE room > 0 LOOP
        SELECT q.id, q.run_at INTO event, due FROM events_queue_live q
         WHERE q.topic = advance_key.topic AND q.ordering_key = key AND q.waits = 1 ORDER BY q.id LIMIT 1 FOR UPDATE;
        EXIT WHEN NOT FOUND;
        due := greatest(due, clock_timestamp());
        IF rules.key_interval > '0' THEN
            INSERT INTO key_pace AS p (topic, ordering_key, next_at) VALUES (advance_key.topic, key, due + rules.key_interval)
            ON CONFLICT ON CONSTRAINT key_pace_pkey DO UPDATE SET next_at = greatest(p.next_at, due) + rules.key_interval
            RETURNING p.next_at - rules.key_interval INTO due;
        END IF;
        UPDATE events_queue_live q
           SET waits = 0, deferred = due > clock_timestamp(), run_at = due, turn_at = due + q.priority * interval '30 seconds'
         WHERE q.id = event;
        room := room - 1;
    END LOOP;
END $$;
COMMENT ON FUNCTION advance_key(text, text, event_topics, boolean) IS
    'Lets the next events of an ordering key into the line, as many as the topic allows at the same time, and not before its interval has passed since one ended. Internal; lock_keys() comes first.';

CREATE OR REPLACE FUNCTION follow_events(ids bigint[], topics text[], keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF array_length(array_remove(keys, NULL), 1) > 0 THEN
        PERFORM lock_keys(topics, keys);
        PERFORM advance_key(e.topic, e.key, t, true)
           FROM (SELECT DISTINCT u.topic, u.key FROM unnest(topics, keys) AS u (topic, key) WHERE u.key IS NOT NULL) e JOIN event_topics t ON t.topic = e.topic;
        PERFORM wake_workers('events');
    END IF;
    IF ids <> '{}' THEN
        WITH over AS (
            DELETE FROM event_parents p WHERE p.parent_id = ANY (ids) RETURNING p.child_id
        ), freed AS (
            SELECT o.child_id AS id, count(*) AS ct FROM over o GROUP BY o.child_id
        )
        UPDATE events_queue_live q
           SET waits = greatest(q.waits - f.ct, 0), deferred = q.waits > f.ct OR q.run_at > clock_timestamp(),
               turn_at = clock_timestamp() + q.priority * interval '30 seconds'
          FROM freed f WHERE q.id = f.id;
        IF FOUND THEN
            PERFORM wake_workers('events');
        END IF;
    END IF;
END $$;
COMMENT ON FUNCTION follow_events(bigint[], text[], text[]) IS
    'What follows when items have ended: the next of their ordering keys (topics and keys, in step), and the events that wait for those that are done (ids). Internal.';

CREATE OR REPLACE FUNCTION watch_parents(ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- A statement of its own, so that it sees who began to wait while the caller waited for a lock.
    UPDATE events_queue_live q SET watched = true
     WHERE q.id = ANY (ids) AND NOT q.watched AND EXISTS (SELECT FROM event_parents p WHERE p.parent_id = q.id);
END $$;
COMMENT ON FUNCTION watch_parents(bigint[]) IS 'Notes that others wait for these events. Internal.';

CREATE OR REPLACE FUNCTION orphan_events(ids bigint[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    orphans record;
BEGIN
    DELETE FROM event_parents p WHERE p.child_id = ANY (ids);
    FOR orphans IN DELETE FROM event_parents p WHERE p.parent_id = ANY (ids) RETURNING p.child_id, p.parent_id LOOP
        PERFORM bury_events(ARRAY[orphans.child_id], format('event %s, which it waits for, was discarded', orphans.parent_id));
    END LOOP;
END $$;
COMMENT ON FUNCTION orphan_events(bigint[]) IS 'Ends events in error that wait for events which are gone, and forgets what those waited for. Internal.';

-- Handlers ---------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION run_handler(handler text, ids bigint[], payloads jsonb[])
RETURNS TABLE (event_id bigint, error text, retryable boolean, result jsonb)
LANGUAGE plpgsql ROWS 10 SET search_path FROM CURRENT AS $$
DECLARE
    n        int;
    outcomes jsonb;
BEGIN
    IF cardinality(ids) > 0 IS NOT TRUE THEN
        RETURN;
    END IF;
    BEGIN
        -- Gathered before the first row is returned: rows of a call that fails half-way must not count.
        EXECUTE format('SELECT jsonb_agg(f) FROM %s($1, $2) AS f', handler::regproc) INTO outcomes USING ids, payloads;
        RETURN QUERY SELECT f.event_id, f.error, f.retryable, f.result
                       FROM jsonb_to_recordset(outcomes) AS f (event_id bigint, error text, retryable boolean, result jsonb);
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
    'Calls a handler with a batch and returns the events that failed, and results if the handler gives any. If it raises an error, the batch is halved until the failing events stand alone; an error about data (SQLSTATE class 22) is permanent.';

CREATE OR REPLACE FUNCTION process_events(ids bigint[], lease_token uuid)
RETURNS TABLE (id bigint, held boolean, status text, error text)
LANGUAGE plpgsql ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moment   timestamptz := clock_timestamp();
    batch    record;
    failure  record;
    said     bigint[];
    errors   text[];
    again    boolean[];
    results  jsonb[];
    failed   bigint[];
    done     bigint[];
    outcome  jsonb := '[]';
    handled  bigint[] := '{}';
BEGIN
    PERFORM check_lease_arguments(ids, lease_token);
    PERFORM lock_order(process_events.ids);
    FOR batch IN
        SELECT h.topic, t.handler, array_agg(h.id ORDER BY h.id) AS ids, array_agg(h.payload ORDER BY h.id) AS payloads
          FROM hold_events(process_events.ids, process_events.lease_token, moment) h LEFT JOIN event_topics t ON t.topic = h.topic
         GROUP BY h.topic, t.handler ORDER BY h.topic
    LOOP
        handled := handled || batch.ids;
        IF batch.handler IS NULL THEN
            SELECT batch.ids, array_agg(format('no handler for topic "%s"; known topics: %s', batch.topic,
                       coalesce((SELECT string_agg(t.topic, ', ' ORDER BY t.topic) FROM event_topics t WHERE t.registered), 'none'))),
                   array_agg(false), NULL
              INTO said, errors, again, results FROM unnest(batch.ids);
        ELSE
            -- What is said of an event twice counts once; an error counts more than a result.
            SELECT array_agg(o.event_id), array_agg(o.error), array_agg(coalesce(o.retryable, true)), array_agg(o.result) INTO said, errors, again, results
              FROM (SELECT DISTINCT ON (f.event_id) f.* FROM run_handler(batch.handler, batch.ids, batch.payloads) f
                     WHERE f.event_id IN (SELECT i FROM unnest(batch.ids) AS i) ORDER BY f.event_id, f.error IS NULL AND f.result IS NOT NULL) o;
        END IF;
        failed := '{}';
        IF said IS NOT NULL THEN
            FOR failure IN
                SELECT s.error, s.retryable, array_agg(s.id) AS ids
                  FROM unnest(said, errors, again, results) AS s (id, error, retryable, result) WHERE s.error IS NOT NULL OR s.result IS NULL
                 GROUP BY s.error, s.retryable ORDER BY min(s.id)
            LOOP
                failed := failed || failure.ids;
                outcome := outcome || (SELECT jsonb_agg(jsonb_build_object('id', f.id, 'status', f.status, 'error', failure.error))
                    FROM fail_events(failure.ids, process_events.lease_token, failure.error, failure.retryable, moment) f);
            END LOOP;
        END IF;
        done := CASE failed WHEN '{}' THEN batch.ids ELSE ARRAY(SELECT i FROM unnest(batch.ids) AS i WHERE i NOT IN (SELECT f FROM unnest(failed) AS f)) END;
        IF done <> '{}' THEN
            PERFORM ack_events(done, process_events.lease_token,
                CASE WHEN array_length(array_remove(results, NULL), 1) > 0
                     THEN (SELECT array_agg(s.result ORDER BY d.n) FROM unnest(done) WITH ORDINALITY AS d (id, n) LEFT JOIN unnest(said, results) AS s (id, result) ON s.id = d.id) END, moment);
        END IF;
    END LOOP;
    RETURN QUERY
    SELECT i, h.id IS NOT NULL, CASE WHEN h.id IS NOT NULL THEN coalesce(o.status, 'done') END, o.error
      FROM unnest(process_events.ids) AS i LEFT JOIN unnest(handled) AS h (id) ON h.id = i
      LEFT JOIN jsonb_to_recordset(outcome) AS o (id bigint, status text, error text) ON o.id = i;
END $$;
COMMENT ON FUNCTION process_events(bigint[], uuid) IS
    'Does the work of leased events: locks those still held, calls the handler of each topic with its batch, and acks or fails each event in the same transaction, so every effect inside the database happens exactly once. An event of a topic without a handler ends in error, which names the known topics.';

-- Counting ---------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION fold_tally() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RETURN;  -- an older snapshot would collide with whoever has folded since
    END IF;
    -- By the minute for an hour, so that the throughput can be told.
    WITH folded AS (
        DELETE FROM event_tally WHERE ctid = ANY (ARRAY(SELECT ctid FROM event_tally FOR UPDATE SKIP LOCKED)) RETURNING *
    )
    INSERT INTO event_tally (topic, status, ct, at)
    SELECT topic, status, sum(ct), max(at) FROM folded
     GROUP BY topic, status, CASE WHEN at > now() - interval '1 hour' THEN date_trunc('minute', at) END, ct < 0;
END $$;
COMMENT ON FUNCTION fold_tally() IS 'Adds the rows of event_tally together. Done now and then by whoever ends items.';

CREATE OR REPLACE FUNCTION changed_by_hand() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    wrong   record;
    entered bigint[] := '{}';
    done    bigint[] := '{}';
    topics  text[];
    keys    text[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        DELETE FROM event_tally WHERE (topic = 'marketplace.discovery') = (TG_TABLE_NAME = 'marketplace_discovery_queue');
        RETURN NULL;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        SELECT a.* INTO wrong FROM arrived a
         WHERE a.topic !~ '^[a-z0-9][a-z0-9._-]{0,99}$' OR a.priority NOT BETWEEN -100 AND 100 OR a.attempts < 0 OR a.max_attempts NOT BETWEEN 1 AND 100 OR a.waits < 0
            OR (a.status IN ('leased', 'processing') AND (a.lease_token IS NULL OR a.lease_expires_at IS NULL))
            OR jsonb_typeof(to_jsonb(a) -> 'payload') <> 'object' LIMIT 1;
        IF FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = format('a row of %s breaks the rules of the queue', TG_TABLE_NAME),
                DETAIL = left(wrong::text, 500),
                HINT = 'topic: lower-case letters, digits, . _ -; priority: -100 to 100; max_attempts: 1 to 100; payload: a JSON object; a leased row needs lease_token and lease_expires_at.';
        END IF;
        INSERT INTO event_tally (topic, status, ct, at)
        SELECT topic, status, count(*), max(updated_at) FROM arrived WHERE status IN ('done', 'error') GROUP BY topic, status;
        INSERT INTO event_topics (topic, registered) SELECT DISTINCT topic, false FROM arrived ON CONFLICT DO NOTHING;
    END IF;
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        INSERT INTO event_tally (topic, status, ct, at)
        SELECT topic, status, -count(*), max(updated_at) FROM left_behind WHERE status IN ('done', 'error') GROUP BY topic, status;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        IF TG_TABLE_NAME = 'marketplace_discovery_queue' THEN
            -- One that ended before with the same interest, category and reason is armed anew by it.
            WITH twins AS (
                SELECT e.id FROM arrived a JOIN marketplace_discovery_queue_done e
                    ON e.interest_id = a.interest_id AND e.category_id IS NOT DISTINCT FROM a.category_id AND e.reason = a.reason
                 WHERE a.status IN ('queued', 'processing')
                UNION ALL
                SELECT e.id FROM arrived a JOIN marketplace_discovery_queue_error e
                    ON e.interest_id = a.interest_id AND e.category_id IS NOT DISTINCT FROM a.category_id AND e.reason = a.reason
                 WHERE a.status IN ('queued', 'processing')
            ), dropped AS (
                DELETE FROM marketplace_discovery_queue_done e WHERE e.id IN (SELECT w.id FROM twins w)
            ), failed AS (
                DELETE FROM marketplace_discovery_queue_error e WHERE e.id IN (SELECT w.id FROM twins w)
            )
            INSERT INTO event_tally (topic, status, ct)
            SELECT e.topic, e.status, -count(*) FROM marketplace_discovery_queue e WHERE e.id IN (SELECT w.id FROM twins w) AND e.status IN ('done', 'error')
             GROUP BY e.topic, e.status;
        END IF;
    END IF;
    IF TG_TABLE_NAME = 'events_queue' THEN
        CASE TG_OP
            WHEN 'INSERT' THEN
                entered := ARRAY(SELECT a.id FROM arrived a WHERE a.status = 'queued');
            WHEN 'UPDATE' THEN
                entered := ARRAY(SELECT a.id FROM arrived a JOIN left_behind b ON b.id = a.id WHERE a.status = 'queued' AND b.status IN ('done', 'error'));
                done := ARRAY(SELECT a.id FROM arrived a JOIN left_behind b ON b.id = a.id WHERE a.status = 'done' AND b.status <> 'done');
                UPDATE events_queue_live q SET deferred = true
                  FROM arrived a WHERE q.id = a.id AND a.status = 'queued' AND q.run_at > now() AND NOT q.deferred;
                SELECT array_agg(b.topic), array_agg(b.ordering_key) INTO topics, keys
                  FROM left_behind b LEFT JOIN arrived a ON a.id = b.id
                 WHERE b.ordering_key IS NOT NULL AND b.status IN ('queued', 'leased') AND a.status IN ('done', 'error');
            ELSE
                PERFORM orphan_events(ARRAY(SELECT b.id FROM left_behind b WHERE b.status <> 'done'));
                SELECT array_agg(b.topic), array_agg(b.ordering_key) INTO topics, keys
                  FROM left_behind b WHERE b.ordering_key IS NOT NULL AND b.status IN ('queued', 'leased');
        END CASE;
        -- What came into the line by hand waits for its time, its parents and its turn like everything else.
        UPDATE events_queue_live q
           SET waits = CASE WHEN q.ordering_key IS NOT NULL THEN 1 ELSE p.ct END, deferred = q.ordering_key IS NOT NULL OR p.ct > 0 OR q.run_at > now(),
               watched = q.ordering_key IS NOT NULL OR EXISTS (SELECT FROM event_parents c WHERE c.parent_id = q.id)
          FROM unnest(entered) AS e (id), LATERAL (SELECT count(*) AS ct FROM event_parents c WHERE c.child_id = e.id) p
         WHERE q.id = e.id;
        SELECT topics || array_agg(q.topic), keys || array_agg(q.ordering_key) INTO topics, keys
          FROM events_queue_live q WHERE q.id = ANY (entered) AND q.ordering_key IS NOT NULL;
        PERFORM follow_events(done, topics, keys);
    END IF;
    PERFORM fold_tally();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION changed_by_hand() IS 'Trigger: checks and counts what is changed by hand, through the queue''s own name. The functions check and count what they do themselves.';

DO $$
DECLARE
    queue text;
BEGIN
    FOREACH queue IN ARRAY ARRAY['events_queue', 'marketplace_discovery_queue'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER by_hand_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION changed_by_hand()', queue);
        EXECUTE format('CREATE OR REPLACE TRIGGER by_hand_delete AFTER DELETE ON %I REFERENCING OLD TABLE AS left_behind FOR EACH STATEMENT EXECUTE FUNCTION changed_by_hand()', queue);
        EXECUTE format('CREATE OR REPLACE TRIGGER by_hand_update AFTER UPDATE ON %I REFERENCING OLD TABLE AS left_behind NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION changed_by_hand()', queue);
        EXECUTE format('CREATE OR REPLACE TRIGGER by_hand_truncate AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION changed_by_hand()', queue);
    END LOOP;
END $$;
CREATE OR REPLACE TRIGGER enqueue_inbox AFTER INSERT ON events_inbox REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION enqueue_inbox();
