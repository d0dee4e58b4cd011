SELECT scene_id, score, alliance_factor, membership_mean, memberships, alliances, membership_points, ctid
  FROM trust_scores
 WHERE scene_id = ANY ($1)
