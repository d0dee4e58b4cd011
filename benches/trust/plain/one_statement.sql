-- Not safe: claim and aggregate share a snapshot, so a change that commits while the marks are being locked is lost. Here for its speed.
WITH claimed AS MATERIALIZED (
    SELECT ctid AS place, scene_id FROM trust_dirty WHERE quarantined_at IS NULL AND retry_at <= now() ORDER BY generation FOR UPDATE SKIP LOCKED
), written AS (
    INSERT INTO trust_scores AS t (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at)
    SELECT c.scene_id, coalesce(a.factor, 1) * coalesce(m.mean, 0), coalesce(a.factor, 1), coalesce(m.mean, 0), coalesce(m.ct, 0), coalesce(a.ct, 0), now()
      FROM (SELECT DISTINCT scene_id FROM claimed) AS c
      JOIN scenes s ON s.id = c.scene_id AND s.deleted_at IS NULL
      LEFT JOIN (
            SELECT scene_id, count(*)::int AS ct,
                   avg(trust_weight * CASE role WHEN 'owner' THEN 1.0::float8 WHEN 'curator' THEN 0.8 WHEN 'member' THEN 0.5 WHEN 'guest' THEN 0.3 ELSE 0.5 END) AS mean
              FROM memberships WHERE status = 'active' GROUP BY scene_id) AS m ON m.scene_id = c.scene_id
      LEFT JOIN (
            SELECT from_scene_id, count(*)::int AS ct, avg(weight) AS factor
              FROM alliances a
             WHERE status = 'active' AND deleted_at IS NULL
               AND NOT EXISTS (SELECT FROM scenes s WHERE s.id = a.to_scene_id AND (s.deleted_at IS NOT NULL OR s.moderation_status IN ('hidden', 'suspended')))
             GROUP BY from_scene_id) AS a ON a.from_scene_id = c.scene_id
        ON CONFLICT (scene_id) DO UPDATE
       SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
           memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at
     WHERE (t.score, t.alliance_factor, t.membership_mean, t.memberships, t.alliances)
           IS DISTINCT FROM (excluded.score, excluded.alliance_factor, excluded.membership_mean, excluded.memberships, excluded.alliances)
)
DELETE FROM trust_dirty WHERE ctid = ANY (ARRAY(SELECT place FROM claimed));
