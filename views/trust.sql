-- Health of the trust scores.

CREATE OR REPLACE VIEW vw_trust_health AS
SELECT d.dirty_scenes, d.oldest_dirty_age_sec, d.retrying, d.quarantined, (SELECT count(*) FROM trust_scores) AS scored_scenes,
       r.started_at AS last_run_at, r.duration_ms AS last_run_duration_ms, r.processed AS last_run_processed,
       r.failed AS last_run_failed, r.timed_out AS last_run_timed_out, r.avg_weight_variance AS last_run_avg_weight_variance
  FROM (SELECT count(DISTINCT scene_id) AS dirty_scenes,
               coalesce(extract(epoch FROM clock_timestamp() - min(marked_at) FILTER (WHERE quarantined_at IS NULL)), 0)::double precision AS oldest_dirty_age_sec,
               count(DISTINCT scene_id) FILTER (WHERE attempts > 0 AND quarantined_at IS NULL) AS retrying,
               count(DISTINCT scene_id) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined
          FROM trust_dirty) d
  LEFT JOIN (SELECT * FROM trust_recompute_runs ORDER BY started_at DESC LIMIT 1) r ON true;
COMMENT ON VIEW vw_trust_health IS 'One row: the backlog of dirty scenes and the last recompute. Idle is not stale: with no dirty scenes every age is 0.';
COMMENT ON COLUMN vw_trust_health.dirty_scenes IS 'Scenes whose score waits to be recomputed';
COMMENT ON COLUMN vw_trust_health.oldest_dirty_age_sec IS 'How long the oldest of them has waited, in seconds; quarantined ones do not count';
COMMENT ON COLUMN vw_trust_health.retrying IS 'Scenes that failed and will be tried again';
COMMENT ON COLUMN vw_trust_health.quarantined IS 'Scenes that failed too often; trust_mark_dirty() gives them another try';
COMMENT ON COLUMN vw_trust_health.scored_scenes IS 'Scenes with a stored score';
COMMENT ON COLUMN vw_trust_health.last_run_at IS 'When trust_recompute() last had something to do';

CREATE OR REPLACE VIEW health_trust (check_name, level, subject, value, threshold, detail, hint) AS
SELECT 'trust.backlog', CASE WHEN oldest_dirty_age_sec > 300 THEN 'error' WHEN oldest_dirty_age_sec > 120 THEN 'warn' ELSE 'ok' END,
       'trust_dirty', round(oldest_dirty_age_sec::numeric, 1)::double precision, 300::double precision,
       format('%s scenes are dirty', dirty_scenes),
       CASE WHEN oldest_dirty_age_sec > 120 THEN 'Is a worker running? SELECT * FROM vw_worker_health; or by hand: SELECT * FROM trust_recompute();' END
  FROM vw_trust_health
UNION ALL
SELECT 'trust.quarantined', CASE WHEN quarantined > 0 THEN 'warn' ELSE 'ok' END, 'trust_dirty', quarantined, 0,
       format('%s scenes failed too often', quarantined),
       CASE WHEN quarantined > 0 THEN 'SELECT scene_id, last_error FROM trust_dirty WHERE quarantined_at IS NOT NULL; then trust_mark_dirty(ids).' END
  FROM vw_trust_health
UNION ALL
SELECT 'trust.timeout', CASE WHEN last_run_timed_out THEN 'warn' ELSE 'ok' END, 'trust_recompute_runs', coalesce(last_run_duration_ms, 0), NULL,
       CASE WHEN last_run_at IS NULL THEN 'no run yet' ELSE format('the last run had %s scenes', last_run_processed) END,
       CASE WHEN last_run_timed_out THEN 'Raise pgsteward.trust_recompute_timeout, or start more workers.' END
  FROM vw_trust_health;
COMMENT ON VIEW health_trust IS 'The checks of the trust scores, for steward_health';
