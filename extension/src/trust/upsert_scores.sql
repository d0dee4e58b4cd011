INSERT INTO trust_scores AS t (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at)
SELECT unnest($1::uuid[]), unnest($2::float8[]), unnest($3::float8[]), unnest($4::float8[]), unnest($5::int[]), unnest($6::int[]),
       clock_timestamp()
    ON CONFLICT (scene_id) DO UPDATE
   SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
       memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at
