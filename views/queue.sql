-- Health of both queues. Ended items are counted by event_tally, so the cost follows the items that are left.

CREATE OR REPLACE VIEW vw_events_queue_health AS
WITH pace AS (
    SELECT topic, sum(ct) / 5.0 AS per_minute FROM event_tally
     WHERE status IN ('done', 'gone') AND ct > 0 AND at > now() - interval '5 minutes' GROUP BY topic
), live AS (
    SELECT topic, status, run_at, attempts, waits, updated_at, status = 'leased' AND lease_expires_at < now() AS stuck,
           CASE WHEN (status = 'queued' AND waits = 0 AND run_at <= now()) OR (status = 'leased' AND lease_expires_at < now())
                THEN greatest(extract(epoch FROM now() - run_at), 0)::double precision END AS age
      FROM events_queue_live
), counted AS (
    SELECT topic, status, count(*) AS ct, percentile_disc(0.95) WITHIN GROUP (ORDER BY age) AS p95_age_sec, max(updated_at) AS last_activity,
           max(age) AS oldest_ready_sec, count(*) FILTER (WHERE stuck) AS stuck_ct, count(*) FILTER (WHERE attempts > 1 OR (attempts = 1 AND status = 'queued')) AS retry_ct,
           count(*) FILTER (WHERE status = 'queued' AND age IS NULL) AS deferred_ct
      FROM live GROUP BY topic, status
    UNION ALL
    SELECT topic, status, sum(ct)::bigint, NULL, max(at), NULL, 0, NULL, 0
      FROM event_tally WHERE topic <> 'marketplace.discovery' AND status IN ('done', 'error') GROUP BY topic, status HAVING sum(ct) > 0
)
SELECT c.topic, c.status, c.ct, c.p95_age_sec, c.last_activity, c.oldest_ready_sec, c.stuck_ct, c.retry_ct, c.deferred_ct,
       round(coalesce(p.per_minute, 0), 1)::double precision AS per_minute,
       CASE WHEN c.status = 'queued' AND p.per_minute > 0 THEN round((c.ct - c.deferred_ct) * 60 / p.per_minute)::double precision END AS drain_sec,
       coalesce(t.state, 'active') AS topic_state
  FROM counted c LEFT JOIN pace p ON p.topic = c.topic LEFT JOIN event_topics t ON t.topic = c.topic;
COMMENT ON VIEW vw_events_queue_health IS
    'A row per topic and status of events_queue. p95_age_sec: how long 95 % of the events that wait for a worker (ready, or with an expired lease) have waited at most, in seconds; NULL where nothing waits, so ended, leased and scheduled events never age.';
COMMENT ON COLUMN vw_events_queue_health.topic IS 'The topic';
COMMENT ON COLUMN vw_events_queue_health.status IS 'queued, leased, done or error';
COMMENT ON COLUMN vw_events_queue_health.ct IS 'Events in that status';
COMMENT ON COLUMN vw_events_queue_health.p95_age_sec IS 'Waiting time that 95 % of the waiting events stay below, in seconds';
COMMENT ON COLUMN vw_events_queue_health.last_activity IS 'When a status changed last';
COMMENT ON COLUMN vw_events_queue_health.oldest_ready_sec IS 'Waiting time of the oldest that waits for a worker, in seconds';
COMMENT ON COLUMN vw_events_queue_health.stuck_ct IS 'Leases that have expired and that nobody has taken over yet';
COMMENT ON COLUMN vw_events_queue_health.retry_ct IS 'Events that were tried before';
COMMENT ON COLUMN vw_events_queue_health.deferred_ct IS 'Queued events that wait for their time, for other events or for their turn';
COMMENT ON COLUMN vw_events_queue_health.per_minute IS 'Events of the topic that were done per minute, over the last five';
COMMENT ON COLUMN vw_events_queue_health.drain_sec IS 'Seconds until those that are ready are done at that pace; NULL without a pace';
COMMENT ON COLUMN vw_events_queue_health.topic_state IS 'active, paused or draining';

