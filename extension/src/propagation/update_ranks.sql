UPDATE trust_ranks t
   SET rank = n.rank, computed_at = clock_timestamp()
  FROM (SELECT unnest($1::uuid[]) AS scene_id, unnest($2::float8[]) AS rank, unnest($3::tid[]) AS place OFFSET 0) AS n
 WHERE t.ctid = n.place AND t.scene_id = n.scene_id
