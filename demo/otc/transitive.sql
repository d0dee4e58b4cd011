-- The ten with the highest rank by transitive trust, and where their score would put them.

SELECT row_number() OVER (ORDER BY r.rank DESC, p.id) AS "#",
       s.name AS scene, round(k.times_average::numeric, 1) AS "times average", round(k.percentile::numeric, 3) AS percentile,
       round(t.score::numeric, 3) AS score, t.place AS "# by score", t.alliances, a.allies AS "vouched for by"
  FROM trust_ranks r
 CROSS JOIN LATERAL trust_rank(r.scene_id) k
  JOIN scenes s ON s.id = r.scene_id
  JOIN otc.people p ON p.scene_id = r.scene_id
  JOIN (SELECT scene_id, score, alliances, rank() OVER (ORDER BY score DESC) AS place FROM trust_scores) AS t ON t.scene_id = r.scene_id
  JOIN (SELECT to_scene_id, count(*) AS allies FROM alliances WHERE status = 'active' AND deleted_at IS NULL GROUP BY to_scene_id) AS a ON a.to_scene_id = r.scene_id
 ORDER BY r.rank DESC, p.id
 LIMIT 10
