SELECT scene_id, role::text, trust_weight
  FROM memberships
 WHERE scene_id = ANY ($1) AND status = 'active'
