-- Health of the workers.

CREATE OR REPLACE VIEW vw_worker_health AS
SELECT worker_id, host, pid, version, state, started_at, beat_at,
       extract(epoch FROM now() - beat_at)::double precision AS beat_age_sec, waiting, leased, events_done, last_error,
       state <> 'stopped' AND beat_at >= now() - interval '1 minute' AS alive,
       pool_in_use, pool_idle, pool_waiting, pool_max, trust_timeout_sec, trust_callers, trust_stop, trust_stopped_at
  FROM worker_heartbeats;
COMMENT ON VIEW vw_worker_health IS 'A row per worker of the last day. alive: it has not stopped and gave a sign of life within a minute.';
COMMENT ON COLUMN vw_worker_health.beat_age_sec IS 'Seconds since the last sign of life';
COMMENT ON COLUMN vw_worker_health.pool_waiting IS 'Tasks that waited for one of its pool_max connections at that sign of life';
COMMENT ON COLUMN vw_worker_health.trust_stop IS 'Why a recompute of it stopped before its end last, and trust_stopped_at when';
COMMENT ON COLUMN vw_worker_health.alive IS 'True while the worker runs or drains';

CREATE OR REPLACE VIEW health_worker (check_name, level, subject, value, threshold, detail, hint) AS
SELECT 'worker.alive', CASE WHEN count(*) FILTER (WHERE alive) > 0 THEN 'ok' ELSE 'warn' END, 'workers',
       count(*) FILTER (WHERE alive)::double precision, 1::double precision, format('%s workers alive', count(*) FILTER (WHERE alive))
           || CASE WHEN bool_or(alive) IS FALSE
                   THEN (SELECT format('; the last, %s, was %s %s s ago%s%s', l.worker_id, l.state, round(l.beat_age_sec), ', trust recompute stopped: ' || l.trust_stop, ', last error: ' || l.last_error)
                           FROM vw_worker_health l ORDER BY l.beat_at DESC LIMIT 1)
                   ELSE '' END,
       CASE WHEN count(*) FILTER (WHERE alive) = 0 THEN 'Start one: pgsteward run' || CASE WHEN count(*) > 0 THEN '; if it does not start, its log says why at level ERROR' ELSE '' END END
  FROM vw_worker_health
UNION ALL
SELECT 'worker.pool', CASE WHEN pool_waiting > 0 THEN 'warn' ELSE 'ok' END, worker_id, pool_waiting, NULL,
       format('%s of %s connections in use, %s idle, %s tasks wait for one', pool_in_use, pool_max, pool_idle, pool_waiting),
       CASE WHEN pool_waiting > 0 THEN 'Raise pool_size of this worker, or lower trust_recompute_concurrency and queue_concurrency.' END
  FROM vw_worker_health WHERE alive AND pool_max IS NOT NULL
UNION ALL
SELECT 'worker.silent', CASE WHEN (SELECT bool_or(alive) FROM vw_worker_health) THEN 'warn' ELSE 'error' END, worker_id, round(beat_age_sec::numeric, 1)::double precision, 60, format('on %s, pid %s, last error: %s', host, pid, coalesce(last_error, 'none')),
       'It died or hangs; its leases expire by themselves. Restart it. This row goes a day after its last sign of life.'
  FROM vw_worker_health WHERE NOT alive AND state <> 'stopped';
COMMENT ON VIEW health_worker IS 'The checks of the workers, for steward_health';
