-- What differs from the stored scores. The whole of memberships and alliances is aggregated: cheaper than picking, and parallel workers may share it.
CREATE TEMPORARY TABLE computed ON COMMIT DROP AS
SELECT c.scene_id, coalesce(a.factor, 1) * coalesce(m.mean, 0) AS score, coalesce(a.factor, 1) AS alliance_factor, coalesce(m.mean, 0) AS membership_mean,
       coalesce(m.ct, 0) AS memberships, coalesce(a.ct, 0) AS alliances, t.ctid AS place
  FROM (SELECT DISTINCT scene_id FROM claimed) AS c
  JOIN scenes s ON s.id = c.scene_id AND s.deleted_at IS NULL
  LEFT JOIN (
        SELECT scene_id, count(*)::int AS ct,
               avg(trust_weight * CASE role WHEN 'owner' THEN 1.0::float8 WHEN 'curator' THEN 0.8 WHEN 'member' THEN 0.5 WHEN 'guest' THEN 0.3 ELSE 0.5 END) AS mean
          FROM memberships
         WHERE status = 'active'
         GROUP BY scene_id) AS m ON m.scene_id = c.scene_id
  LEFT JOIN (
        SELECT from_scene_id, count(*)::int AS ct, avg(weight) AS factor
          FROM alliances a
         WHERE status = 'active' AND deleted_at IS NULL
           AND NOT EXISTS (SELECT FROM scenes s WHERE s.id = a.to_scene_id AND (s.deleted_at IS NOT NULL OR s.moderation_status IN ('hidden', 'suspended')))
         GROUP BY from_scene_id) AS a ON a.from_scene_id = c.scene_id
  LEFT JOIN trust_scores t ON t.scene_id = c.scene_id
 WHERE t.scene_id IS NULL
    OR (t.score, t.alliance_factor, t.membership_mean, t.memberships, t.alliances)
       IS DISTINCT FROM (coalesce(a.factor, 1) * coalesce(m.mean, 0), coalesce(a.factor, 1), coalesce(m.mean, 0), coalesce(m.ct, 0), coalesce(a.ct, 0));
