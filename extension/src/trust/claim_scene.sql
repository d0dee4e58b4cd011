SELECT ctid, scene_id, generation, marked_at, recount, alliances_changed, members_change, points_change, attempts, last_error, standing_changed
  FROM trust_dirty
 WHERE scene_id = $1 AND quarantined_at IS NULL AND retry_at <= clock_timestamp()
