SELECT ctid, scene_id
  FROM trust_dirty
 WHERE scene_id = ANY ($1)
   AND generation <> ALL ($2)
   FOR UPDATE SKIP LOCKED
