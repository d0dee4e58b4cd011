-- Gaps between what users want and what the marketplace offers: checked for the items of marketplace_discovery_queue, or by hand.

CREATE OR REPLACE FUNCTION refresh_gaps(interest_ids uuid[], category_ids uuid[] DEFAULT NULL)
RETURNS TABLE (interest_id uuid, category_id uuid, inventory_ct bigint, gap_level text, error text, retryable boolean)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    whole      uuid[];
    interests  uuid[];
    categories uuid[];
    refused    jsonb;
BEGIN
    PERFORM require_argument(interest_ids, 'interest_ids');
    PERFORM require_valid(cardinality(category_ids) = cardinality(interest_ids) OR category_ids IS NULL,
        format('%s categories for %s interests', cardinality(category_ids), cardinality(interest_ids)),
        'Give one category per interest; NULL for all categories of the interest.', 'array_subscript_error');
    PERFORM require_valid(NOT EXISTS (SELECT FROM unnest(interest_ids) AS i WHERE i IS NULL), 'interest_ids must not contain NULL',
        'SELECT id, domain, category, tag FROM interest_catalog lists the interests.', '22004');

    -- Interests and categories are locked, so that nobody deletes them meanwhile. What is being deleted at this moment is
    -- left for later and never waited for: whoever deletes it may be waiting for items that the caller holds.
    WITH requests AS MATERIALIZED (
        SELECT DISTINCT r.interest_id, r.category_id FROM unnest(interest_ids, category_ids) AS r (interest_id, category_id)
    ), locked_interests AS MATERIALIZED (
        SELECT i.id, i.tag, i.is_active FROM interest_catalog i WHERE i.id = ANY (interest_ids) FOR KEY SHARE SKIP LOCKED
    ), wanted AS MATERIALIZED (
        SELECT r.interest_id, r.category_id AS asked, coalesce(r.category_id, m.category_id) AS category_id
          FROM requests r LEFT JOIN marketplace_interest_map m ON r.category_id IS NULL AND m.interest_id = r.interest_id
    ), locked_categories AS MATERIALIZED (
        SELECT c.id, c.slug, c.is_active FROM marketplace_categories c WHERE c.id IN (SELECT w.category_id FROM wanted w) FOR KEY SHARE SKIP LOCKED
    ), resolved AS MATERIALIZED (
        SELECT w.interest_id, w.asked, CASE WHEN c.is_active THEN c.id END AS category_id,
               CASE WHEN i.id IS NULL AND NOT EXISTS (SELECT FROM interest_catalog e WHERE e.id = w.interest_id)
                    THEN format('interest %s does not exist', w.interest_id)
                    WHEN NOT i.is_active THEN format('interest %s (%s) is not active', w.interest_id, i.tag)
                    WHEN w.asked IS NOT NULL AND c.id IS NULL AND NOT EXISTS (SELECT FROM marketplace_categories e WHERE e.id = w.asked)
                    THEN format('category %s does not exist', w.asked)
                    WHEN w.asked IS NOT NULL AND NOT c.is_active THEN format('category %s (%s) is not active', w.asked, c.slug) END AS fault,
               CASE WHEN i.id IS NULL THEN format('interest %s is locked by another transaction', w.interest_id)
                    WHEN w.category_id IS NOT NULL AND c.id IS NULL THEN format('category %s is locked by another transaction', w.category_id) END AS obstacle
          FROM wanted w LEFT JOIN locked_interests i ON i.id = w.interest_id LEFT JOIN locked_categories c ON c.id = w.category_id
    ), judged AS (
        SELECT r.interest_id, r.asked, min(r.fault) AS fault, min(r.obstacle) AS obstacle,
               array_agg(DISTINCT r.category_id) FILTER (WHERE r.category_id IS NOT NULL) AS categories
          FROM resolved r GROUP BY r.interest_id, r.asked
    ), pairs AS (
        SELECT DISTINCT j.interest_id, c.category_id
          FROM judged j LEFT JOIN LATERAL unnest(j.categories) AS c (category_id) ON true
         WHERE j.fault IS NULL AND j.obstacle IS NULL
    )
    SELECT (SELECT coalesce(array_agg(j.interest_id), '{}') FROM judged j WHERE j.asked IS NULL AND j.fault IS NULL AND j.obstacle IS NULL),
           (SELECT array_agg(p.interest_id ORDER BY p.interest_id, p.category_id) FROM pairs p),
           (SELECT array_agg(p.category_id ORDER BY p.interest_id, p.category_id) FROM pairs p),
           (SELECT jsonb_agg(jsonb_build_object('interest_id', j.interest_id, 'category_id', j.asked,
                       'error', coalesce(j.fault, j.obstacle), 'retryable', j.fault IS NULL))
              FROM judged j WHERE j.fault IS NOT NULL OR j.obstacle IS NOT NULL)
      INTO whole, interests, categories, refused;

    -- First every row is locked, by everybody in one order, so that callers wait for each other and never deadlock; then
    -- the listings are counted, so that an older count never replaces a newer one.
    INSERT INTO marketplace_gaps AS g (interest_id, category_id, last_checked)
    SELECT p.interest_id, p.category_id, clock_timestamp() FROM unnest(interests, categories) AS p (interest_id, category_id) ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT marketplace_gaps_key DO UPDATE SET last_checked = clock_timestamp();

    WITH inventory AS MATERIALIZED (
        SELECT l.category_id, count(*) AS ct FROM marketplace_listings l
         WHERE l.category_id = ANY (categories) AND l.status = 'active' AND l.stock_quantity > 0 GROUP BY l.category_id
    ), found AS (
        SELECT p.interest_id, p.category_id, coalesce(v.ct, 0) AS ct, discovery_gap_level(coalesce(v.ct, 0)) AS level
          FROM unnest(interests, categories) AS p (interest_id, category_id) LEFT JOIN inventory v USING (category_id)
    )
    UPDATE marketplace_gaps g SET inventory_ct = f.ct, gap_level = f.level
      FROM found f
     WHERE g.interest_id = f.interest_id AND g.category_id IS NOT DISTINCT FROM f.category_id AND (g.inventory_ct, g.gap_level) <> (f.ct, f.level);

    -- Rows that stand no longer: of categories that do not serve the interest any more, and "no category" once there is one.
    DELETE FROM marketplace_gaps g
     WHERE g.id = ANY (ARRAY(
        SELECT o.id FROM marketplace_gaps o
         WHERE o.interest_id = ANY (interests)
           AND NOT EXISTS (SELECT FROM unnest(interests, categories) AS p (interest_id, category_id)
                            WHERE p.interest_id = o.interest_id AND p.category_id IS NOT DISTINCT FROM o.category_id)
           AND (o.interest_id = ANY (whole) OR (o.category_id IS NULL AND EXISTS (
                SELECT FROM marketplace_interest_map m JOIN marketplace_categories c ON c.id = m.category_id
                 WHERE m.interest_id = o.interest_id AND c.is_active)))
           FOR UPDATE OF o SKIP LOCKED));

    RETURN QUERY
    SELECT g.interest_id, g.category_id, g.inventory_ct, g.gap_level, NULL::text, NULL::boolean
      FROM unnest(interests, categories) AS p (interest_id, category_id)
      JOIN marketplace_gaps g ON g.interest_id = p.interest_id AND g.category_id IS NOT DISTINCT FROM p.category_id
    UNION ALL
    SELECT r.interest_id, r.category_id, NULL, NULL, r.error, r.retryable
      FROM jsonb_to_recordset(refused) AS r (interest_id uuid, category_id uuid, error text, retryable boolean);
