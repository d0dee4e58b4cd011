-- Counting of ended items, and what follows from changes by hand.

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
