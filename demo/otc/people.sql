-- Everybody in the ratings gets a scene of their own. The triggers on scenes and memberships mark each dirty.

INSERT INTO otc.people (id, standing)
SELECT p.id, count(*) FILTER (WHERE p.rating > 0) - count(*) FILTER (WHERE p.rating < 0)
  FROM (SELECT ratee, rating FROM otc.ratings UNION ALL SELECT rater, NULL FROM otc.ratings) AS p (id, rating)
 GROUP BY p.id;

INSERT INTO scenes (id, owner_did, name, tags)
SELECT scene_id, did, 'Trader ' || id, '{otc}' FROM otc.people ORDER BY id;

INSERT INTO memberships (scene_id, user_did, role, trust_weight, status)
SELECT scene_id, did, 'owner', 0.25, 'active' FROM otc.people ORDER BY id;

ANALYZE otc.ratings, otc.people, scenes, memberships;