END $$;
COMMENT ON FUNCTION refresh_gaps(uuid[], uuid[]) IS
    'Counts the active listings in stock for interests and stores the gaps in marketplace_gaps: of the category given with each interest, or, where that is NULL, of every active category that serves it. An interest that no category serves gets a row with category NULL, inventory 0, critical. Returns the gaps, and a row with error for each request that could not be computed; retryable says whether trying again may help.';

CREATE OR REPLACE FUNCTION check_discovery_items(ids bigint[], payloads jsonb[])
RETURNS TABLE (event_id bigint, error text, retryable boolean)
LANGUAGE sql ROWS 10 SET search_path FROM CURRENT AS $$
    WITH items AS MATERIALIZED (
        SELECT i.id, (i.payload ->> 'interest_id')::uuid AS interest_id, (i.payload ->> 'category_id')::uuid AS category_id
          FROM unnest(ids, payloads) AS i (id, payload)
    ), failed AS MATERIALIZED (
        SELECT r.interest_id, r.category_id, r.error, r.retryable
          FROM (SELECT coalesce(array_agg(i.interest_id ORDER BY i.id), '{}') AS interests, coalesce(array_agg(i.category_id ORDER BY i.id), '{}') AS categories FROM items i) a,
               refresh_gaps(a.interests, a.categories) r
         WHERE r.error IS NOT NULL
    )
    SELECT i.id, f.error, f.retryable FROM items i JOIN failed f ON f.interest_id = i.interest_id AND f.category_id IS NOT DISTINCT FROM i.category_id
