-- Health of events_queue. Ended events are counted by event_tally, so the cost follows the events that are left.

CREATE OR REPLACE VIEW vw_events_queue_health AS
SELECT topic, status, count(*) AS ct,
       percentile_disc(0.95) WITHIN GROUP (ORDER BY
           CASE WHEN (status = 'queued' AND run_at <= now()) OR (status = 'leased' AND lease_expires_at < now())
                THEN extract(epoch FROM now() - run_at)::double precision END) AS p95_age_sec,
       max(updated_at) AS last_activity
  FROM events_queue_live
 GROUP BY topic, status
UNION ALL
SELECT topic, status, sum(ct)::bigint, NULL, max(at)
  FROM event_tally
 GROUP BY topic, status
HAVING sum(ct) > 0;
COMMENT ON VIEW vw_events_queue_health IS
    'A row per topic and status of events_queue. p95_age_sec: how long 95 % of the events that wait for a worker (ready, or with an expired lease) have waited at most, in seconds; NULL where nothing waits, so ended, leased and scheduled events never age.';
COMMENT ON COLUMN vw_events_queue_health.topic IS 'The topic';
COMMENT ON COLUMN vw_events_queue_health.status IS 'queued, leased, done or error';
COMMENT ON COLUMN vw_events_queue_health.ct IS 'Events in that status';
COMMENT ON COLUMN vw_events_queue_health.p95_age_sec IS 'Waiting time that 95 % of the waiting events stay below, in seconds';
COMMENT ON COLUMN vw_events_queue_health.last_activity IS 'When a status changed last';

CREATE OR REPLACE VIEW health_queue (check_name, level, subject, value, threshold, detail, hint) AS
WITH waiting AS (
    SELECT topic, max(p95_age_sec) AS age, sum(ct) AS ct FROM vw_events_queue_health WHERE status IN ('queued', 'leased') GROUP BY topic
), failed AS (
    SELECT topic, sum(ct) AS ct FROM vw_events_queue_health WHERE status = 'error' GROUP BY topic
), stuck AS (
    SELECT count(*) AS ct FROM events_queue_live WHERE status = 'leased' AND lease_expires_at < now()
)
SELECT 'queue.waiting', CASE WHEN age > 300 THEN 'error' WHEN age > 60 THEN 'warn' ELSE 'ok' END, topic,
       coalesce(round(age::numeric, 1), 0)::double precision, 300::double precision,
       format('%s events queued or leased', ct),
       CASE WHEN age > 60 THEN 'Is a worker running? SELECT * FROM vw_worker_health;' END
  FROM waiting
UNION ALL
SELECT 'queue.failed', 'warn', topic, ct, 0, format('%s events ended in error', ct),
       format('SELECT id, last_error FROM events_queue WHERE status = ''error'' AND topic = %L ORDER BY updated_at DESC LIMIT 20; then requeue_events(ids).', topic)
  FROM failed
UNION ALL
SELECT 'queue.expired_leases', CASE WHEN ct > 0 THEN 'warn' ELSE 'ok' END, 'events_queue', ct, 0, format('%s leases have expired', ct),
       CASE WHEN ct > 0 THEN 'The next lease_events() takes them over; if none comes, start a worker.' END
  FROM stuck;
COMMENT ON VIEW health_queue IS 'The checks of events_queue, for steward_health';
