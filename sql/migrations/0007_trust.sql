-- What is counted over all recomputes ever, failed calls beside the others, and how a worker's connections and recomputes fare.

ALTER TABLE trust_recompute_runs ADD COLUMN error text;
COMMENT ON COLUMN trust_recompute_runs.error IS 'Why the call failed as a whole, told by the worker afterwards: what the call itself had written is undone';
COMMENT ON TABLE trust_recompute_runs IS 'A row per call of trust_recompute() that had something to do. Removed by expire_trust_runs().';

-- Counters must outlive the runs, and reading them must not cost more with every run.
CREATE TABLE trust_tally (
    runs          bigint NOT NULL DEFAULT 0,
    failed_runs   bigint NOT NULL DEFAULT 0,
    errors        bigint NOT NULL DEFAULT 0,
    scenes        bigint NOT NULL DEFAULT 0,
    failed_scenes bigint NOT NULL DEFAULT 0,
    up_to_100ms   bigint NOT NULL DEFAULT 0,
    up_to_250ms   bigint NOT NULL DEFAULT 0,
    up_to_500ms   bigint NOT NULL DEFAULT 0,
    up_to_1s      bigint NOT NULL DEFAULT 0,
    up_to_2s      bigint NOT NULL DEFAULT 0,
    up_to_5s      bigint NOT NULL DEFAULT 0,
    up_to_10s     bigint NOT NULL DEFAULT 0,
    timed         bigint NOT NULL DEFAULT 0,
    seconds       double precision NOT NULL DEFAULT 0,
    succeeded_at  timestamptz
) WITH (autovacuum_vacuum_scale_factor = 0.02);
COMMENT ON TABLE trust_tally IS 'What recomputes have added up to since the beginning; the sum of the rows counts. Folded together now and then; stays when runs are removed.';
COMMENT ON COLUMN trust_tally.runs IS 'Cycles that had something to do and completed';
COMMENT ON COLUMN trust_tally.failed_runs IS 'Cycles that timed out, failed as a whole, or in which every scene failed';
COMMENT ON COLUMN trust_tally.errors IS 'Scenes that failed, and cycles that timed out or failed as a whole';
COMMENT ON COLUMN trust_tally.scenes IS 'Scenes attempted';
COMMENT ON COLUMN trust_tally.failed_scenes IS 'Scenes that failed';
COMMENT ON COLUMN trust_tally.up_to_100ms IS 'Cycles that took 0.1 s or less';
COMMENT ON COLUMN trust_tally.up_to_250ms IS 'Cycles that took 0.25 s or less';
COMMENT ON COLUMN trust_tally.up_to_500ms IS 'Cycles that took 0.5 s or less';
COMMENT ON COLUMN trust_tally.up_to_1s IS 'Cycles that took 1 s or less';
COMMENT ON COLUMN trust_tally.up_to_2s IS 'Cycles that took 2 s or less';
COMMENT ON COLUMN trust_tally.up_to_5s IS 'Cycles that took 5 s or less';
COMMENT ON COLUMN trust_tally.up_to_10s IS 'Cycles that took 10 s or less';
COMMENT ON COLUMN trust_tally.timed IS 'All cycles that had something to do, those that timed out or failed as well';
COMMENT ON COLUMN trust_tally.seconds IS 'How long they took together';
COMMENT ON COLUMN trust_tally.succeeded_at IS 'When the last of them succeeded; an idle cycle succeeds';

INSERT INTO trust_tally
SELECT count(*) FILTER (WHERE NOT timed_out), count(*) FILTER (WHERE timed_out OR processed = 0), coalesce(sum(failed), 0) + count(*) FILTER (WHERE timed_out),
       coalesce(sum(processed + failed), 0), coalesce(sum(failed), 0),
       count(*) FILTER (WHERE duration_ms <= 100), count(*) FILTER (WHERE duration_ms <= 250), count(*) FILTER (WHERE duration_ms <= 500),
       count(*) FILTER (WHERE duration_ms <= 1000), count(*) FILTER (WHERE duration_ms <= 2000), count(*) FILTER (WHERE duration_ms <= 5000),
       count(*) FILTER (WHERE duration_ms <= 10000), count(*), coalesce(sum(duration_ms), 0) / 1000,
       max(started_at + make_interval(secs => duration_ms / 1000)) FILTER (WHERE NOT timed_out AND processed > 0)
  FROM trust_recompute_runs;

DROP FUNCTION IF EXISTS worker_beat(text, text, int, text, timestamptz, text, boolean, int, bigint, text);
ALTER TABLE worker_heartbeats
    ADD COLUMN pool_in_use       int,
    ADD COLUMN pool_idle         int,
    ADD COLUMN pool_waiting      int,
    ADD COLUMN pool_max          int,
    ADD COLUMN trust_timeout_sec double precision,
    ADD COLUMN trust_callers     int,
    ADD COLUMN trust_stop        text,
    ADD COLUMN trust_stopped_at  timestamptz;
COMMENT ON COLUMN worker_heartbeats.pool_in_use IS 'Connections that work';
COMMENT ON COLUMN worker_heartbeats.pool_idle IS 'Connections that are open and free';
COMMENT ON COLUMN worker_heartbeats.pool_waiting IS 'Tasks that wait for a connection';
COMMENT ON COLUMN worker_heartbeats.pool_max IS 'Connections that it may open for work: pool_size';
COMMENT ON COLUMN worker_heartbeats.trust_timeout_sec IS 'Its TRUST_RECOMPUTE_TIMEOUT_SEC';
COMMENT ON COLUMN worker_heartbeats.trust_callers IS 'Recomputes that it runs at the same time: trust_recompute_concurrency';
COMMENT ON COLUMN worker_heartbeats.trust_stop IS 'Why a recompute of it stopped before its end last: stop signal, statement cancelled, lost connection, ...';
COMMENT ON COLUMN worker_heartbeats.trust_stopped_at IS 'When that was';
