INSERT INTO scenes (id, name, owner_did)
SELECT md5(i::text)::uuid, 'scene ' || i, 'did:' || i
  FROM generate_series(1, :scenes) AS i;

-- Whom a scene vouches for is random, and some are vouched for far more often than others. One scene in twenty vouches for nobody.
SELECT setseed(0.42);
INSERT INTO alliances (from_scene_id, to_scene_id, weight)
SELECT md5(i::text)::uuid, md5(j::text)::uuid, (1 + (i + j) % 100) / 100.0
  FROM (SELECT i, 1 + floor(:scenes * random() ^ 3)::bigint AS j
          FROM generate_series(1, :scenes) AS i, generate_series(1, :degree) AS k
         WHERE i % 20 <> 0) AS pairs
 WHERE i <> j
 GROUP BY i, j
