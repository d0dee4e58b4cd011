-- Health of the workers.

CREATE OR REPLACE VIEW vw_worker_health AS
SELECT worker_id, host, pid, version, state, started_at, beat_at,
       extract(epoch FROM now() - beat_at)::double precision AS beat_age_sec, waiting, leased, events_done, last_error,
       state <> 'stopped' AND beat_at >= now() - interval '1 minute' AS alive
  FROM worker_heartbeats;
COMMENT ON VIEW vw_worker_health IS 'A row per worker of the last day. alive: it has not stopped and gave a sign of life within a minute.';
COMMENT ON COLUMN vw_worker_health.beat_age_sec IS 'Seconds since the last sign of life';
COMMENT ON COLUMN vw_worker_health.alive IS 'True while the worker runs or drains';

CREATE OR REPLACE VIEW health_worker (check_name, level, subject, value, threshold, detail, hint) AS
SELECT 'worker.alive', CASE WHEN count(*) FILTER (WHERE alive) > 0 THEN 'ok' ELSE 'warn' END, 'workers',
       count(*) FILTER (WHERE alive)::double precision, 1::double precision, format('%s workers alive', count(*) FILTER (WHERE alive)),
       CASE WHEN count(*) FILTER (WHERE alive) = 0 THEN 'Start one: pgsteward run' END
  FROM vw_worker_health
UNION ALL
SELECT 'worker.silent', CASE WHEN (SELECT bool_or(alive) FROM vw_worker_health) THEN 'warn' ELSE 'error' END, worker_id, round(beat_age_sec::numeric, 1)::double precision, 60, format('on %s, pid %s, last error: %s', host, pid, coalesce(last_error, 'none')),
       'It died or hangs; its leases expire by themselves. Restart it. This row goes a day after its last sign of life.'
  FROM vw_worker_health WHERE NOT alive AND state <> 'stopped';
COMMENT ON VIEW health_worker IS 'The checks of the workers, for steward_health';