CREATE OR REPLACE VIEW vw_discovery_queue_health AS
WITH pace AS (
    SELECT sum(ct) / 5.0 AS per_minute FROM event_tally
     WHERE topic = 'marketplace.discovery' AND status IN ('done', 'gone') AND ct > 0 AND at > now() - interval '5 minutes'
), live AS (
    SELECT status, run_at, attempts, created_at, updated_at, status = 'processing' AND lease_expires_at < now() AS stuck,
           CASE WHEN (status = 'queued' AND run_at <= now()) OR (status = 'processing' AND lease_expires_at < now())
                THEN greatest(extract(epoch FROM now() - run_at), 0)::double precision END AS age
      FROM marketplace_discovery_queue_live
), counted AS (
    SELECT status, count(*) AS ct, count(*) FILTER (WHERE attempts > 3) AS high_retry_ct, min(created_at) FILTER (WHERE status = 'queued') AS oldest_queued,
           max(updated_at) AS last_activity, percentile_disc(0.95) WITHIN GROUP (ORDER BY age) AS p95_age_sec, max(age) AS oldest_ready_sec,
           count(*) FILTER (WHERE stuck) AS stuck_ct, count(*) FILTER (WHERE attempts > 1 OR (attempts = 1 AND status = 'queued')) AS retry_ct,
           count(*) FILTER (WHERE status = 'queued' AND age IS NULL) AS deferred_ct
      FROM live GROUP BY status
    UNION ALL
    SELECT status, sum(ct)::bigint,
           CASE status WHEN 'error' THEN (SELECT count(*) FROM marketplace_discovery_queue_error WHERE attempts > 3) ELSE 0 END, NULL, max(at), NULL, NULL, 0, NULL, 0
      FROM event_tally WHERE topic = 'marketplace.discovery' AND status IN ('done', 'error') GROUP BY status HAVING sum(ct) > 0
)
SELECT c.status, c.ct, c.high_retry_ct, c.oldest_queued, c.last_activity, c.p95_age_sec, c.oldest_ready_sec, c.stuck_ct, c.retry_ct, c.deferred_ct,
       round(coalesce(p.per_minute, 0), 1)::double precision AS per_minute,
       CASE WHEN c.status = 'queued' AND p.per_minute > 0 THEN round((c.ct - c.deferred_ct) * 60 / p.per_minute)::double precision END AS drain_sec,
       (SELECT t.state FROM event_topics t WHERE t.topic = 'marketplace.discovery') AS topic_state
  FROM counted c, pace p;
COMMENT ON VIEW vw_discovery_queue_health IS
    'A row per status of marketplace_discovery_queue. p95_age_sec: how long 95 % of the items that wait for a worker (ready, or with an expired lease) have waited at most, in seconds; NULL where nothing waits.';
COMMENT ON COLUMN vw_discovery_queue_health.status IS 'queued, processing, done or error';
COMMENT ON COLUMN vw_discovery_queue_health.ct IS 'Items in that status';
COMMENT ON COLUMN vw_discovery_queue_health.high_retry_ct IS 'Items with more than three attempts; none of those that are done';
COMMENT ON COLUMN vw_discovery_queue_health.oldest_queued IS 'When the oldest that is queued was enqueued';
COMMENT ON COLUMN vw_discovery_queue_health.last_activity IS 'When a status changed last';
COMMENT ON COLUMN vw_discovery_queue_health.p95_age_sec IS 'Waiting time that 95 % of the waiting items stay below, in seconds';
COMMENT ON COLUMN vw_discovery_queue_health.oldest_ready_sec IS 'Waiting time of the oldest that waits for a worker, in seconds';
COMMENT ON COLUMN vw_discovery_queue_health.stuck_ct IS 'Leases that have expired and that nobody has taken over yet';
COMMENT ON COLUMN vw_discovery_queue_health.retry_ct IS 'Items that were tried before';
COMMENT ON COLUMN vw_discovery_queue_health.deferred_ct IS 'Queued items that wait for their time';
COMMENT ON COLUMN vw_discovery_queue_health.per_minute IS 'Items that were done per minute, over the last five';
COMMENT ON COLUMN vw_discovery_queue_health.drain_sec IS 'Seconds until those that are ready are done at that pace; NULL without a pace';
COMMENT ON COLUMN vw_discovery_queue_health.topic_state IS 'active, paused or draining';

CREATE OR REPLACE VIEW vw_dead_letter_queue AS
SELECT 'events_queue' AS queue, e.id, e.topic, e.payload AS item, e.attempts, e.max_attempts::int AS max_attempts, e.last_error, e.leased_by,
       e.created_at, e.updated_at AS failed_at, (SELECT count(*) FROM event_parents p WHERE p.parent_id = e.id) AS waiting_ct
  FROM events_queue_error e
