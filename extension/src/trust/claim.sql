SELECT ctid, generation, scene_id
  FROM trust_dirty
 WHERE generation > $1 AND quarantined_at IS NULL AND retry_at <= clock_timestamp() AND ($3 IS NULL OR scene_id = $3)
 ORDER BY generation
 LIMIT $2
   FOR UPDATE SKIP LOCKED
