DELETE FROM trust_dirty WHERE ctid = ANY (ARRAY(SELECT place FROM claimed));
