-- Settings of the business: reading the version that holds or held, and writing a new one.

CREATE OR REPLACE FUNCTION check_setting_key(key text) RETURNS setting_keys
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    known setting_keys;
BEGIN
    PERFORM require_argument(key, 'key');
    SELECT k.* INTO known FROM setting_keys k WHERE k.key = check_setting_key.key;
    PERFORM require_valid(FOUND, format('there is no setting "%s"', left(key, 200)),
        'Settings are: ' || coalesce((SELECT string_agg(k.key, ', ' ORDER BY k.key) FROM setting_keys k), 'none') || '.', 'undefined_object');
    RETURN known;
END $$;
COMMENT ON FUNCTION check_setting_key(text) IS 'The row of a setting in setting_keys; 22004 or 42704 if there is none. Internal.';

CREATE OR REPLACE FUNCTION setting(key text, at timestamptz DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_setting_key(key);
    RETURN (SELECT s.value FROM settings s WHERE s.key = setting.key AND (at IS NULL OR s.valid_from <= at) ORDER BY s.version DESC LIMIT 1);
END $$;
COMMENT ON FUNCTION setting(text, timestamptz) IS
    'The value of a setting: what holds, or what held at a time; NULL before its first version. A setting that is not known is an error (42704).';

CREATE OR REPLACE FUNCTION setting_version(key text, at timestamptz DEFAULT NULL) RETURNS int
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM check_setting_key(key);
    RETURN (SELECT max(s.version) FROM settings s WHERE s.key = setting_version.key AND (at IS NULL OR s.valid_from <= at));
END $$;
COMMENT ON FUNCTION setting_version(text, timestamptz) IS 'The version of a setting that holds, or held at a time; NULL before its first. What was decided by a version can be told later.';

CREATE OR REPLACE FUNCTION set_setting(key text, value jsonb, reason text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    known  setting_keys;
    before settings;
    made   int;
BEGIN
    known := check_setting_key(key);
    PERFORM require_argument(value, 'value'), require_argument(reason, 'reason');
    PERFORM require_valid(reason ~ '\S' AND length(reason) <= 500, 'the reason is empty or too long', 'Say why, in at most 500 characters.');
    PERFORM require_valid(pg_column_size(value) <= 100000, format('the value of "%s" is too large', key), 'A value has at most 100000 bytes.');
    IF known.validator IS NOT NULL THEN
        EXECUTE format('SELECT %s($1)', known.validator) USING value;
    END IF;
    -- One after the other, so that versions have no gaps and no two hold from the same time.
    PERFORM FROM setting_keys k WHERE k.key = set_setting.key FOR NO KEY UPDATE;
    SELECT s.* INTO before FROM settings s WHERE s.key = set_setting.key ORDER BY s.version DESC LIMIT 1;
    INSERT INTO settings AS s (key, version, value, valid_from, reason)
    VALUES (set_setting.key, coalesce(before.version, 0) + 1, set_setting.value,
            greatest(clock_timestamp(), before.valid_from + interval '1 microsecond'), set_setting.reason)
    RETURNING s.version INTO made;
    INSERT INTO audit_log (action, subject, detail)
    VALUES ('set_setting', key, jsonb_build_object('version', made, 'before', before.value, 'after', value, 'reason', reason));
    RETURN made;
END $$;
COMMENT ON FUNCTION set_setting(text, jsonb, text) IS
    'Gives a setting a new value from now on and returns its version. The value is checked first: what is not valid is an error (22023) and changes nothing. Older versions are kept. Written to audit_log.';
