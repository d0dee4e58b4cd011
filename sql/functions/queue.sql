-- How items are leased and how a lease ends: ack, fail, release, expiry. Made once for each queue, with its names in the
-- place of {queue}, {items}, {leased} and so on; extension/src/schema/files.rs has the list.
-- The tables are hidden: applications and workers use these functions, which run with the rights of their owner.

CREATE OR REPLACE FUNCTION promote_{items}(moment timestamptz DEFAULT clock_timestamp()) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {queue}_live d WHERE d.deferred AND d.waits = 0 AND d.run_at <= moment) THEN
        RETURN;
    END IF;
    UPDATE {queue}_live q SET deferred = false, turn_at = clock_timestamp() + q.priority * interval '30 seconds'
     WHERE q.id = ANY (ARRAY(
        SELECT d.id FROM {queue}_live d WHERE d.deferred AND d.waits = 0 AND d.run_at <= moment ORDER BY d.run_at LIMIT 1000 FOR UPDATE SKIP LOCKED));
END $$;
COMMENT ON FUNCTION promote_{items}(timestamptz) IS 'Puts {items} whose time has come into the line. Every lease does it first.';

CREATE OR REPLACE FUNCTION claim_{items}(lane text, max_items int, ttl_seconds int, worker text, token uuid, patient boolean)
RETURNS TABLE (id bigint, {lease_returns}, attempts int, max_attempts int, lease_token uuid, lease_expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moment  timestamptz;
    expiry  timestamptz;
    room    int := max_items;
    start   timestamptz;
    paused  boolean;
    limited boolean;
    chosen  tid[];
    spent   bigint[];
    last    timestamptz;
    n       int;
BEGIN
    SELECT t.state = 'paused', t.max_leased IS NOT NULL OR t.rate_limit IS NOT NULL INTO paused, limited FROM event_topics t WHERE t.topic = lane;
    IF paused THEN
        RETURN;
    END IF;
    IF limited THEN
        room := topic_room(lane, max_items, patient);
        IF room < 1 THEN
            RETURN;
        END IF;
    END IF;
    moment := clock_timestamp();
    expiry := moment + make_interval(secs => ttl_seconds);

    -- The search goes on where this session's last one ended, and begins anew now and then or when it finds too few:
    -- what has been leased or is dead is not walked again and again.
    LOOP
        start := coalesce(queue_head('{queue}', lane), '-infinity');
        SELECT array_agg(c.ctid) FILTER (WHERE NOT c.spent), array_agg(c.id) FILTER (WHERE c.spent), max(c.turn_at), count(*)
          INTO chosen, spent, last, n
          FROM (SELECT q.ctid, q.id, q.turn_at, q.status = '{leased}' AND q.attempts >= q.max_attempts AS spent FROM {queue}_live q
                 WHERE q.topic = lane AND NOT q.deferred AND q.turn_at >= start AND (q.status = 'queued' OR q.lease_expires_at < moment)
                 ORDER BY q.turn_at LIMIT room FOR UPDATE SKIP LOCKED) AS c;
        PERFORM queue_passed('{queue}', lane, CASE WHEN n = room AND spent IS NULL THEN last END);
        IF spent IS NOT NULL THEN
            -- Whoever held these died or was too slow on the last attempt. One whose ordering key somebody else holds is left for later.
            SELECT array_agg(q.id) INTO spent FROM {queue}_live q
             WHERE q.id = ANY (spent) AND (q.ordering_key IS NULL OR (current_setting('transaction_isolation') = 'read committed'
                                                                      AND pg_try_advisory_xact_lock(key_lock(q.topic, q.ordering_key))));
            IF spent IS NOT NULL THEN
                PERFORM bury_{items}(spent, 'the lease expired on the last attempt: the worker died or needed longer than the lease');
                CONTINUE;
            END IF;
        END IF;
        EXIT WHEN n = room OR start = '-infinity';
    END LOOP;
    IF chosen IS NULL THEN
        RETURN;
    END IF;

    RETURN QUERY
    WITH taken AS (
        UPDATE {queue}_live q
           SET status = '{leased}', lease_token = token, lease_expires_at = expiry, attempts = q.attempts + 1, leased_by = worker,
               updated_at = moment, watched = q.watched OR limited IS TRUE, again = false
         WHERE q.ctid = ANY (chosen)
        RETURNING q.id, q.turn_at, q.attempts, q.max_attempts, {lease_takes}
    )
    SELECT l.id, {lease_selects}, l.attempts, l.max_attempts::int, token, expiry FROM taken l ORDER BY l.turn_at, l.id;
    IF limited THEN
        GET DIAGNOSTICS n = ROW_COUNT;
        PERFORM topic_took(lane, n, token, expiry);
    END IF;
END $$;
COMMENT ON FUNCTION claim_{items}(text, int, int, text, uuid, boolean) IS
    'Leases {items} of one topic under a given token. Internal: lease_{items}() checks the arguments and chooses the topic.';

CREATE OR REPLACE FUNCTION hold_{items}(ids bigint[], lease_token uuid, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, {hold_returns}, attempts int, max_attempts int)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    PERFORM check_lease_arguments(ids, lease_token);
    -- As long as the work goes on it counts against the limit of its topic, however long it takes.
    PERFORM FROM topic_slots s WHERE s.lease_token = hold_{items}.lease_token ORDER BY s.topic FOR KEY SHARE;
    RETURN QUERY
    SELECT q.id, {hold_selects}, q.attempts, q.max_attempts::int FROM {queue}_live q
     WHERE q.id = ANY (ids) AND q.status = '{leased}' AND q.lease_token = hold_{items}.lease_token AND q.lease_expires_at >= hold_{items}.now
     ORDER BY q.id FOR UPDATE;
END $$;
COMMENT ON FUNCTION hold_{items}(bigint[], uuid, timestamptz) IS
    'The {items} among ids that this lease still holds, locked until the end of the transaction: nobody can take them over meanwhile, so an effect and its acknowledgement commit together or not at all.';

CREATE OR REPLACE FUNCTION ack_{items}(ids bigint[], lease_token uuid, results jsonb[] DEFAULT NULL, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    moment    timestamptz := clock_timestamp();
    mine      bigint[];
    followed  bigint[];
    topics    text[];
    keys      text[];
    renewed   bigint[];
    limited   text[];
    named     bigint[];
    named_topics text[];
    names     text[];
BEGIN
    PERFORM check_lease_arguments(ids, lease_token);
    IF results IS NOT NULL THEN
        PERFORM require_valid(cardinality(results) = cardinality(ids), format('%s results for %s ids', cardinality(results), cardinality(ids)),
            'Give one result per id; NULL for none.', 'array_subscript_error');
        UPDATE {queue}_live q SET result = r.result FROM unnest(ids, results) AS r (id, result)
         WHERE q.id = r.id AND q.status = '{leased}' AND q.lease_token = ack_{items}.lease_token AND q.lease_expires_at >= ack_{items}.now;
    END IF;
    WITH ended AS (
        DELETE FROM {queue}_live q
         WHERE q.id = ANY (ids) AND q.status = '{leased}' AND q.lease_token = ack_{items}.lease_token AND q.lease_expires_at >= ack_{items}.now
           AND NOT q.again
        RETURNING q.id, q.run_at, q.turn_at, q.created_at, q.priority, q.max_attempts, q.attempts, q.leased_by, q.topic, q.ordering_key,
                  q.idempotency_key, q.result, q.watched, {own_columns}
    ), unkept AS (
        SELECT t.topic FROM event_topics t WHERE t.keep_done = '0'
    ), kept AS (
        INSERT INTO {queue}_done (id, run_at, turn_at, created_at, priority, max_attempts, updated_at, attempts, status, leased_by, topic,
                                  ordering_key, idempotency_key, result, {columns})
        SELECT e.id, e.run_at, e.turn_at, e.created_at, e.priority, e.max_attempts, moment, e.attempts, 'done', e.leased_by, e.topic,
               e.ordering_key, e.idempotency_key, e.result, {ended_columns}
          FROM ended e WHERE e.topic NOT IN (SELECT u.topic FROM unkept u)
    ), counted AS (
        INSERT INTO event_tally (topic, status, ct, at)
        SELECT e.topic, CASE WHEN e.topic IN (SELECT u.topic FROM unkept u) THEN 'gone' ELSE 'done' END, count(*), moment FROM ended e GROUP BY e.topic
    )
    SELECT array_agg(e.id), array_agg(e.id) FILTER (WHERE e.watched), array_agg(e.topic) FILTER (WHERE e.watched),
           array_agg(e.ordering_key) FILTER (WHERE e.watched), array_agg(e.id) FILTER (WHERE e.idempotency_key IS NOT NULL),
           array_agg(e.topic) FILTER (WHERE e.idempotency_key IS NOT NULL), array_agg(e.idempotency_key) FILTER (WHERE e.idempotency_key IS NOT NULL)
      INTO mine, followed, topics, keys, named, named_topics, names FROM ended e;
    IF named IS NOT NULL THEN
        DELETE FROM event_keys k USING unnest(named, named_topics, names) AS n (id, topic, name), event_topics t
         WHERE t.topic = n.topic AND t.keep_done = '0' AND k.topic = n.topic AND k.idempotency_key = n.name AND k.event_id = n.id;
    END IF;
    IF cardinality(mine) = cardinality(ids) IS NOT TRUE THEN
        -- What was enqueued anew while it was leased is done, and waits again.
        WITH put_back AS (
            UPDATE {queue}_live q
               SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, attempts = 0, again = false, updated_at = moment,
                   turn_at = moment + q.priority * interval '30 seconds'
             WHERE q.id = ANY (ids) AND q.status = '{leased}' AND q.lease_token = ack_{items}.lease_token AND q.lease_expires_at >= ack_{items}.now
            RETURNING q.id, q.topic, q.watched
        )
        SELECT array_agg(p.id), array_agg(p.topic) FILTER (WHERE p.watched) INTO renewed, limited FROM put_back p;
        PERFORM free_slots(lease_token, limited);
        mine := mine || renewed;
    END IF;
    IF followed IS NOT NULL THEN
        PERFORM free_slots(lease_token, topics);
        PERFORM follow_events(followed, topics, keys);
    END IF;
    IF random() < 0.02 THEN
        PERFORM fold_tally();
    END IF;
    IF cardinality(mine) = cardinality(ids) THEN
        RETURN QUERY SELECT i, true FROM unnest(ids) AS i;
    ELSE
        RETURN QUERY SELECT i, i IN (SELECT m FROM unnest(mine) AS m) FROM unnest(ids) AS i;
    END IF;
END $$;
COMMENT ON FUNCTION ack_{items}(bigint[], uuid, jsonb[], timestamptz) IS
    'Completes {items}, and keeps a result for each if given. held is false for each id whose lease has expired or belongs to somebody else: nothing was changed for it.';

CREATE OR REPLACE FUNCTION bury_{items}(ids bigint[], reason text) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    renewed bigint[];
    buried bigint[];
    topics text[];
    keys   text[];
    tokens uuid[];
BEGIN
    -- What was enqueued anew while it was leased waits again instead: the newer request has not failed.
    WITH newer AS MATERIALIZED (
        SELECT q.id, q.lease_token FROM {queue}_live q WHERE q.id = ANY (ids) AND q.again FOR UPDATE
    ), put_back AS (
        UPDATE {queue}_live q
           SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, attempts = 0, again = false, last_error = left(bury_{items}.reason, 2000),
               updated_at = clock_timestamp(), turn_at = clock_timestamp() + q.priority * interval '30 seconds'
          FROM newer n WHERE q.id = n.id
        RETURNING q.id, q.topic, q.watched, n.lease_token
    )
    SELECT coalesce(array_agg(p.id), '{}'), array_agg(p.topic) FILTER (WHERE p.watched), array_agg(p.lease_token) FILTER (WHERE p.watched)
      INTO renewed, topics, tokens FROM put_back p;
    PERFORM free_slots(w.token, array_agg(w.topic)) FROM unnest(tokens, topics) AS w (token, topic) GROUP BY w.token;
    WITH ended AS (
        DELETE FROM {queue}_live q WHERE q.id = ANY (ids) AND NOT q.id = ANY (renewed) RETURNING q.*
    ), kept AS (
        INSERT INTO {queue}_error (id, run_at, turn_at, created_at, priority, max_attempts, updated_at, attempts, status, leased_by, topic,
                                   ordering_key, idempotency_key, last_error, {columns})
        SELECT e.id, e.run_at, e.turn_at, e.created_at, e.priority, e.max_attempts, clock_timestamp(), e.attempts, 'error', e.leased_by, e.topic,
               e.ordering_key, e.idempotency_key, left(bury_{items}.reason, 2000), {ended_columns}
          FROM ended e
    ), counted AS (
        INSERT INTO event_tally (topic, status, ct, at) SELECT e.topic, 'error', count(*), clock_timestamp() FROM ended e GROUP BY e.topic
    )
    SELECT array_agg(e.id), array_agg(e.topic) FILTER (WHERE e.watched), array_agg(e.ordering_key) FILTER (WHERE e.watched),
           array_agg(e.lease_token) FILTER (WHERE e.watched)
      INTO buried, topics, keys, tokens FROM ended e;
    PERFORM free_slots(w.token, array_agg(w.topic)) FROM unnest(tokens, topics) AS w (token, topic) WHERE w.token IS NOT NULL GROUP BY w.token;
    PERFORM follow_events('{}', topics, keys);
    RETURN QUERY SELECT unnest(buried);
END $$;
COMMENT ON FUNCTION bury_{items}(bigint[], text) IS 'Moves waiting or leased {items} to error. Internal: who calls it has locked them or is allowed to.';

CREATE OR REPLACE FUNCTION fail_{items}(ids bigint[], lease_token uuid, error text, retryable boolean DEFAULT true, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean, status text, run_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    tried     bigint[];
    exhausted bigint[];
    buried    bigint[];
    limited   text[];
    reason    text := left(coalesce(nullif(fail_{items}.error, ''), 'no reason given'), 2000);
BEGIN
    PERFORM require_argument(retryable, 'retryable');
    SELECT coalesce(array_agg(h.id) FILTER (WHERE retryable AND h.attempts < h.max_attempts), '{}'),
           coalesce(array_agg(h.id) FILTER (WHERE NOT retryable OR h.attempts >= h.max_attempts), '{}')
      INTO tried, exhausted FROM hold_{items}(ids, lease_token, now) h;
    SELECT coalesce(array_agg(b), '{}') INTO buried FROM bury_{items}(exhausted, reason) AS b;
    RETURN QUERY
    WITH due AS MATERIALIZED (
        SELECT q.id, clock_timestamp() + queue_retry_delay(q.attempts, random(), t.retry_base, t.retry_factor, t.retry_cap, t.retry_jitter) AS run_at
          FROM {queue}_live q LEFT JOIN event_topics t ON t.topic = q.topic WHERE q.id = ANY (tried)
    ), retried AS (
        UPDATE {queue}_live q
           SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, last_error = reason, updated_at = clock_timestamp(),
               run_at = d.run_at, deferred = true
          FROM due d WHERE q.id = d.id
        RETURNING q.id, q.run_at
    )
    SELECT i, i = ANY (tried || exhausted), CASE WHEN i = ANY (buried) THEN 'error' WHEN i = ANY (tried || exhausted) THEN 'queued' END, r.run_at
      FROM unnest(ids) AS i LEFT JOIN retried r ON r.id = i;
    SELECT array_agg(q.topic) INTO limited FROM {queue}_live q WHERE q.id = ANY (tried) AND q.watched;
    PERFORM free_slots(fail_{items}.lease_token, limited);
END $$;
COMMENT ON FUNCTION fail_{items}(bigint[], uuid, text, boolean, timestamptz) IS
    'Records a failure. A retryable one goes back to queued after the retry delay of its topic, until attempts are used up; then, and at once if not retryable, it ends in error. held is false for each id whose lease was lost: nothing was changed for it.';

CREATE OR REPLACE FUNCTION extend_{items}(ids bigint[], lease_token uuid, ttl_seconds int DEFAULT 60, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean, lease_expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    mine   bigint[];
    expiry timestamptz := clock_timestamp() + make_interval(secs => ttl_seconds);
BEGIN
    PERFORM check_ttl(ttl_seconds);
    SELECT coalesce(array_agg(h.id), '{}') INTO mine FROM hold_{items}(ids, lease_token, now) h;
    UPDATE topic_slots s SET expires_at = greatest(s.expires_at, expiry) WHERE s.lease_token = extend_{items}.lease_token AND mine <> '{}';
    RETURN QUERY
    WITH extended AS (
        UPDATE {queue}_live q SET lease_expires_at = greatest(q.lease_expires_at, expiry) WHERE q.id = ANY (mine) RETURNING q.id, q.lease_expires_at
    )
    SELECT i, e.id IS NOT NULL, e.lease_expires_at FROM unnest(ids) AS i LEFT JOIN extended e ON e.id = i;
END $$;
COMMENT ON FUNCTION extend_{items}(bigint[], uuid, int, timestamptz) IS
    'Lengthens leases that are still held to ttl_seconds from now. held is false for each id whose lease was lost.';

CREATE OR REPLACE FUNCTION release_{items}(ids bigint[], lease_token uuid, now timestamptz DEFAULT clock_timestamp())
RETURNS TABLE (id bigint, held boolean)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    mine    bigint[];
    limited text[];
BEGIN
    SELECT coalesce(array_agg(h.id), '{}') INTO mine FROM hold_{items}(ids, lease_token, now) h;
    WITH released AS (
        UPDATE {queue}_live q
           SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, attempts = q.attempts - 1, updated_at = clock_timestamp()
         WHERE q.id = ANY (mine)
        RETURNING q.topic, q.watched
    )
    SELECT array_agg(r.topic) INTO limited FROM released r WHERE r.watched;
    PERFORM free_slots(release_{items}.lease_token, limited);
    RETURN QUERY SELECT i, i = ANY (mine) FROM unnest(ids) AS i;
END $$;
COMMENT ON FUNCTION release_{items}(bigint[], uuid, timestamptz) IS
    'Gives leased {items} back untouched; the attempt does not count. Used by a worker that shuts down.';

CREATE OR REPLACE FUNCTION requeue_{items}(ids bigint[])
RETURNS TABLE (id bigint, requeued boolean, status text)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    moved  bigint[];
    topics text[];
    keys   text[];
    freed  bigint[];
BEGIN
    PERFORM check_ids(ids);
    PERFORM lock_keys(array_agg(e.topic), array_agg(e.ordering_key)) FROM {queue}_error e WHERE e.id = ANY (ids) AND e.ordering_key IS NOT NULL;
    WITH failed AS (
        DELETE FROM {queue}_error q WHERE q.id = ANY (ids) RETURNING q.*
    ), requeued AS (
        -- One of an ordering key gets in line behind those that run now; its id puts it before those that wait.
        INSERT INTO {queue}_live (id, turn_at, created_at, priority, max_attempts, waits, deferred, watched, topic, ordering_key, idempotency_key, last_error, {columns})
        SELECT e.id, clock_timestamp() + e.priority * interval '30 seconds', e.created_at, e.priority, e.max_attempts, w.ct, w.ct > 0, e.ordering_key IS NOT NULL,
               e.topic, e.ordering_key, e.idempotency_key, e.last_error, {ended_columns}
          FROM failed e, LATERAL (
                SELECT CASE WHEN e.ordering_key IS NOT NULL THEN 1 ELSE count(*) END AS ct FROM event_parents p WHERE p.child_id = e.id) w
    ), counted AS (
        INSERT INTO event_tally (topic, status, ct) SELECT e.topic, 'error', -count(*) FROM failed e GROUP BY e.topic
    )
    SELECT coalesce(array_agg(e.id), '{}'), array_agg(e.topic) FILTER (WHERE e.ordering_key IS NOT NULL),
           array_agg(e.ordering_key) FILTER (WHERE e.ordering_key IS NOT NULL)
      INTO moved, topics, keys FROM failed e;
    PERFORM watch_parents(moved);
    PERFORM follow_events('{}', topics, keys);
    WITH stuck AS MATERIALIZED (
        SELECT q.id FROM {queue}_live q
         WHERE q.id = ANY (ids) AND q.status = '{leased}' AND q.lease_expires_at < clock_timestamp() ORDER BY q.id FOR UPDATE
    ), requeued AS (
        UPDATE {queue}_live q SET status = 'queued', lease_token = NULL, lease_expires_at = NULL, updated_at = clock_timestamp()
          FROM stuck s WHERE q.id = s.id RETURNING q.id
    )
    SELECT coalesce(array_agg(r.id), '{}') INTO freed FROM requeued r;
    IF moved || freed <> '{}' THEN
        INSERT INTO audit_log (action, subject, detail) VALUES ('requeue_{items}', '{queue}', jsonb_build_object('ids', moved || freed));
        PERFORM wake_workers('{wakes}');
    END IF;
    RETURN QUERY SELECT i, i = ANY (moved || freed), q.status FROM unnest(ids) AS i LEFT JOIN {queue} q ON q.id = i;
END $$;
COMMENT ON FUNCTION requeue_{items}(bigint[]) IS
    'Puts {items} that ended in error, or whose lease has expired, back to queued; failed ones start with all their attempts. Others are left as they are. Written to audit_log.';

CREATE OR REPLACE FUNCTION cancel_{items}(ids bigint[], reason text DEFAULT NULL)
RETURNS TABLE (id bigint, cancelled boolean, status text)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    locked bigint[];
    behind bigint[];
    ended  bigint[];
BEGIN
    PERFORM check_ids(ids);
    -- Rows first and their ordering keys next, as an acknowledgement does; those that wait for their turn only after that, as
    -- whoever lets them pass holds the key already.
    SELECT coalesce(array_agg(l.id), '{}') INTO locked
      FROM (SELECT q.id FROM {queue}_live q WHERE q.id = ANY (ids) AND (q.waits = 0 OR q.ordering_key IS NULL) ORDER BY q.id FOR UPDATE) l;
    PERFORM lock_keys(array_agg(q.topic), array_agg(q.ordering_key)) FROM {queue}_live q WHERE q.id = ANY (ids) AND q.ordering_key IS NOT NULL;
    SELECT coalesce(array_agg(l.id), '{}') INTO behind
      FROM (SELECT q.id FROM {queue}_live q WHERE q.id = ANY (ids) AND q.ordering_key IS NOT NULL ORDER BY q.id FOR UPDATE SKIP LOCKED) l;
    UPDATE {queue}_live q SET again = false WHERE q.id = ANY (locked || behind) AND q.again;
    SELECT coalesce(array_agg(b), '{}') INTO ended
      FROM bury_{items}(locked || behind, concat_ws(': ', 'cancelled by ' || session_user, cancel_{items}.reason)) AS b;
    IF ended <> '{}' THEN
        INSERT INTO audit_log (action, subject, detail) VALUES ('cancel_{items}', '{queue}', jsonb_build_object('ids', ended, 'reason', cancel_{items}.reason));
    END IF;
    RETURN QUERY SELECT i, i = ANY (ended), q.status FROM unnest(ids) AS i LEFT JOIN {queue} q ON q.id = i;
END $$;
COMMENT ON FUNCTION cancel_{items}(bigint[], text) IS
    'Ends waiting or leased {items} in error; whoever holds a lease on one loses it. One whose work is about to commit is waited for, and then is done. Written to audit_log.';

CREATE OR REPLACE FUNCTION discard_{items}(ids bigint[], reason text DEFAULT NULL)
RETURNS TABLE (id bigint, discarded boolean)
LANGUAGE plpgsql SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    gone bigint[];
BEGIN
    PERFORM check_ids(ids);
    WITH dropped AS (
        DELETE FROM {queue}_error q WHERE q.id = ANY (ids) RETURNING q.id, q.topic, q.idempotency_key
    ), unnamed AS (
        DELETE FROM event_keys k USING dropped d WHERE k.topic = d.topic AND k.idempotency_key = d.idempotency_key AND k.event_id = d.id
    ), counted AS (
        INSERT INTO event_tally (topic, status, ct) SELECT d.topic, 'error', -count(*) FROM dropped d GROUP BY d.topic
    )
    SELECT coalesce(array_agg(d.id), '{}') INTO gone FROM dropped d;
    IF gone <> '{}' THEN
        PERFORM orphan_events(gone);
        INSERT INTO audit_log (action, subject, detail) VALUES ('discard_{items}', '{queue}', jsonb_build_object('ids', gone, 'reason', discard_{items}.reason));
    END IF;
    RETURN QUERY SELECT i, i = ANY (gone) FROM unnest(ids) AS i;
END $$;
COMMENT ON FUNCTION discard_{items}(bigint[], text) IS
    'Deletes {items} that ended in error. Events that wait for one of them end in error. Written to audit_log.';

CREATE OR REPLACE FUNCTION expire_{items}(max_items int DEFAULT 10000, now timestamptz DEFAULT clock_timestamp()) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    shortest interval := (SELECT min(t.keep_done) FROM event_topics t);
    gone     bigint[];
    expired  bigint;
BEGIN
    PERFORM require_valid(max_items BETWEEN 1 AND 1000000, format('max_items %s is out of range', max_items), 'Delete 1 to 1000000 at a time.');
    -- The block ranges that were added since are summarized, so that the old rows are found without reading the new ones.
    PERFORM brin_summarize_new_values('{queue}_done_range_idx');
    WITH old AS (
        DELETE FROM {queue}_done q WHERE q.ctid = ANY (ARRAY(
            SELECT d.ctid FROM {queue}_done d JOIN event_topics t ON t.topic = d.topic
             WHERE d.updated_at < expire_{items}.now - shortest AND d.updated_at < expire_{items}.now - t.keep_done
             LIMIT max_items FOR UPDATE OF d SKIP LOCKED))
        RETURNING q.id, q.topic, q.status, q.idempotency_key
    ), unnamed AS (
        DELETE FROM event_keys k USING old o WHERE k.topic = o.topic AND k.idempotency_key = o.idempotency_key AND k.event_id = o.id
    ), counted AS (
        INSERT INTO event_tally (topic, status, ct) SELECT o.topic, o.status, -count(*) FROM old o GROUP BY o.topic, o.status
    )
    SELECT count(*) INTO expired FROM old;
    IF expired < max_items THEN
        WITH old AS (
            DELETE FROM {queue}_error q WHERE q.id = ANY (ARRAY(
                SELECT d.id FROM {queue}_error d JOIN event_topics t ON t.topic = d.topic WHERE d.updated_at < expire_{items}.now - t.keep_error
                 ORDER BY d.updated_at LIMIT max_items - expired FOR UPDATE OF d SKIP LOCKED))
            RETURNING q.id, q.topic, q.status, q.idempotency_key
        ), unnamed AS (
            DELETE FROM event_keys k USING old o WHERE k.topic = o.topic AND k.idempotency_key = o.idempotency_key AND k.event_id = o.id
        ), counted AS (
            INSERT INTO event_tally (topic, status, ct) SELECT o.topic, o.status, -count(*) FROM old o GROUP BY o.topic, o.status
        )
        SELECT coalesce(array_agg(o.id), '{}') INTO gone FROM old o;
        PERFORM orphan_events(gone);
        expired := expired + cardinality(gone);
    END IF;
    DELETE FROM key_pace p WHERE p.ctid = ANY (ARRAY(
        SELECT o.ctid FROM key_pace o WHERE o.next_at < expire_{items}.now - interval '1 minute' LIMIT max_items FOR UPDATE SKIP LOCKED));
    RETURN expired;
END $$;
COMMENT ON FUNCTION expire_{items}(int, timestamptz) IS
    'Deletes up to max_items ended {items} that are older than their topic keeps them, with their keys, and returns how many. Call it again until it returns less; workers do.';
