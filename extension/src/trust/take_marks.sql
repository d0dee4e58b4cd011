DELETE FROM trust_dirty
 WHERE ctid = ANY (ARRAY(SELECT ctid FROM trust_dirty WHERE ctid = ANY ($1) FOR UPDATE SKIP LOCKED))
RETURNING generation
