INSERT INTO trust_ranks AS t (scene_id, rank, computed_at)
SELECT unnest($1::uuid[]), unnest($2::float8[]), clock_timestamp()
    ON CONFLICT (scene_id) DO UPDATE SET rank = excluded.rank, computed_at = excluded.computed_at
