-- What a worker process tells about itself.

CREATE OR REPLACE FUNCTION worker_beat(
    worker_id text, host text, pid int, version text, started_at timestamptz, state text, waiting boolean,
    leased int, events_done bigint, last_error text DEFAULT NULL) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    INSERT INTO worker_heartbeats AS w (worker_id, host, pid, version, started_at, beat_at, state, waiting, leased, events_done, last_error)
    VALUES (worker_id, host, pid, version, started_at, clock_timestamp(), state, waiting, leased, events_done, last_error)
    ON CONFLICT ON CONSTRAINT worker_heartbeats_pkey DO UPDATE
       SET beat_at = excluded.beat_at, state = excluded.state, waiting = excluded.waiting, leased = excluded.leased,
           events_done = excluded.events_done, last_error = excluded.last_error
     WHERE w.state <> 'stopped';  -- a beat that was overtaken by the last one
    DELETE FROM worker_heartbeats w WHERE w.beat_at < clock_timestamp() - interval '1 day';
$$;
COMMENT ON FUNCTION worker_beat(text, text, int, text, timestamptz, text, boolean, int, bigint, text) IS
    'Renews the heartbeat row of a worker, and removes rows of workers that have been silent for a day.';
