UPDATE trust_scores t
   SET score = n.score, alliance_factor = n.alliance_factor, membership_mean = n.membership_mean,
       memberships = n.memberships, alliances = n.alliances, computed_at = now()
  FROM computed n
 WHERE n.place IS NOT NULL AND t.scene_id = n.scene_id;

INSERT INTO trust_scores AS t (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at)
SELECT scene_id, score, alliance_factor, membership_mean, memberships, alliances, now()
  FROM computed
 WHERE place IS NULL
    ON CONFLICT (scene_id) DO UPDATE
   SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
       memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at;
