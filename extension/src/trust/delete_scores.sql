DELETE FROM trust_scores t
 USING (SELECT unnest($1::uuid[]) AS scene_id, unnest($2::tid[]) AS place OFFSET 0) AS n
 WHERE t.ctid = n.place AND t.scene_id = n.scene_id
RETURNING t.scene_id
