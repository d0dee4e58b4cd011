-- Some versions do not look at the place again after waiting for somebody; so the sums that were read are compared too.
UPDATE trust_scores t
   SET score = n.score, alliance_factor = n.alliance_factor, membership_mean = n.membership_mean,
       memberships = n.memberships, alliances = n.alliances, computed_at = $7, membership_points = n.membership_points
  FROM (SELECT unnest($1::uuid[]) AS scene_id, unnest($2::float8[]) AS score, unnest($3::float8[]) AS alliance_factor,
               unnest($4::float8[]) AS membership_mean, unnest($5::int[]) AS memberships, unnest($6::int[]) AS alliances,
               unnest($8::bigint[]) AS membership_points, unnest($9::tid[]) AS place, unnest($10::bigint[]) AS old_points,
               unnest($11::float8[]) AS old_factor OFFSET 0) AS n
 WHERE t.ctid = n.place AND t.scene_id = n.scene_id AND t.membership_points IS NOT DISTINCT FROM n.old_points
   AND t.alliance_factor IS NOT DISTINCT FROM n.old_factor
RETURNING t.scene_id
