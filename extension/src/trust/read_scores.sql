SELECT scene_id, score, alliance_factor, membership_mean, memberships, alliances, ctid
  FROM trust_scores
 WHERE scene_id = ANY ($1)
