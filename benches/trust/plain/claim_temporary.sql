CREATE TEMPORARY TABLE claimed ON COMMIT DROP AS
SELECT ctid AS place, scene_id
  FROM trust_dirty
 WHERE quarantined_at IS NULL AND retry_at <= now()
 ORDER BY generation
   FOR UPDATE SKIP LOCKED;

ANALYZE claimed;
