UPDATE trust_scores t
   SET score = n.score, alliance_factor = n.alliance_factor, membership_mean = n.membership_mean,
       memberships = n.memberships, alliances = n.alliances, computed_at = clock_timestamp()
  FROM unnest($1::uuid[], $2::float8[], $3::float8[], $4::float8[], $5::int[], $6::int[])
       AS n(scene_id, score, alliance_factor, membership_mean, memberships, alliances)
 WHERE t.ctid = ANY ($7) AND t.scene_id = n.scene_id
