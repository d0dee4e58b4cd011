-- The ten most or least trusted people among those with enough ratings. Variables: direction (asc or desc), least.

SELECT row_number() OVER (ORDER BY t.score :direction, p.id) AS "#",
       s.name AS scene, round(t.score::numeric, 3) AS score, round(t.alliance_factor::numeric, 3) AS "alliance factor",
       round(t.membership_mean::numeric, 3) AS "membership mean", t.memberships, t.alliances,
       r.positive AS "rated up", r.negative AS "rated down", round(r.mean, 1) AS "mean rating"
  FROM trust_scores t
  JOIN scenes s ON s.id = t.scene_id
  JOIN otc.people p ON p.scene_id = t.scene_id
  JOIN (SELECT ratee, count(*) FILTER (WHERE rating > 0) AS positive, count(*) FILTER (WHERE rating < 0) AS negative, avg(rating) AS mean
          FROM otc.ratings GROUP BY ratee HAVING count(*) >= :least) AS r ON r.ratee = p.id
 ORDER BY t.score :direction, p.id
 LIMIT 10
