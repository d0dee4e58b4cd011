-- Health of the ranks of transitive trust.

CREATE OR REPLACE VIEW health_propagation (check_name, level, subject, value, threshold, detail, hint) AS
SELECT 'trust.propagation', CASE WHEN NOT r.converged OR f.outdated THEN 'warn' ELSE 'ok' END, 'trust_ranks',
       coalesce(round(f.age_sec::numeric, 1)::double precision, 0), NULL::double precision,
       CASE WHEN r.id IS NULL THEN 'not in use: no run yet'
            WHEN r.scenes = 0 AND r.timed_out THEN 'the last run ran out of time while it read the tables'
            WHEN NOT r.converged THEN format('the ranks of %s scenes have not settled: residual %s after %s iterations', r.scenes, coalesce(r.residual::text, 'unknown'), r.iterations)
            WHEN f.outdated THEN format('the ranks of %s scenes are older than a day, and trust has changed since', r.scenes)
            ELSE format('the ranks of %s scenes have settled', r.scenes) END,
       CASE WHEN NOT r.converged THEN 'SELECT * FROM trust_propagate(timeout => ''1 min''); goes on from what is stored.'
            WHEN f.outdated THEN 'SELECT * FROM trust_propagate(); and schedule it, as docs/propagation.md shows.' END
  FROM (VALUES (1)) AS one
  LEFT JOIN (SELECT * FROM trust_propagation_runs ORDER BY started_at DESC LIMIT 1) r ON true
 CROSS JOIN LATERAL (
    SELECT extract(epoch FROM clock_timestamp() - r.started_at) AS age_sec,
           coalesce(r.started_at < clock_timestamp() - interval '1 day'
                    AND EXISTS (SELECT FROM trust_recompute_runs c WHERE c.started_at > r.started_at AND c.changed > 0), false) AS outdated) AS f;
COMMENT ON VIEW health_propagation IS 'The check of the ranks of transitive trust, for steward_health';
