UPDATE trust_dirty
   SET attempts = attempts + 1,
       last_error = left($2, 2000),
       retry_at = clock_timestamp() + queue_retry_delay(attempts + 1, random()),
       quarantined_at = CASE WHEN attempts + 1 >= $3 THEN clock_timestamp() END
 WHERE generation = $1
