-- Health of the trust scores.

CREATE OR REPLACE VIEW vw_trust_health AS
SELECT d.dirty_scenes, d.oldest_dirty_age_sec, d.retrying, d.quarantined, (SELECT count(*) FROM trust_scores) AS scored_scenes,
       r.started_at AS last_run_at, r.duration_ms AS last_run_duration_ms, r.processed AS last_run_processed,
       r.failed AS last_run_failed, r.timed_out AS last_run_timed_out, r.avg_weight_variance AS last_run_avg_weight_variance
  FROM (SELECT CASE WHEN count(*) <= 10000 THEN (SELECT count(DISTINCT scene_id) FROM trust_dirty) ELSE count(*) END AS dirty_scenes,
               coalesce(extract(epoch FROM clock_timestamp() - min(marked_at) FILTER (WHERE quarantined_at IS NULL)), 0)::double precision AS oldest_dirty_age_sec,
               count(DISTINCT scene_id) FILTER (WHERE attempts > 0 AND quarantined_at IS NULL) AS retrying,
               count(DISTINCT scene_id) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined
          FROM trust_dirty) d
  LEFT JOIN (SELECT * FROM trust_recompute_runs ORDER BY started_at DESC LIMIT 1) r ON true;
COMMENT ON VIEW vw_trust_health IS 'One row: the backlog of dirty scenes and the last recompute. Idle is not stale: with no dirty scenes every age is 0.';
COMMENT ON COLUMN vw_trust_health.dirty_scenes IS 'Scenes whose score waits to be recomputed; beyond 10000 their marks, of which a scene may have several';
COMMENT ON COLUMN vw_trust_health.oldest_dirty_age_sec IS 'How long the oldest of them has waited, in seconds; quarantined ones do not count';
COMMENT ON COLUMN vw_trust_health.retrying IS 'Scenes that failed and will be tried again';
COMMENT ON COLUMN vw_trust_health.quarantined IS 'Scenes that failed too often; trust_mark_dirty() gives them another try';
COMMENT ON COLUMN vw_trust_health.scored_scenes IS 'Scenes with a stored score';
COMMENT ON COLUMN vw_trust_health.last_run_at IS 'When trust_recompute() last had something to do';

