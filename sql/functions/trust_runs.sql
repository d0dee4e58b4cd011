-- Recording recomputes: a row for each that had something to do, and sums that stay when the rows go.

CREATE OR REPLACE FUNCTION record_trust_run(
    started_at timestamptz, duration_ms double precision, processed bigint, changed bigint, failed bigint, remaining bigint,
    avg_weight_variance double precision, timed_out boolean, error text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_variable
BEGIN
    PERFORM require_valid(num_nulls(started_at, duration_ms, processed, changed, failed, remaining, avg_weight_variance, timed_out) = 0,
        'only error may be NULL', 'Give what trust_recompute() returned.', '22004');
    PERFORM require_valid(duration_ms >= 0 AND duration_ms < 'Infinity' AND avg_weight_variance BETWEEN 0 AND 1 AND least(processed, changed, failed, remaining) >= 0
        AND isfinite(started_at) AND started_at <= clock_timestamp() + interval '1 minute', 'this is no run of trust_recompute()',
        'Counts and the duration are not negative, the duration and the start are finite, and the start has passed.');
    IF processed + failed > 0 OR timed_out OR error IS NOT NULL THEN
        INSERT INTO trust_recompute_runs (started_at, duration_ms, processed, changed, failed, remaining, avg_weight_variance, timed_out, error)
        VALUES (started_at, duration_ms, processed, changed, failed, remaining, avg_weight_variance, timed_out, left(error, 2000));
    -- Idle is success, unless scenes that failed wait for another try.
    ELSIF remaining = 0 OR NOT EXISTS (SELECT FROM trust_dirty d WHERE d.attempts > 0 AND d.quarantined_at IS NULL) THEN
        INSERT INTO trust_tally (succeeded_at) VALUES (started_at + make_interval(secs => duration_ms / 1000));
        PERFORM fold_trust_tally();
    END IF;
END $$;
COMMENT ON FUNCTION record_trust_run(timestamptz, double precision, bigint, bigint, bigint, bigint, double precision, boolean, text) IS
    'Records a call of trust_recompute(): a row of trust_recompute_runs if it had something to do, otherwise only that it succeeded now. Internal: called by trust_recompute(), and by the worker for a call that failed as a whole, with the error.';

CREATE OR REPLACE FUNCTION tally_trust_runs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO trust_tally (runs, failed_runs, errors, scenes, failed_scenes,
                             up_to_100ms, up_to_250ms, up_to_500ms, up_to_1s, up_to_2s, up_to_5s, up_to_10s, timed, seconds, succeeded_at)
    SELECT count(*) FILTER (WHERE NOT timed_out AND error IS NULL), count(*) FILTER (WHERE timed_out OR error IS NOT NULL OR processed = 0),
           sum(failed) + count(*) FILTER (WHERE timed_out OR error IS NOT NULL), sum(processed + failed), sum(failed),
           count(*) FILTER (WHERE duration_ms <= 100), count(*) FILTER (WHERE duration_ms <= 250), count(*) FILTER (WHERE duration_ms <= 500),
           count(*) FILTER (WHERE duration_ms <= 1000), count(*) FILTER (WHERE duration_ms <= 2000), count(*) FILTER (WHERE duration_ms <= 5000),
           count(*) FILTER (WHERE duration_ms <= 10000), count(*), sum(duration_ms) / 1000,
           max(started_at + make_interval(secs => duration_ms / 1000)) FILTER (WHERE NOT timed_out AND error IS NULL AND processed > 0)
      FROM arrived
    HAVING count(*) > 0;
    PERFORM fold_trust_tally();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION tally_trust_runs() IS 'Trigger: adds recorded runs to trust_tally.';

CREATE OR REPLACE TRIGGER tally AFTER INSERT ON trust_recompute_runs REFERENCING NEW TABLE AS arrived FOR EACH STATEMENT EXECUTE FUNCTION tally_trust_runs();

CREATE OR REPLACE FUNCTION fold_trust_tally() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- An older snapshot would collide with whoever has folded since.
    IF current_setting('transaction_isolation') <> 'read committed' OR (SELECT count(*) FROM trust_tally) < 50 THEN
        RETURN;
    END IF;
    WITH folded AS (
        DELETE FROM trust_tally WHERE ctid = ANY (ARRAY(SELECT ctid FROM trust_tally FOR UPDATE SKIP LOCKED)) RETURNING *
    )
    INSERT INTO trust_tally (runs, failed_runs, errors, scenes, failed_scenes,
                             up_to_100ms, up_to_250ms, up_to_500ms, up_to_1s, up_to_2s, up_to_5s, up_to_10s, timed, seconds, succeeded_at)
    SELECT sum(runs), sum(failed_runs), sum(errors), sum(scenes), sum(failed_scenes),
           sum(up_to_100ms), sum(up_to_250ms), sum(up_to_500ms), sum(up_to_1s), sum(up_to_2s), sum(up_to_5s), sum(up_to_10s), sum(timed), sum(seconds), max(succeeded_at)
      FROM folded
    HAVING count(*) > 0;
END $$;
COMMENT ON FUNCTION fold_trust_tally() IS 'Adds the rows of trust_tally together once there are fifty. Done by whoever adds one.';

CREATE OR REPLACE FUNCTION expire_trust_runs(most int DEFAULT 10000, keep interval DEFAULT '30 days') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    expired bigint;
BEGIN
    PERFORM require_argument(most, 'most'), require_argument(keep, 'keep');
    PERFORM require_valid(most BETWEEN 1 AND 1000000, format('most %s is out of range', most), 'Delete 1 to 1000000 at a time.');
    PERFORM require_valid(keep BETWEEN '0' AND '1000 years', format('keep %s is out of range', keep), 'Give 0 to 1000 years, such as ''30 days''.');
    DELETE FROM trust_recompute_runs r WHERE r.id = ANY (ARRAY(
        SELECT o.id FROM trust_recompute_runs o WHERE o.started_at < clock_timestamp() - keep ORDER BY o.started_at LIMIT most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS expired = ROW_COUNT;
    RETURN expired;
END $$;
COMMENT ON FUNCTION expire_trust_runs(int, interval) IS
    'Deletes up to most rows of trust_recompute_runs that are older than keep, oldest first, and returns how many; counters keep what they counted. Call it again until it returns less; workers do.';

CREATE OR REPLACE FUNCTION trust_timeout_sec() RETURNS double precision
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM steward_version();  -- loads the library, which knows the setting
    RETURN extract(epoch FROM current_setting('pgsteward.trust_recompute_timeout')::interval);
END $$;
COMMENT ON FUNCTION trust_timeout_sec() IS 'The setting pgsteward.trust_recompute_timeout of this session, in seconds.';
