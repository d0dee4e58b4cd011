-- What a rating does: the handler of the topic "otc.rating". It takes a whole batch at once.

CREATE FUNCTION otc.read_ratings(ids bigint[], payloads jsonb[])
RETURNS TABLE (event_id bigint, rater int, ratee int, rating int, rated_at timestamptz, fault text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT e.id, r.rater, r.ratee, r.rating, r.rated_at,
           CASE WHEN a.id IS NULL THEN format('nobody has the number %s (rater)', coalesce(r.rater::text, 'NULL'))
                WHEN b.id IS NULL THEN format('nobody has the number %s (ratee)', coalesce(r.ratee::text, 'NULL'))
                WHEN a.id = b.id THEN format('%s cannot rate themselves', a.id)
                WHEN r.rating BETWEEN -10 AND 10 IS NOT TRUE THEN format('rating %s is not from -10 to 10', coalesce(r.rating::text, 'NULL'))
                WHEN r.rated_at IS NULL THEN 'rated_at is missing' END
      FROM unnest(ids, payloads) AS e (id, payload)
     CROSS JOIN LATERAL jsonb_to_record(e.payload) AS r (rater int, ratee int, rating int, rated_at timestamptz)
      LEFT JOIN otc.people a ON a.id = r.rater
      LEFT JOIN otc.people b ON b.id = r.ratee
$$;

CREATE FUNCTION otc.apply_ratings(ids bigint[], payloads jsonb[])
RETURNS TABLE (event_id bigint, error text, retryable boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- Everything below belongs to a pair of people. Every batch locks its pairs in the same order, so that two
    -- batches never wait for each other in a circle, and A's rating of B and B's rating of A see each other.
    PERFORM pg_advisory_xact_lock(p.low, p.high)
       FROM (SELECT DISTINCT least(r.rater, r.ratee) AS low, greatest(r.rater, r.ratee) AS high
               FROM otc.read_ratings(ids, payloads) r WHERE r.fault IS NULL ORDER BY low, high) AS p;

    -- The rater is a member of the ratee's scene, and weighs as much as the rating says. The latest rating counts,
    -- in whatever order the events come.
    INSERT INTO memberships AS m (scene_id, user_did, role, trust_weight, status, since)
    SELECT DISTINCT ON (r.rater, r.ratee) b.scene_id, a.did, a.role, (r.rating + 10) / 20.0, 'active', r.rated_at
      FROM otc.read_ratings(ids, payloads) r
      JOIN otc.people a ON a.id = r.rater
      JOIN otc.people b ON b.id = r.ratee
     WHERE r.fault IS NULL
     ORDER BY r.rater, r.ratee, r.rated_at DESC, r.event_id DESC
    ON CONFLICT ON CONSTRAINT memberships_scene_user_key DO UPDATE
       SET trust_weight = excluded.trust_weight, role = excluded.role, since = excluded.since, updated_at = now()
     WHERE m.since <= excluded.since
       AND (m.trust_weight, m.role, m.since) IS DISTINCT FROM (excluded.trust_weight, excluded.role, excluded.since);

    -- Whoever trusts somebody vouches for them: pending until the other has rated back, then weighted by how much of
    -- the trust is returned. A rating changes what its rater vouches for, and what the ratee's own vouching is worth.
    WITH vouching AS (
        SELECT DISTINCT a.id AS from_id, a.scene_id AS from_scene, a.did AS from_did, b.scene_id AS to_scene, b.did AS to_did
          FROM otc.read_ratings(ids, payloads) r
         CROSS JOIN LATERAL (VALUES (r.rater, r.ratee), (r.ratee, r.rater)) AS pair (from_id, to_id)
          JOIN otc.people a ON a.id = pair.from_id
          JOIN otc.people b ON b.id = pair.to_id
         WHERE r.fault IS NULL
    ), judged AS (
        SELECT v.from_scene, v.to_scene, given.trust_weight > 0.5 AS trusts, given.since,
               CASE WHEN returned.id IS NULL THEN 'pending' ELSE 'active' END AS status,
               1 - greatest(given.trust_weight - coalesce(returned.trust_weight, given.trust_weight), 0) AS weight
          FROM vouching v
          JOIN memberships given ON given.scene_id = v.to_scene AND given.user_did = v.from_did
          LEFT JOIN memberships returned ON returned.scene_id = v.from_scene AND returned.user_did = v.to_did
    ), withdrawn AS (
        UPDATE alliances SET deleted_at = now(), updated_at = now()
         WHERE id = ANY (ARRAY(
            SELECT a.id FROM judged j
             CROSS JOIN LATERAL (SELECT a.id FROM alliances a WHERE a.from_scene_id = j.from_scene AND a.to_scene_id = j.to_scene
                                    AND a.deleted_at IS NULL LIMIT 1) AS a
             WHERE NOT j.trusts))
    )
    INSERT INTO alliances AS a (from_scene_id, to_scene_id, weight, status, since)
    SELECT j.from_scene, j.to_scene, j.weight, j.status, j.since FROM judged j WHERE j.trusts
    ON CONFLICT (from_scene_id, to_scene_id) WHERE deleted_at IS NULL DO UPDATE
       SET weight = excluded.weight, status = excluded.status, updated_at = now()
     WHERE (a.weight, a.status) IS DISTINCT FROM (excluded.weight, excluded.status);

    -- A faulty event fails for good, alone; the others of its batch are done.
    RETURN QUERY SELECT r.event_id, r.fault, false FROM otc.read_ratings(ids, payloads) r WHERE r.fault IS NOT NULL;
END $$;

REVOKE ALL ON FUNCTION otc.read_ratings(bigint[], jsonb[]), otc.apply_ratings(bigint[], jsonb[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION otc.apply_ratings(bigint[], jsonb[]) TO steward_worker;

SELECT register_topic('otc.rating', 'otc.apply_ratings', description => 'somebody rated somebody');