UNION ALL
SELECT 'marketplace_discovery_queue', d.id, d.topic,
       jsonb_build_object('interest_id', d.interest_id, 'category_id', d.category_id, 'reason', d.reason), d.attempts, d.max_attempts::int, d.last_error, d.leased_by,
       d.created_at, d.updated_at, 0
  FROM marketplace_discovery_queue_error d;
COMMENT ON VIEW vw_dead_letter_queue IS
    'What failed for good in both queues: out of attempts, failed permanently, or cancelled. Put back with requeue_events() or requeue_discovery_items(), delete with discard_events() or discard_discovery_items(); audit_log says who did it.';
COMMENT ON COLUMN vw_dead_letter_queue.queue IS 'The queue that it is in';
COMMENT ON COLUMN vw_dead_letter_queue.id IS 'Identifies it';
COMMENT ON COLUMN vw_dead_letter_queue.topic IS 'Its topic';
COMMENT ON COLUMN vw_dead_letter_queue.item IS 'The payload of an event; interest_id, category_id and reason of a discovery item';
COMMENT ON COLUMN vw_dead_letter_queue.attempts IS 'Attempts that were made';
COMMENT ON COLUMN vw_dead_letter_queue.max_attempts IS 'Attempts that it had';
COMMENT ON COLUMN vw_dead_letter_queue.last_error IS 'Why it failed';
COMMENT ON COLUMN vw_dead_letter_queue.leased_by IS 'The worker that tried last';
COMMENT ON COLUMN vw_dead_letter_queue.created_at IS 'When it was enqueued';
COMMENT ON COLUMN vw_dead_letter_queue.failed_at IS 'When it failed';
COMMENT ON COLUMN vw_dead_letter_queue.waiting_ct IS 'Events that wait for it';

CREATE OR REPLACE VIEW vw_xmin_horizon AS
SELECT 'session' AS kind, format('pid %s, %s', pid, coalesce(usename, 'a server process')) AS holder, age(backend_xmin) AS xmin_age, xact_start AS since,
       extract(epoch FROM now() - xact_start)::double precision AS held_sec, concat_ws(', ', state, left(query, 100)) AS detail
  FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction', gid, age(transaction), prepared, extract(epoch FROM now() - prepared)::double precision, format('of %s in %s', owner, database)
  FROM pg_prepared_xacts
UNION ALL
SELECT 'replication slot', slot_name, greatest(age(xmin), age(catalog_xmin)), NULL, NULL, CASE WHEN active THEN 'active' ELSE 'not connected' END
  FROM pg_replication_slots WHERE xmin IS NOT NULL OR catalog_xmin IS NOT NULL
UNION ALL
SELECT 'standby', application_name, age(backend_xmin), NULL, NULL, 'hot_standby_feedback'
  FROM pg_stat_replication WHERE backend_xmin IS NOT NULL
 ORDER BY xmin_age DESC;
COMMENT ON VIEW vw_xmin_horizon IS
    'Who keeps old row versions alive, oldest first: while an old snapshot is held, vacuum removes nothing newer, and every queue collects dead rows.';
COMMENT ON COLUMN vw_xmin_horizon.kind IS 'session, prepared transaction, replication slot or standby';
COMMENT ON COLUMN vw_xmin_horizon.holder IS 'Which one';
COMMENT ON COLUMN vw_xmin_horizon.xmin_age IS 'Transactions begun since the snapshot that it holds';
COMMENT ON COLUMN vw_xmin_horizon.since IS 'When its transaction began; NULL where that is not known';
COMMENT ON COLUMN vw_xmin_horizon.held_sec IS 'Seconds since then';
COMMENT ON COLUMN vw_xmin_horizon.detail IS 'What it does';