$$;
COMMENT ON FUNCTION check_discovery_items(bigint[], jsonb[]) IS
    'Handler of process_discovery_items(): refreshes the gaps of a batch and returns a row for each item that could not be computed.';

CREATE OR REPLACE FUNCTION process_discovery_items(ids bigint[], lease_token uuid)
RETURNS TABLE (id bigint, held boolean, status text, error text)
LANGUAGE plpgsql ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moment   timestamptz := clock_timestamp();
    mine     bigint[];
    payloads jsonb[];
    failure  record;
    outcome  jsonb := '{}';
BEGIN
    SELECT array_agg(h.id ORDER BY h.id),
           array_agg(jsonb_build_object('interest_id', h.interest_id, 'category_id', h.category_id) ORDER BY h.id)
      INTO mine, payloads
      FROM hold_discovery_items(process_discovery_items.ids, process_discovery_items.lease_token, moment) h;
    FOR failure IN
        SELECT f.error, f.retryable, array_agg(f.event_id ORDER BY f.event_id) AS ids
          FROM run_handler('check_discovery_items', mine, payloads) f GROUP BY f.error, f.retryable
    LOOP
        outcome := outcome || (
            SELECT jsonb_object_agg(f.id, jsonb_build_object('status', f.status, 'error', failure.error))
              FROM fail_discovery_items(failure.ids, process_discovery_items.lease_token, failure.error, failure.retryable, moment) f);
    END LOOP;
    mine := coalesce(mine, '{}');
    IF EXISTS (SELECT FROM unnest(mine) AS i WHERE NOT outcome ? i::text) THEN
        PERFORM ack_discovery_items(ARRAY(SELECT i FROM unnest(mine) AS i WHERE NOT outcome ? i::text), process_discovery_items.lease_token, now => moment);
    END IF;
    RETURN QUERY
    SELECT i, i = ANY (mine), CASE WHEN i = ANY (mine) THEN coalesce(outcome #>> ARRAY[i::text, 'status'], 'done') END, outcome #>> ARRAY[i::text, 'error']
      FROM unnest(process_discovery_items.ids) AS i;
END $$;
COMMENT ON FUNCTION process_discovery_items(bigint[], uuid) IS
    'Does the work of leased discovery items: locks those still held, refreshes the gaps of all of them, and acks or fails each item in the same transaction. An item that cannot be computed, as when its interest or category is not active, fails alone. held is false for each id whose lease was lost: nothing was changed for it.';
