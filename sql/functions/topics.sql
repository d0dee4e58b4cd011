-- Topics: registering, rules, states, and the limits that their leases keep.

CREATE OR REPLACE FUNCTION check_topic(topic text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_argument(topic, 'topic');
    PERFORM require_valid(topic ~ '^[a-z0-9][a-z0-9._-]{0,99}$', format('topic "%s" is not a valid name', left(topic, 200)),
        'Use up to 100 lower-case letters, digits, dots, dashes and underscores.');
END $$;
COMMENT ON FUNCTION check_topic(text) IS 'Raises 22004 or 22023 unless the topic is a valid name.';

CREATE OR REPLACE FUNCTION register_topic(topic text, handler regproc DEFAULT NULL, max_attempts int DEFAULT 5, description text DEFAULT '') RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    handler_name text;
BEGIN
    PERFORM check_topic(topic);
    PERFORM require_valid(topic <> 'marketplace.discovery', 'topic "marketplace.discovery" is that of marketplace_discovery_queue',
        'Its rules are set by configure_topic(); choose another name for events.');
    PERFORM require_valid(max_attempts BETWEEN 1 AND 100, format('max_attempts %s is out of range', max_attempts), 'Give 1 to 100.');
    IF handler IS NOT NULL THEN
        SELECT format('%I.%I', n.nspname, p.proname) INTO handler_name
          FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE p.oid = handler AND p.prokind = 'f' AND p.proretset
           AND p.proargtypes = ARRAY['bigint[]'::regtype, 'jsonb[]'::regtype]::oidvector
           AND p.proargnames[3:] IN (ARRAY['event_id', 'error', 'retryable'], ARRAY['event_id', 'error', 'retryable', 'result']);
        PERFORM require_valid(handler_name IS NOT NULL, format('%s cannot handle events', handler),
            'A handler is a function (ids bigint[], payloads jsonb[]) RETURNS TABLE (event_id bigint, error text, retryable boolean), if wanted with a fourth column result jsonb.',
            'invalid_function_definition');
    END IF;
    INSERT INTO event_topics AS t (topic, handler, max_attempts, description)
    VALUES (register_topic.topic, handler_name, register_topic.max_attempts, coalesce(register_topic.description, ''))
    ON CONFLICT ON CONSTRAINT event_topics_pkey
    DO UPDATE SET handler = excluded.handler, max_attempts = excluded.max_attempts, description = excluded.description, registered = true;
    INSERT INTO audit_log (action, subject, detail) VALUES ('register_topic', topic, jsonb_build_object('handler', handler_name));
END $$;
COMMENT ON FUNCTION register_topic(text, regproc, int, text) IS
    'Makes a topic known and names the function that handles it. The handler is called with the ids and payloads of a batch, in one transaction with the acknowledgement, and returns a row (event_id, error, retryable) for each event that failed. Without a handler, events are leased by the name of the topic only: for applications that do the work themselves. Registering again replaces.';

CREATE OR REPLACE FUNCTION configure_topic(topic text, settings jsonb) RETURNS SETOF event_topics
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    known   text[] := '{max_attempts,retry_base,retry_factor,retry_cap,retry_jitter,rearm,max_payload_bytes,max_leased,rate_limit,rate_window,key_concurrency,key_interval,keep_done,keep_error}';
    unknown text;
    changes text;
BEGIN
    PERFORM check_topic(topic), require_argument(settings, 'settings');
    PERFORM require_valid(jsonb_typeof(settings) = 'object' AND settings <> '{}', 'settings must be a JSON object with at least one setting',
        'For example {"max_leased": 5, "keep_done": "1 day"}.');
    SELECT k INTO unknown FROM jsonb_object_keys(settings) k WHERE k <> ALL (known) LIMIT 1;
    PERFORM require_valid(unknown IS NULL, format('there is no setting "%s" of a topic', unknown), 'Settings are: ' || array_to_string(known, ', ') || '.');
    SELECT string_agg(CASE WHEN value = 'null' THEN format('%I = DEFAULT', key)
                           ELSE format('%I = %L::%s', key, value #>> '{}', (SELECT format_type(a.atttypid, NULL) FROM pg_attribute a
                                       WHERE a.attrelid = 'event_topics'::regclass AND a.attname = key)) END, ', ')
      INTO changes FROM jsonb_each(settings) AS s (key, value);
    BEGIN
        RETURN QUERY EXECUTE format('UPDATE event_topics SET %s WHERE topic = $1 RETURNING *', changes) USING topic;
    EXCEPTION WHEN check_violation OR data_exception OR numeric_value_out_of_range THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('a setting of topic "%s" is out of range', topic), DETAIL = SQLERRM,
            HINT = 'SELECT col_description(''event_topics''::regclass, attnum), attname FROM pg_attribute WHERE attrelid = ''event_topics''::regclass says what each is.';
    END;
    PERFORM require_valid(FOUND, format('there is no topic "%s"', topic), 'Register it: SELECT register_topic(''' || topic || ''').', 'undefined_object');
    INSERT INTO topic_usage (topic, tokens, refilled_at)
    SELECT t.topic, coalesce(t.rate_limit, 0), clock_timestamp() FROM event_topics t WHERE t.topic = configure_topic.topic ON CONFLICT DO NOTHING;
    INSERT INTO audit_log (action, subject, detail) VALUES ('configure_topic', topic, settings);
END $$;
COMMENT ON FUNCTION configure_topic(text, jsonb) IS
    'Changes rules of a topic and returns its row; null sets one back to its default. Settings: max_attempts, retry_base, retry_factor, retry_cap, retry_jitter, rearm, max_payload_bytes, max_leased, rate_limit, rate_window, key_concurrency, key_interval, keep_done, keep_error; they are described at the columns of event_topics.';

CREATE OR REPLACE FUNCTION set_topic_state(topic text, state text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    before text;
BEGIN
    PERFORM check_topic(topic);
    SELECT t.state INTO before FROM event_topics t WHERE t.topic = set_topic_state.topic FOR UPDATE;
    PERFORM require_valid(FOUND, format('there is no topic "%s"', topic), 'SELECT topic, state FROM event_topics; lists them.', 'undefined_object');
    UPDATE event_topics t SET state = set_topic_state.state WHERE t.topic = set_topic_state.topic;
    INSERT INTO audit_log (action, subject, detail) VALUES ('set_topic_state', topic, jsonb_build_object('before', before, 'after', state));
    PERFORM wake_workers(CASE topic WHEN 'marketplace.discovery' THEN 'discovery' ELSE 'events' END);
    RETURN before;
END $$;
COMMENT ON FUNCTION set_topic_state(text, text) IS 'Internal: pause_topic(), resume_topic() and drain_topic() say it in words.';

CREATE OR REPLACE FUNCTION pause_topic(topic text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN set_topic_state(topic, 'paused');
END $$;
COMMENT ON FUNCTION pause_topic(text) IS
    'From now on nothing of the topic is leased; what is leased already may be finished. Enqueueing goes on. Returns the state before (active, paused, draining). "marketplace.discovery" is the discovery queue.';

CREATE OR REPLACE FUNCTION resume_topic(topic text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN set_topic_state(topic, 'active');
END $$;
COMMENT ON FUNCTION resume_topic(text) IS 'Ends a pause or a drain. Returns the state before.';

CREATE OR REPLACE FUNCTION drain_topic(topic text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN set_topic_state(topic, 'draining');
END $$;
COMMENT ON FUNCTION drain_topic(text) IS 'From now on the topic accepts nothing new; what waits is worked off. Returns the state before.';

CREATE OR REPLACE FUNCTION topic_room(lane text, wanted int, patient boolean) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    rules  event_topics;
    spare  topic_usage;
    moment timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM topic_usage u WHERE u.topic = lane) THEN
        IF NOT pg_try_advisory_xact_lock(hashtextextended('topic_usage ' || lane, 7)) THEN
            RETURN 0;  -- another one makes it at this moment
        END IF;
        INSERT INTO topic_usage (topic, tokens, refilled_at) SELECT t.topic, coalesce(t.rate_limit, 0), clock_timestamp() FROM event_topics t WHERE t.topic = lane ON CONFLICT DO NOTHING;
    END IF;
    IF patient THEN
        SELECT u.* INTO spare FROM topic_usage u WHERE u.topic = lane FOR UPDATE;
    ELSE
        SELECT u.* INTO spare FROM topic_usage u WHERE u.topic = lane FOR UPDATE SKIP LOCKED;
    END IF;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    SELECT t.* INTO rules FROM event_topics t WHERE t.topic = lane;
    moment := clock_timestamp();
    IF rules.max_leased IS NOT NULL THEN
        -- A lease that has expired counts no more, unless its work goes on: then hold has locked its slot.
        DELETE FROM topic_slots s WHERE s.ctid = ANY (ARRAY(
            SELECT o.ctid FROM topic_slots o WHERE o.topic = lane AND (o.ct <= 0 OR o.expires_at < moment) FOR UPDATE SKIP LOCKED));
        wanted := least(wanted, rules.max_leased - (SELECT coalesce(sum(s.ct), 0) FROM topic_slots s WHERE s.topic = lane AND s.ct > 0));
    END IF;
    IF rules.rate_limit IS NOT NULL THEN
        spare.tokens := least(rules.rate_limit, spare.tokens + rules.rate_limit
            * greatest(extract(epoch FROM moment - spare.refilled_at) / extract(epoch FROM rules.rate_window), 0));
        UPDATE topic_usage u SET tokens = spare.tokens, refilled_at = greatest(moment, spare.refilled_at) WHERE u.topic = lane;
        wanted := least(wanted, floor(spare.tokens)::int);
    END IF;
    RETURN wanted;
END $$;
COMMENT ON FUNCTION topic_room(text, int, boolean) IS
    'How many of a limited topic may be leased now, up to wanted; the answer holds until the end of the transaction. If another lease of the topic has not committed, a patient caller waits and another gets 0. Internal.';

CREATE OR REPLACE FUNCTION topic_took(lane text, taken int, token uuid, expiry timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO topic_slots AS s (lease_token, topic, ct, expires_at) VALUES (token, lane, taken, expiry)
    ON CONFLICT ON CONSTRAINT topic_slots_pkey DO UPDATE SET ct = s.ct + excluded.ct;
    UPDATE topic_usage u SET tokens = u.tokens - taken WHERE u.topic = lane;
END $$;
COMMENT ON FUNCTION topic_took(text, int, uuid, timestamptz) IS 'Notes what was leased of a limited topic. Internal.';

CREATE OR REPLACE FUNCTION free_slots(token uuid, topics text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF topics IS NOT NULL AND token IS NOT NULL THEN
        UPDATE topic_slots s SET ct = s.ct - e.ct
          FROM (SELECT t.topic, count(*) AS ct FROM unnest(topics) AS t (topic) GROUP BY t.topic) e
         WHERE s.lease_token = token AND s.topic = e.topic;
    END IF;
END $$;
COMMENT ON FUNCTION free_slots(uuid, text[]) IS 'Gives back what a lease held of limited topics. Internal.';
