-- Reading the ranks of transitive trust. The propagation itself is in the extension.

CREATE OR REPLACE FUNCTION trust_rank(scene_id uuid)
RETURNS TABLE (scene uuid, rank double precision, percentile double precision, times_average double precision, scenes bigint,
               converged boolean, computed_at timestamptz, propagated_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_argument(trust_rank.scene_id, 'scene_id');
    IF NOT EXISTS (SELECT FROM scenes s WHERE s.id = trust_rank.scene_id AND s.deleted_at IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('scene %s does not exist', trust_rank.scene_id),
            HINT = 'SELECT id, name FROM scenes WHERE deleted_at IS NULL lists the scenes.';
    END IF;
    RETURN QUERY
    SELECT trust_rank.scene_id, t.rank,
           width_bucket(t.rank, r.quantiles)::double precision / nullif(cardinality(r.quantiles), 0),
           t.rank * r.scenes, r.scenes, r.converged, t.computed_at, r.started_at
      FROM (VALUES (1)) AS one
      LEFT JOIN trust_ranks t ON t.scene_id = trust_rank.scene_id
      LEFT JOIN (SELECT * FROM trust_propagation_runs WHERE quantiles IS NOT NULL ORDER BY started_at DESC LIMIT 1) r ON true;
END $$;
COMMENT ON FUNCTION trust_rank(uuid) IS
    'The rank of a scene by transitive trust (its part of all trust), its percentile (the part of all ranked scenes that are not above it, 0 to 1), how many times the average it is, and the run that stored it. rank is NULL while no propagation has seen the scene standing. An unknown or deleted scene is an error (42704).';

CREATE OR REPLACE FUNCTION expire_trust_propagation_runs(most int DEFAULT 10000, keep interval DEFAULT '90 days') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    expired bigint;
BEGIN
    PERFORM require_argument(most, 'most');
    PERFORM require_argument(keep, 'keep');
    PERFORM require_valid(most BETWEEN 1 AND 1000000, format('most %s is out of range', most), 'Expire 1 to 1000000 runs in a call.');
    PERFORM require_valid(keep >= interval '0', format('keep %s is negative', keep), 'Give how long runs are kept, such as ''90 days''.');
    DELETE FROM trust_propagation_runs WHERE id = ANY (ARRAY(
        SELECT r.id FROM trust_propagation_runs r
         WHERE r.started_at < clock_timestamp() - keep
           AND r.started_at < (SELECT max(l.started_at) FROM trust_propagation_runs l WHERE l.quantiles IS NOT NULL)
         ORDER BY r.started_at LIMIT most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS expired = ROW_COUNT;
    RETURN expired;
END $$;
COMMENT ON FUNCTION expire_trust_propagation_runs(int, interval) IS
    'Removes runs of trust_propagate() older than keep, at most so many, and never the last one that stored ranks, which percentiles come from. Returns how many.';
