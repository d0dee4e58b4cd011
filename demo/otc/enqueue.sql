-- Ratings arrive as events. The key of an event says which rating it is: sending it again changes nothing.

CREATE FUNCTION otc.enqueue_ratings(first_line int, last_line int) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT count(*)
      FROM (SELECT array_agg(jsonb_build_object('rater', rater, 'ratee', ratee, 'rating', rating, 'rated_at', rated_at) ORDER BY line) AS payloads,
                   array_agg(format('%s rated %s at %s', rater, ratee, unix_time) ORDER BY line) AS keys
              FROM otc.ratings WHERE line BETWEEN first_line AND last_line) AS batch,
           enqueue_events('otc.rating', batch.payloads, batch.keys)
$$;
