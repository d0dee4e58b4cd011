SELECT a.from_scene_id, a.weight
  FROM alliances a
 WHERE a.from_scene_id = ANY ($1) AND a.status = 'active' AND a.deleted_at IS NULL
   AND NOT EXISTS (SELECT FROM scenes s WHERE s.id = a.to_scene_id
                      AND (s.deleted_at IS NOT NULL OR s.moderation_status IN ('hidden', 'suspended')))
