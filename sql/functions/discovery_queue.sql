-- What marketplace_discovery_queue has beyond the mechanism of queue.sql: enqueueing by identity, and its lease.

CREATE OR REPLACE FUNCTION enqueue_discovery_items(
    interest_ids uuid[], category_ids uuid[] DEFAULT NULL, reasons text[] DEFAULT NULL, priority int DEFAULT 0, run_at timestamptz DEFAULT NULL) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    rules event_topics := check_enqueue('marketplace.discovery', priority, run_at, NULL);
    due   timestamptz := coalesce(enqueue_discovery_items.run_at, now());
    size  int := cardinality(interest_ids);
    lost  text;
    found_ct bigint;
BEGIN
    PERFORM require_argument(interest_ids, 'interest_ids');
    PERFORM require_valid(size > 0, 'interest_ids is empty', 'Give at least one interest.');
    PERFORM require_valid(size <= 100000, format('%s interests are too many', size), 'Enqueue at most 100000 in a call.', '54000');
    PERFORM require_valid(array_position(interest_ids, NULL) IS NULL, 'interest_ids must not contain NULL', 'Give the ids of interests.', '22004');
    category_ids := coalesce(category_ids, array_fill(NULL::uuid, ARRAY[size]));
    reasons := coalesce(reasons, array_fill('new-interest'::text, ARRAY[size]));
    PERFORM require_valid(cardinality(category_ids) = size AND cardinality(reasons) = size,
        format('%s categories and %s reasons for %s interests', cardinality(category_ids), cardinality(reasons), size),
        'Give one of each per interest; a NULL category means all of the interest.', 'array_subscript_error');
    PERFORM require_valid(NOT EXISTS (SELECT FROM unnest(reasons) r WHERE r IS NULL OR r = '' OR length(r) > 200),
        'a reason is missing, empty or longer than 200 characters', 'Give a word such as new-interest or user-signup.');
    SELECT i::text INTO lost FROM unnest(interest_ids) i WHERE NOT EXISTS (SELECT FROM interest_catalog c WHERE c.id = i) LIMIT 1;
    PERFORM require_valid(lost IS NULL, format('there is no interest %s', lost), 'SELECT id, domain, category, tag FROM interest_catalog; lists them.', '23503');
    SELECT i::text INTO lost FROM unnest(category_ids) i WHERE i IS NOT NULL AND NOT EXISTS (SELECT FROM marketplace_categories c WHERE c.id = i) LIMIT 1;
    PERFORM require_valid(lost IS NULL, format('there is no category %s', lost), 'SELECT id, slug FROM marketplace_categories; lists them.', '23503');

    -- What waits already stays as it is; what is leased is marked, so that its ack puts it back into the line: whoever works on
    -- it may not see what the caller saw. An item that ends meanwhile is gone, and inserted at the next try.
    PERFORM FROM marketplace_discovery_queue_error q JOIN unnest(interest_ids, category_ids, reasons) AS w (interest_id, category_id, reason)
              ON q.interest_id = w.interest_id AND q.category_id IS NOT DISTINCT FROM w.category_id AND q.reason = w.reason
      ORDER BY q.id FOR UPDATE OF q;  -- so that nobody requeues them meanwhile
    LOOP
        INSERT INTO marketplace_discovery_queue_live (topic, interest_id, category_id, reason, priority, run_at, turn_at, deferred, max_attempts)
        SELECT rules.topic, w.interest_id, w.category_id, w.reason, enqueue_discovery_items.priority, due,
               due + enqueue_discovery_items.priority * interval '30 seconds' + min(w.n) * interval '1 microsecond', due > clock_timestamp(), rules.max_attempts
          FROM unnest(interest_ids, category_ids, reasons) WITH ORDINALITY AS w (interest_id, category_id, reason, n)
         GROUP BY w.interest_id, w.category_id, w.reason ORDER BY w.interest_id, w.category_id, w.reason
        ON CONFLICT DO NOTHING;
        WITH present AS MATERIALIZED (
            SELECT q.id, q.status FROM marketplace_discovery_queue_live q
              JOIN (SELECT DISTINCT w.interest_id, w.category_id, w.reason FROM unnest(interest_ids, category_ids, reasons) AS w (interest_id, category_id, reason)) w
                ON q.interest_id = w.interest_id AND q.category_id IS NOT DISTINCT FROM w.category_id AND q.reason = w.reason
             ORDER BY q.id FOR UPDATE OF q
        ), marked AS (
            UPDATE marketplace_discovery_queue_live q SET again = true FROM present p WHERE q.id = p.id AND p.status = 'processing'
        )
        SELECT count(*) INTO found_ct FROM present;
        EXIT WHEN found_ct = (SELECT count(DISTINCT (w.interest_id, w.category_id, w.reason)) FROM unnest(interest_ids, category_ids, reasons) AS w (interest_id, category_id, reason));
    END LOOP;
    -- What has ended before is armed anew by it: the old row goes.
    WITH wanted AS (
        SELECT DISTINCT w.interest_id, w.category_id, w.reason FROM unnest(interest_ids, category_ids, reasons) AS w (interest_id, category_id, reason)
    ), done AS (
        DELETE FROM marketplace_discovery_queue_done q USING wanted w
         WHERE q.interest_id = w.interest_id AND q.category_id IS NOT DISTINCT FROM w.category_id AND q.reason = w.reason RETURNING q.status
    ), failed AS (
        DELETE FROM marketplace_discovery_queue_error q USING wanted w
         WHERE q.interest_id = w.interest_id AND q.category_id IS NOT DISTINCT FROM w.category_id AND q.reason = w.reason RETURNING q.status
    ), before AS (
        SELECT d.status FROM done d UNION ALL SELECT f.status FROM failed f
    )
    INSERT INTO event_tally (topic, status, ct) SELECT rules.topic, b.status, -count(*) FROM before b GROUP BY b.status;
    PERFORM wake_workers('discovery');
    RETURN QUERY
    SELECT q.id FROM unnest(interest_ids, category_ids, reasons) WITH ORDINALITY AS w (interest_id, category_id, reason, n)
      JOIN marketplace_discovery_queue_live q
        ON q.interest_id = w.interest_id AND q.category_id IS NOT DISTINCT FROM w.category_id AND q.reason = w.reason ORDER BY w.n;
