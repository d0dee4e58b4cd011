-- In the order of the key, so that two sessions that insert the same scenes never wait for each other in a ring.
INSERT INTO trust_scores (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at, membership_points)
SELECT n.*
  FROM (SELECT unnest($1::uuid[]) AS scene_id, unnest($2::float8[]), unnest($3::float8[]), unnest($4::float8[]), unnest($5::int[]), unnest($6::int[]), $7,
               unnest($8::bigint[])) AS n
 ORDER BY n.scene_id
    ON CONFLICT DO NOTHING
RETURNING scene_id
