INSERT INTO trust_dirty (scene_id, generation, marked_at, recount, alliances_changed, members_change, points_change, attempts, last_error, standing_changed)
SELECT unnest($1::uuid[]), unnest($2::bigint[]), unnest($3::timestamptz[]), unnest($4::boolean[]), unnest($5::boolean[]), unnest($6::int[]),
       unnest($7::bigint[]), unnest($8::int[]), unnest($9::text[]), unnest($10::boolean[])
