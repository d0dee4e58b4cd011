SELECT scene_id, count(*)::int
  FROM trust_dirty
 WHERE scene_id = ANY ($1)
 GROUP BY scene_id
HAVING count(*) > 1
