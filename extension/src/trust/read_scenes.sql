SELECT id
  FROM scenes
 WHERE id = ANY ($1) AND deleted_at IS NULL
