SELECT ctid, scene_id, generation, marked_at, recount, alliances_changed, members_change, points_change, attempts, last_error, standing_changed
  FROM trust_dirty
 WHERE scene_id = ANY ($1)