CREATE OR REPLACE VIEW vw_trust_metrics AS
WITH tally AS MATERIALIZED (
    SELECT coalesce(sum(runs), 0) AS runs, coalesce(sum(failed_runs), 0) AS failed_runs, coalesce(sum(errors), 0) AS errors,
           coalesce(sum(scenes), 0) AS scenes, coalesce(sum(failed_scenes), 0) AS failed_scenes,
           coalesce(sum(up_to_100ms), 0) AS up_to_100ms, coalesce(sum(up_to_250ms), 0) AS up_to_250ms, coalesce(sum(up_to_500ms), 0) AS up_to_500ms,
           coalesce(sum(up_to_1s), 0) AS up_to_1s, coalesce(sum(up_to_2s), 0) AS up_to_2s, coalesce(sum(up_to_5s), 0) AS up_to_5s,
           coalesce(sum(up_to_10s), 0) AS up_to_10s, coalesce(sum(timed), 0) AS timed, coalesce(sum(seconds), 0) AS seconds,
           coalesce(extract(epoch FROM max(succeeded_at)), 0) AS succeeded
      FROM trust_tally
), last_run AS MATERIALIZED (
    SELECT processed, avg_weight_variance FROM trust_recompute_runs WHERE error IS NULL ORDER BY id DESC LIMIT 1
), backlog AS MATERIALIZED (
    -- A scene has one mark but for changes while it is recomputed: telling them apart is not worth sorting a large backlog at each scrape.
    SELECT CASE WHEN count(*) <= 10000 THEN (SELECT count(DISTINCT scene_id) FROM trust_dirty) ELSE count(*) END AS dirty,
           count(*) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined,
           coalesce(extract(epoch FROM clock_timestamp() - min(marked_at) FILTER (WHERE quarantined_at IS NULL)), 0) AS oldest
      FROM trust_dirty
)
SELECT m.metric, m.kind, m.le, m.value::double precision AS value, m.help
  FROM tally t CROSS JOIN backlog b LEFT JOIN last_run l ON true
 CROSS JOIN LATERAL (VALUES
    ('trust_recompute_total', 'counter', NULL, t.runs, 'Recompute cycles that had something to do and completed'),
    ('trust_recompute_errors_total', 'counter', NULL, t.errors, 'Scenes that failed, and cycles that timed out or failed as a whole'),
    ('trust_recompute_cycles_failed_total', 'counter', NULL, t.failed_runs, 'Cycles that timed out, failed as a whole, or in which every scene failed'),
    ('trust_recompute_scenes_total', 'counter', NULL, t.scenes, 'Scenes attempted'),
    ('trust_recompute_scenes_failed_total', 'counter', NULL, t.failed_scenes, 'Scenes that failed'),
    ('trust_recompute_duration_seconds', 'histogram', '0.1', t.up_to_100ms, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '0.25', t.up_to_250ms, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '0.5', t.up_to_500ms, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '1', t.up_to_1s, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '2', t.up_to_2s, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '5', t.up_to_5s, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '10', t.up_to_10s, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', '+Inf', t.timed, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', 'sum', t.seconds, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_recompute_duration_seconds', 'histogram', 'count', t.timed, 'Duration of recompute cycles in seconds, those that timed out as well'),
    ('trust_last_recompute_timestamp', 'gauge', NULL, t.succeeded, 'Unix time of the last recompute that succeeded, an idle one as well; 0 before the first'),
    ('trust_last_recompute_scene_count', 'gauge', NULL, coalesce(l.processed, 0), 'Scenes processed by the last recompute that had something to do'),
    ('trust_avg_weight_variance', 'gauge', NULL, coalesce(l.avg_weight_variance, 0), 'Mean absolute change of the score in that recompute'),
    ('trust_dirty_scenes', 'gauge', NULL, b.dirty, 'Scenes whose score waits to be recomputed'),
    ('trust_oldest_dirty_age_seconds', 'gauge', NULL, b.oldest, 'How long the oldest of them has waited; quarantined ones do not count'),
    ('trust_quarantined_scenes', 'gauge', NULL, b.quarantined, 'Scenes that failed too often'),
    ('trust_scenes', 'gauge', NULL, (SELECT count(*) FROM scenes WHERE deleted_at IS NULL), 'Scenes that are not deleted')
 ) AS m (metric, kind, le, value, help);
COMMENT ON VIEW vw_trust_metrics IS
    'The metrics of trust as the worker serves them at /metrics, whoever ran the recomputes. Counters count from the beginning and never go back; nothing here reads old runs.';
COMMENT ON COLUMN vw_trust_metrics.metric IS 'Name of the Prometheus family';
COMMENT ON COLUMN vw_trust_metrics.kind IS 'counter, gauge or histogram';
COMMENT ON COLUMN vw_trust_metrics.le IS 'Of a histogram: the upper bound of the bucket, whose value counts all that is not above it; or sum or count';
COMMENT ON COLUMN vw_trust_metrics.value IS 'The value';
COMMENT ON COLUMN vw_trust_metrics.help IS 'What it says';

CREATE OR REPLACE VIEW vw_trust_slo AS
WITH recent AS MATERIALIZED (
    -- A few scenes in a moment say nothing about the pace: starting takes as long as they do.
    SELECT duration_ms / 1000 AS seconds, processed, failed, timed_out OR error IS NOT NULL AS broke_off,
           processed + failed >= 100 OR (processed + failed > 0 AND duration_ms >= 1000) AS paced
      FROM trust_recompute_runs WHERE started_at > now() - interval '1 day' ORDER BY started_at DESC LIMIT 10000
), figures AS (
    SELECT count(*) AS runs, percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS p95, percentile_cont(0.99) WITHIN GROUP (ORDER BY seconds) AS p99,
           sum(failed) + count(*) FILTER (WHERE broke_off) AS errors, sum(processed + failed) + count(*) FILTER (WHERE broke_off) AS attempts,
           sum(processed) FILTER (WHERE paced) AS processed, sum(seconds) FILTER (WHERE paced) AS busy
      FROM recent
), slo AS (
    SELECT s.*, s.current_value IS NOT NULL AND CASE WHEN s.unit = 'scenes/s' THEN s.current_value > s.target ELSE s.current_value < s.target END AS reached,
           s.current_value IS NOT NULL AND CASE WHEN s.unit = 'scenes/s' THEN s.current_value > s.critical_threshold ELSE s.current_value < s.critical_threshold END AS bearable
      FROM figures f CROSS JOIN LATERAL (VALUES
        ('p95_duration', 2::double precision, f.p95, 5::double precision, 'seconds', format('of %s cycles', f.runs)),
        ('p99_duration', 5, f.p99, 10, 'seconds', format('of %s cycles', f.runs)),
        ('error_rate', 0.001, (f.errors / nullif(f.attempts, 0))::double precision, 0.01, 'ratio',
            format('%s errors in %s attempts', coalesce(f.errors, 0), coalesce(f.attempts, 0))),
        ('throughput', 100, f.processed::double precision / nullif(f.busy, 0), 50, 'scenes/s',
            format('%s scenes in %s s of work', coalesce(f.processed, 0), coalesce(round(f.busy::numeric, 3), 0)))
      ) AS s (metric, target, current_value, critical_threshold, unit, detail)
)
SELECT metric, target, current_value, critical_threshold,
       CASE WHEN current_value IS NULL THEN 'no data' WHEN reached THEN 'ok' WHEN bearable THEN 'warning' ELSE 'critical' END AS verdict, unit, detail
  FROM slo;
COMMENT ON VIEW vw_trust_slo IS
    'Service levels of the recompute, over the runs of the last day, the last 10000 at most. Targets of duration are meant for fewer than 10000 scenes.';
COMMENT ON COLUMN vw_trust_slo.metric IS 'p95_duration, p99_duration, error_rate or throughput';
COMMENT ON COLUMN vw_trust_slo.target IS 'Better than this is ok: below it, for throughput above it';
COMMENT ON COLUMN vw_trust_slo.current_value IS 'What was measured; NULL without runs';
COMMENT ON COLUMN vw_trust_slo.critical_threshold IS 'Not better than this is critical';
COMMENT ON COLUMN vw_trust_slo.verdict IS 'ok, warning, critical or no data';
COMMENT ON COLUMN vw_trust_slo.unit IS 'seconds, ratio or scenes/s';
COMMENT ON COLUMN vw_trust_slo.detail IS 'What it is made of';

CREATE OR REPLACE VIEW vw_trust_timeouts AS
SELECT c.cycles, c.timed_out, c.timed_out::double precision / nullif(c.cycles, 0) AS share,
       CASE WHEN c.cycles = 0 THEN 'no data' WHEN c.timed_out = 0 THEN 'none' WHEN 2 * c.timed_out >= c.cycles THEN 'consistent' ELSE 'sporadic' END AS verdict,
       CASE WHEN c.timed_out = 0 THEN NULL
            WHEN 2 * c.timed_out >= c.cycles THEN 'Raise TRUST_RECOMPUTE_TIMEOUT_SEC or pgsteward.trust_recompute_timeout, or share the work among more callers.'
            ELSE 'Look for slow statements: EXPLAIN (ANALYZE, BUFFERS) those of the recompute, and see who holds locks meanwhile.' END AS advice
  FROM (SELECT count(*) AS cycles, count(*) FILTER (WHERE r.timed_out) AS timed_out
          FROM (SELECT timed_out FROM trust_recompute_runs WHERE started_at > now() - interval '1 day' ORDER BY started_at DESC LIMIT 50) r) c;
COMMENT ON VIEW vw_trust_timeouts IS 'One row: whether recomputes time out now and then or most of the time, over the last 50 cycles of the last day.';
COMMENT ON COLUMN vw_trust_timeouts.cycles IS 'Cycles that had something to do';
COMMENT ON COLUMN vw_trust_timeouts.timed_out IS 'Those of them that timed out';
COMMENT ON COLUMN vw_trust_timeouts.share IS 'Their share, 0 to 1';
COMMENT ON COLUMN vw_trust_timeouts.verdict IS 'consistent (half of them or more), sporadic, none, or no data';
COMMENT ON COLUMN vw_trust_timeouts.advice IS 'What to do';

CREATE OR REPLACE VIEW trust_size AS
SELECT (SELECT count(*) FROM scenes WHERE deleted_at IS NULL) AS scenes, count(*) AS workers, coalesce(sum(trust_callers), 0) AS callers,
       coalesce(min(w.trust_timeout_sec), trust_timeout_sec()) AS timeout_sec
  FROM worker_heartbeats w WHERE w.state <> 'stopped' AND w.beat_at >= now() - interval '1 minute' AND w.trust_callers > 0;
COMMENT ON VIEW trust_size IS 'One row: how many scenes there are, and what the living workers do for them. The timeout is the shortest of theirs; without a worker, the setting of this session.';
COMMENT ON COLUMN trust_size.scenes IS 'Scenes that are not deleted';
COMMENT ON COLUMN trust_size.workers IS 'Workers alive';
COMMENT ON COLUMN trust_size.callers IS 'Recomputes that they run at the same time, at most';
COMMENT ON COLUMN trust_size.timeout_sec IS 'Seconds that a recompute may take';

CREATE OR REPLACE VIEW health_trust (check_name, level, subject, value, threshold, detail, hint) AS
WITH health AS MATERIALIZED (
    SELECT * FROM vw_trust_health
), size AS MATERIALIZED (
    SELECT * FROM trust_size
)
SELECT 'trust.backlog', CASE WHEN oldest_dirty_age_sec > 300 THEN 'error' WHEN oldest_dirty_age_sec > 120 THEN 'warn' ELSE 'ok' END,
       'trust_dirty', round(oldest_dirty_age_sec::numeric, 1)::double precision, 300::double precision,
       format('%s scenes are dirty', dirty_scenes),
       CASE WHEN oldest_dirty_age_sec > 120 THEN 'Is a worker running? SELECT * FROM vw_worker_health; or by hand: SELECT * FROM trust_recompute();' END
  FROM health
UNION ALL
SELECT 'trust.quarantined', CASE WHEN quarantined > 0 THEN 'warn' ELSE 'ok' END, 'trust_dirty', quarantined, 0,
       format('%s scenes failed too often', quarantined),
       CASE WHEN quarantined > 0 THEN 'SELECT scene_id, last_error FROM trust_dirty WHERE quarantined_at IS NOT NULL; then trust_mark_dirty(ids).' END
  FROM health
UNION ALL
SELECT 'trust.timeout', CASE WHEN last_run_timed_out THEN 'warn' ELSE 'ok' END, 'trust_recompute_runs', coalesce(last_run_duration_ms, 0), NULL,
       CASE WHEN last_run_at IS NULL THEN 'no run yet' ELSE format('the last run had %s scenes', last_run_processed) END,
       CASE WHEN last_run_timed_out THEN 'Now and then, or most of the time? SELECT * FROM vw_trust_timeouts;' END
  FROM health
UNION ALL
SELECT 'trust.slo', CASE verdict WHEN 'critical' THEN 'error' WHEN 'warning' THEN 'warn' ELSE 'ok' END, metric, current_value, critical_threshold,
       format('%s, %s', verdict, detail),
       CASE WHEN verdict IN ('warning', 'critical') THEN 'SELECT * FROM vw_trust_slo; SELECT * FROM trust_recompute_runs ORDER BY started_at DESC LIMIT 20;' END
  FROM vw_trust_slo
UNION ALL
SELECT 'trust.scenes', 'ok', 'scenes', g.scenes, g.next_step, format('%s scenes%s', g.scenes, ', the ' || g.step || ' step is reached'), NULL
  FROM (SELECT f.scenes, CASE WHEN f.scenes >= 100000 THEN '100k' WHEN f.scenes >= 50000 THEN '50k' WHEN f.scenes >= 10000 THEN '10k' END AS step,
               CASE WHEN f.scenes < 10000 THEN 10000 WHEN f.scenes < 50000 THEN 50000 WHEN f.scenes < 100000 THEN 100000 END AS next_step
          FROM size f) g
UNION ALL
SELECT 'trust.scaling', 'warn', a.step, f.scenes, a.least, a.detail, a.advice
  FROM size f CROSS JOIN LATERAL (VALUES
    ('10k', 10000, f.timeout_sec >= 60, format('10k+ scenes, and a recompute may take %s s', f.timeout_sec),
        'Set TRUST_RECOMPUTE_TIMEOUT_SEC=60 for the workers, or pgsteward.trust_recompute_timeout = ''60 s''; review the indexes: SELECT * FROM steward_schema_validate();'),
    ('50k', 50000, f.callers >= 2, format('50k+ scenes, and %s recomputes at a time', f.callers),
        'Share the batches among several callers: trust_recompute_concurrency, or more workers; by geography with trust_region.'),
    ('100k', 100000, f.workers >= 2, format('100k+ scenes, and %s workers', f.workers),
        'Run several workers, on more than one machine: they share the dirty scenes without a queue beside the database.')
  ) AS a (step, least, followed, detail, advice)
 WHERE f.scenes >= a.least AND NOT a.followed;
COMMENT ON VIEW health_trust IS 'The checks of the trust scores, for steward_health';
