-- A scene has one mark but for changes while it is recomputed: telling scenes apart is not worth sorting a large backlog.
SELECT CASE WHEN count(*) <= 10000 THEN (SELECT count(DISTINCT scene_id) FROM trust_dirty) ELSE count(*) END
  FROM trust_dirty
