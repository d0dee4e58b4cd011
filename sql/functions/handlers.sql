-- Handlers: the work of leased events, done and acknowledged in one transaction.

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
