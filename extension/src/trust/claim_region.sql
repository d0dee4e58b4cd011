SELECT ctid, scene_id, generation, marked_at, recount, alliances_changed, members_change, points_change, attempts, last_error, standing_changed
  FROM trust_dirty d
 WHERE generation > $1 AND quarantined_at IS NULL AND retry_at <= clock_timestamp()
   AND ($3 IS NULL OR scene_id >= $3) AND ($4 IS NULL OR scene_id <= $4)
   AND NOT EXISTS (SELECT FROM scenes s WHERE s.id = d.scene_id AND NOT starts_with(s.coarse_geohash, $5))
 ORDER BY generation
 LIMIT $2
