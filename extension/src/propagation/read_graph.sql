-- One statement, so that both tables are read as of one moment; scenes come first.
SELECT id, NULL::uuid, NULL::float8
  FROM scenes
 WHERE deleted_at IS NULL AND moderation_status NOT IN ('hidden', 'suspended')
UNION ALL
SELECT from_scene_id, to_scene_id, weight
  FROM alliances
 WHERE status = 'active' AND deleted_at IS NULL
