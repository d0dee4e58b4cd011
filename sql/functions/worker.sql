-- What a worker process tells about itself.

CREATE OR REPLACE FUNCTION worker_beat(
    worker_id text, host text, pid int, version text, started_at timestamptz, state text, waiting boolean,
    leased int, events_done bigint, last_error text DEFAULT NULL,
    pool_in_use int DEFAULT NULL, pool_idle int DEFAULT NULL, pool_waiting int DEFAULT NULL, pool_max int DEFAULT NULL,
    trust_timeout_sec double precision DEFAULT NULL, trust_callers int DEFAULT NULL, trust_stop text DEFAULT NULL, trust_stopped_at timestamptz DEFAULT NULL) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    INSERT INTO worker_heartbeats AS w (worker_id, host, pid, version, started_at, beat_at, state, waiting, leased, events_done, last_error,
                                        pool_in_use, pool_idle, pool_waiting, pool_max, trust_timeout_sec, trust_callers, trust_stop, trust_stopped_at)
    VALUES (worker_id, host, pid, version, started_at, clock_timestamp(), state, waiting, leased, events_done, last_error,
            pool_in_use, pool_idle, pool_waiting, pool_max, trust_timeout_sec, trust_callers, trust_stop, trust_stopped_at)
    ON CONFLICT ON CONSTRAINT worker_heartbeats_pkey DO UPDATE
       SET beat_at = excluded.beat_at, state = excluded.state, waiting = excluded.waiting, leased = excluded.leased,
           events_done = excluded.events_done, last_error = excluded.last_error,
           pool_in_use = excluded.pool_in_use, pool_idle = excluded.pool_idle, pool_waiting = excluded.pool_waiting, pool_max = excluded.pool_max,
           trust_timeout_sec = excluded.trust_timeout_sec, trust_callers = excluded.trust_callers,
           trust_stop = excluded.trust_stop, trust_stopped_at = excluded.trust_stopped_at
     WHERE w.state <> 'stopped';  -- a beat that was overtaken by the last one
    DELETE FROM worker_heartbeats w WHERE w.beat_at < clock_timestamp() - interval '1 day';
$$;
COMMENT ON FUNCTION worker_beat(text, text, int, text, timestamptz, text, boolean, int, bigint, text, int, int, int, int, double precision, int, text, timestamptz) IS
    'Renews the heartbeat row of a worker, and removes rows of workers that have been silent for a day.';
