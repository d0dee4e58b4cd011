INSERT INTO trust_scores AS t (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at, membership_points)
SELECT unnest($1::uuid[]), unnest($2::float8[]), unnest($3::float8[]), unnest($4::float8[]), unnest($5::int[]), unnest($6::int[]), $7, unnest($8::bigint[])
    ON CONFLICT (scene_id) DO UPDATE
   SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
       memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at,
       membership_points = excluded.membership_points
