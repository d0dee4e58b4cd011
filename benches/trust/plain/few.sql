-- For a few scenes: no temporary table, plans kept by the session, every look-up by index.
CREATE FUNCTION plain_recompute_few() RETURNS bigint LANGUAGE plpgsql SET random_page_cost = 1.1 AS $$
DECLARE
    places  tid[];
    claimed uuid[];
BEGIN
    SELECT array_agg(place), array_agg(DISTINCT scene_id) INTO places, claimed
      FROM (SELECT ctid AS place, scene_id FROM trust_dirty WHERE quarantined_at IS NULL AND retry_at <= now()
             ORDER BY generation LIMIT 500 FOR UPDATE SKIP LOCKED) AS marks;
    INSERT INTO trust_scores AS t (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at)
    SELECT s.id, a.factor * m.mean, a.factor, m.mean, m.ct, a.ct, now()
      FROM unnest(claimed) AS c(id)
      JOIN scenes s ON s.id = c.id AND s.deleted_at IS NULL
     CROSS JOIN LATERAL (
        SELECT count(*)::int AS ct,
               coalesce(avg(trust_weight * CASE role WHEN 'owner' THEN 1.0::float8 WHEN 'curator' THEN 0.8 WHEN 'member' THEN 0.5 WHEN 'guest' THEN 0.3 ELSE 0.5 END), 0) AS mean
          FROM memberships m WHERE m.scene_id = s.id AND status = 'active') AS m
     CROSS JOIN LATERAL (
        SELECT count(*)::int AS ct, coalesce(avg(weight), 1) AS factor
          FROM alliances a
         WHERE a.from_scene_id = s.id AND status = 'active' AND deleted_at IS NULL
           AND NOT EXISTS (SELECT FROM scenes s WHERE s.id = a.to_scene_id AND (s.deleted_at IS NOT NULL OR s.moderation_status IN ('hidden', 'suspended')))) AS a
        ON CONFLICT (scene_id) DO UPDATE
       SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
           memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at
     WHERE (t.score, t.alliance_factor, t.membership_mean, t.memberships, t.alliances)
           IS DISTINCT FROM (excluded.score, excluded.alliance_factor, excluded.membership_mean, excluded.memberships, excluded.alliances);
    DELETE FROM trust_dirty WHERE ctid = ANY (places);
    RETURN cardinality(claimed);
END $$;