END $$;
COMMENT ON FUNCTION enqueue_discovery_items(uuid[], uuid[], text[], int, timestamptz) IS
    'Enqueues discovery items and returns their ids in order. The rules are those of enqueue_discovery_item().';

CREATE OR REPLACE FUNCTION enqueue_discovery_item(
    interest_id uuid, category_id uuid DEFAULT NULL, reason text DEFAULT 'new-interest', priority int DEFAULT 0, run_at timestamptz DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_argument(interest_id, 'interest_id'), require_argument(reason, 'reason');
    RETURN (SELECT id FROM enqueue_discovery_items(ARRAY[interest_id], ARRAY[category_id], ARRAY[reason], priority, run_at) AS id);
END $$;
COMMENT ON FUNCTION enqueue_discovery_item(uuid, uuid, text, int, timestamptz) IS
    'Enqueues an interest to be looked at, in one category or, with NULL, in all that it is mapped to, and returns the id. Interest, category (NULL is a value like any other) and reason name one item: as long as it waits, the same call changes nothing; while it is leased, the call makes it wait again after its ack; after it has ended, the call arms it anew.';

CREATE OR REPLACE FUNCTION lease_discovery_items(max_items int DEFAULT 20, ttl_seconds int DEFAULT 120, worker text DEFAULT NULL)
RETURNS TABLE (id bigint, interest_id uuid, category_id uuid, reason text, attempts int, max_attempts int, lease_token uuid, lease_expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    PERFORM check_ttl(ttl_seconds), require_argument(max_items, 'max_items');
    PERFORM require_valid(max_items BETWEEN 1 AND 10000, format('max_items %s is out of range', max_items), 'Lease 1 to 10000 items at a time.');
    PERFORM promote_discovery_items();
    RETURN QUERY SELECT * FROM claim_discovery_items('marketplace.discovery', max_items, ttl_seconds, worker, gen_random_uuid(), true);
END $$;
COMMENT ON FUNCTION lease_discovery_items(int, int, text) IS
    'Leases up to max_items ready discovery items for ttl_seconds and returns them with one lease token. Expired leases count as ready. The attempt counts now. While the topic "marketplace.discovery" is paused, nothing is leased.';