CREATE OR REPLACE VIEW health_queue (check_name, level, subject, value, threshold, detail, hint) AS
WITH events AS MATERIALIZED (
    SELECT topic, status, ct, p95_age_sec, stuck_ct, topic_state FROM vw_events_queue_health
), items AS MATERIALIZED (
    SELECT status, ct, p95_age_sec, stuck_ct, high_retry_ct, topic_state FROM vw_discovery_queue_health
), lines AS (
    SELECT topic AS subject, max(p95_age_sec) AS age, sum(ct) AS ct, sum(stuck_ct) AS stuck, max(topic_state) AS state
      FROM events WHERE status IN ('queued', 'leased') GROUP BY topic
    UNION ALL
    SELECT 'marketplace_discovery_queue', max(p95_age_sec), sum(ct), sum(stuck_ct), max(topic_state)
      FROM items WHERE status IN ('queued', 'processing') HAVING count(*) > 0
), failed AS (
    SELECT topic AS subject, ct FROM events WHERE status = 'error'
    UNION ALL
    SELECT 'marketplace_discovery_queue', ct FROM items WHERE status = 'error'
), retried AS (
    SELECT coalesce(sum(high_retry_ct), 0) AS ct FROM items
), oldest AS (
    SELECT holder, kind, held_sec, detail FROM vw_xmin_horizon WHERE held_sec IS NOT NULL ORDER BY held_sec DESC LIMIT 1
)
SELECT 'queue.waiting', CASE WHEN state = 'paused' AND age > 60 THEN 'warn' WHEN age > 300 THEN 'error' WHEN age > 60 THEN 'warn' ELSE 'ok' END, subject,
       coalesce(round(age::numeric, 1), 0)::double precision, 300::double precision,
       format('%s queued or leased%s', ct, CASE WHEN state <> 'active' THEN ', ' || state END),
       CASE WHEN state = 'paused' AND age > 60 THEN 'SELECT resume_topic(...) lets the topic go on.'
            WHEN age > 60 THEN 'Is a worker running? SELECT * FROM vw_worker_health;' END
  FROM lines
UNION ALL
SELECT 'queue.failed', 'warn', subject, ct, 0, format('%s ended in error', ct),
       'SELECT id, last_error FROM vw_dead_letter_queue ORDER BY failed_at DESC LIMIT 20; then requeue or discard them.'
  FROM failed
UNION ALL
SELECT 'queue.expired_leases', CASE WHEN stuck > 0 THEN 'warn' ELSE 'ok' END, subject, stuck, 0, format('%s leases have expired', stuck),
       CASE WHEN stuck > 0 THEN 'The next lease takes them over; if none comes, start a worker.' END
  FROM lines
UNION ALL
SELECT 'queue.high_retry', CASE WHEN ct > 10 THEN 'error' ELSE 'ok' END, 'marketplace_discovery_queue', ct, 10, format('%s items had more than three attempts and are not done', ct),
       CASE WHEN ct > 10 THEN 'Something fails for all of them: SELECT last_error, count(*) FROM marketplace_discovery_queue WHERE attempts > 3 GROUP BY 1;' END
  FROM retried
UNION ALL
SELECT 'queue.dead_rows', CASE WHEN d.too_many THEN 'warn' ELSE 'ok' END, d.relname, d.n_dead_tup, d.allowed, format('%s dead and %s live rows', d.n_dead_tup, d.n_live_tup),
       CASE WHEN d.too_many THEN 'Vacuum cannot remove them, or does not run: SELECT * FROM vw_xmin_horizon; SELECT * FROM pg_stat_user_tables;' END
  FROM (
    -- Vacuum comes once a minute: more than usual is no trouble yet, unless it cannot come or has fallen far behind.
    SELECT s.relname, s.n_dead_tup, s.n_live_tup, 10000 + 2 * s.n_live_tup AS allowed,
           s.n_dead_tup > 10000 + 2 * s.n_live_tup
           AND (current_setting('autovacuum') = 'off' OR c.reloptions @> '{autovacuum_enabled=false}' OR s.n_dead_tup > 1000000
                OR EXISTS (SELECT FROM oldest WHERE held_sec > 60)) AS too_many
      FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid
     WHERE s.relid IN ('events_queue_live'::regclass, 'marketplace_discovery_queue_live'::regclass)) d
UNION ALL
SELECT 'queue.horizon', CASE WHEN held_sec > 600 THEN 'warn' ELSE 'ok' END, holder, round(held_sec)::double precision, 600,
       format('the oldest snapshot is held by a %s: %s', kind, detail),
       CASE WHEN held_sec > 600 THEN 'Dead rows pile up behind it: SELECT * FROM vw_xmin_horizon; end it, or SELECT pg_terminate_backend(pid).' END
  FROM oldest;
COMMENT ON VIEW health_queue IS 'The checks of both queues, for steward_health';
