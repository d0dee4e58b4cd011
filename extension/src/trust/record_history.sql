INSERT INTO trust_score_history (scene_id, score, alliance_factor, membership_mean, memberships, alliances, changed_at)
SELECT unnest($1::uuid[]), unnest($2::float8[]), unnest($3::float8[]), unnest($4::float8[]), unnest($5::int[]), unnest($6::int[]), $7
