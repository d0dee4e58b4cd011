-- What waits for what: ordering keys, and events that wait for others.

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
