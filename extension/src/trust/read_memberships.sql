-- Under one snapshot, the memberships and the marks that have come since ours were taken: those will be added later.
SELECT scene_id, role::text, trust_weight, NULL::int, NULL::bigint
  FROM memberships
 WHERE scene_id = ANY ($1) AND status = 'active'
 UNION ALL
SELECT scene_id, NULL, NULL, members_change, points_change
  FROM trust_dirty
 WHERE scene_id = ANY ($1) AND (members_change, points_change) <> (0, 0)
