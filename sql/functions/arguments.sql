-- What every function of the queues asks of its arguments, and how workers are woken.

CREATE OR REPLACE FUNCTION require_valid(valid boolean, message text, hint text DEFAULT '', code text DEFAULT '22023') RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF valid IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, HINT = hint;
    END IF;
END $$;
COMMENT ON FUNCTION require_valid(boolean, text, text, text) IS
    'Raises the message with its hint and SQLSTATE unless the condition is true. Used by the other functions to check their arguments.';

CREATE OR REPLACE FUNCTION require_argument(value anyelement, name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF value IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = format('%s must not be NULL', name),
            HINT = format('Give a value for %s.', name);
    END IF;
END $$;
COMMENT ON FUNCTION require_argument(anyelement, text) IS 'Raises 22004 with the name of the argument if its value is NULL.';

CREATE OR REPLACE FUNCTION check_ids(ids bigint[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF cardinality(ids) BETWEEN 1 AND 100000 AND array_position(ids, NULL) IS NULL THEN
        RETURN;
    END IF;
    PERFORM require_argument(ids, 'ids');
    PERFORM require_valid(cardinality(ids) > 0, 'ids is empty', 'Give at least one id.');
    PERFORM require_valid(cardinality(ids) <= 100000, format('%s ids are too many', cardinality(ids)), 'Give at most 100000 in a call.', '54000');
    PERFORM require_valid(false, 'ids must not contain NULL', 'Give the ids that the lease returned.', '22004');
END $$;
COMMENT ON FUNCTION check_ids(bigint[]) IS 'Raises 22004, 22023 or 54000 unless ids holds 1 to 100000 ids and no NULL.';

CREATE OR REPLACE FUNCTION check_lease_arguments(ids bigint[], lease_token uuid) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_ids(ids);
    IF lease_token IS NULL THEN
        PERFORM require_argument(lease_token, 'lease_token');
    END IF;
END $$;
COMMENT ON FUNCTION check_lease_arguments(bigint[], uuid) IS 'Raises an error if the ids or the lease token of a call are missing or malformed.';

CREATE OR REPLACE FUNCTION check_ttl(ttl_seconds int) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    IF ttl_seconds BETWEEN 1 AND 86400 THEN
        RETURN;
    END IF;
    PERFORM require_argument(ttl_seconds, 'ttl_seconds');
    PERFORM require_valid(false, format('ttl_seconds %s is out of range', ttl_seconds),
        'Give 1 to 86400 seconds (a day); extend the lease while the work goes on.');
END $$;
COMMENT ON FUNCTION check_ttl(int) IS 'Raises 22023 unless a lease time is 1 second to a day.';

CREATE OR REPLACE FUNCTION wake_workers(queue text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM worker_heartbeats WHERE waiting AND beat_at > now() - interval '1 minute')
       AND pg_try_advisory_xact_lock(hashtext('pgsteward:' || queue), (extract(epoch FROM clock_timestamp()) * 20)::bigint::bit(31)::int)
    THEN
        PERFORM pg_notify('pgsteward', queue);
    END IF;
END $$;
COMMENT ON FUNCTION wake_workers(text) IS
    'Notifies channel "pgsteward" with the name of the queue, but only while some worker waits, and from one open transaction per 50 ms: notifying transactions commit one after the other. Workers poll as well, so a lost notification costs a second, never an event.';
