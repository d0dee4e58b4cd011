INSERT INTO trust_scores AS t (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at)
SELECT n.*, clock_timestamp()
  FROM unnest($1::uuid[], $2::float8[], $3::float8[], $4::float8[], $5::int[], $6::int[]) AS n
    ON CONFLICT (scene_id) DO UPDATE
   SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
       memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at
