CREATE FUNCTION steward_schema() RETURNS name
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pgsteward'
$$;
COMMENT ON FUNCTION steward_schema() IS 'The schema that the extension was created in, where everything of it lives.';

CREATE FUNCTION steward_schema_status()
RETURNS TABLE (name text, kind text, state text, checksum text, applied_checksum text, version text,
               duration_ms double precision, applied_at timestamptz, applied_by text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
BEGIN
    IF to_regclass(format('%I.schema_migrations', steward_schema())) IS NULL THEN
        RETURN QUERY
        SELECT f.name, f.kind, 'pending', f.checksum, NULL::text, NULL::text, NULL::double precision, NULL::timestamptz, NULL::text
          FROM steward_files() f;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT coalesce(f.name, m.name), coalesce(f.kind, m.kind),
           CASE WHEN m.name IS NULL THEN 'pending' WHEN f.name IS NULL THEN 'newer'
                WHEN m.checksum <> f.checksum THEN 'changed' ELSE 'applied' END,
           f.checksum, m.checksum, m.version, m.duration_ms, m.applied_at, m.applied_by
      FROM steward_files() WITH ORDINALITY AS f(name, kind, checksum, body, n)
      FULL JOIN schema_migrations m ON m.name = f.name
     ORDER BY f.n NULLS LAST, m.name;
END $$;
COMMENT ON FUNCTION steward_schema_status() IS
    'Every file of the extension in order, and whether it is applied, pending, changed (the text differs from what was applied) or newer (applied by a newer extension and unknown to this one).';

CREATE FUNCTION steward_migrate()
RETURNS TABLE (file text, kind text, action text, duration_ms double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, @extschema@, pg_temp SET client_min_messages = warning SET check_function_bodies = off AS $$
#variable_conflict use_column
DECLARE
    step       record;
    began      timestamptz;
    took       double precision;
    anything   boolean := false;
    repair     boolean := false;
    said       text;
    said_code  text;
    said_more  text;
BEGIN
    -- Two callers: the second waits, and then finds nothing to do.
    PERFORM pg_advisory_xact_lock(hashtextextended('pgsteward:' || steward_schema(), 0));
    PERFORM set_config('search_path', format('%I, pg_temp', steward_schema()), true);

    FOR step IN SELECT s.name, s.kind FROM steward_schema_status() s WHERE s.kind = 'migration' AND s.state IN ('changed', 'newer') LIMIT 1 LOOP
        IF EXISTS (SELECT FROM steward_files() f WHERE f.name = step.name) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('%s was edited after it was applied', step.name),
                DETAIL = 'A migration is frozen once it is applied: editing it leaves old and new databases different.',
                HINT = 'Restore the file and put the change into a new migration. SELECT * FROM steward_schema_status() shows both checksums.';
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('the schema is newer than the extension: %s is unknown to version %s', step.name, steward_version()),
            HINT = 'Install the newer extension on this server, then run ALTER EXTENSION pgsteward UPDATE.';
    END LOOP;

    -- Whatever is not a migration can be made again: if some of it is gone or altered, as after dropping and creating the
    -- extension, all of it is.
    IF to_regclass('schema_migrations') IS NOT NULL THEN
        repair := EXISTS (
            SELECT FROM steward_catalogue_expected() e LEFT JOIN steward_catalogue() a ON a.kind = e.kind AND a.object = e.object
             WHERE e.kind IN ('function', 'view', 'trigger', 'policy') AND a.definition IS DISTINCT FROM e.definition);
    END IF;

    FOR step IN
        SELECT f.name, f.kind, f.checksum, f.body, f.n FROM steward_files() WITH ORDINALITY AS f(name, kind, checksum, body, n) ORDER BY f.n
    LOOP
        file := step.name;
        kind := step.kind;
        duration_ms := 0;
        -- A new object is not covered by health and access rules that have not run since.
        IF (step.kind = 'migration' OR NOT repair) AND (step.name NOT IN ('health.sql', 'access.sql') OR NOT anything)
           AND (SELECT s.state FROM steward_schema_status() s WHERE s.name = step.name) = 'applied' THEN
            action := 'unchanged';
            RETURN NEXT;
            CONTINUE;
        END IF;
        anything := true;
        began := clock_timestamp();
        BEGIN
            EXECUTE step.body;
            took := 1000 * extract(epoch FROM clock_timestamp() - began);
            action := CASE WHEN EXISTS (SELECT FROM schema_migrations m WHERE m.name = step.name) THEN 'reapplied' ELSE 'applied' END;
            INSERT INTO schema_migrations AS m (name, kind, checksum, version, duration_ms)
            VALUES (step.name, step.kind, step.checksum, steward_version(), took)
            ON CONFLICT ON CONSTRAINT schema_migrations_pkey DO UPDATE
               SET checksum = excluded.checksum, version = excluded.version, duration_ms = excluded.duration_ms,
                   applied_at = excluded.applied_at, applied_by = excluded.applied_by;
        EXCEPTION WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS said = MESSAGE_TEXT, said_code = RETURNED_SQLSTATE, said_more = PG_EXCEPTION_DETAIL;
            RAISE EXCEPTION USING ERRCODE = said_code, MESSAGE = format('%s failed: %s', step.name, said), DETAIL = said_more,
                HINT = 'Nothing was changed: all files of this call were undone. Mend the cause and call steward_migrate() again.';
        END;
        duration_ms := took;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION steward_migrate() IS
    'Applies pending migrations in order, then functions, views and access rules that changed, and returns a row per file: applied, reapplied or unchanged. All or nothing; safe to call at any time and by several at once. An edited migration (55000) or a schema newer than the extension (55000) is refused.';

CREATE FUNCTION steward_schema_functions() RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
    SELECT p.oid FROM pg_proc p
     WHERE p.pronamespace = quote_ident(steward_schema())::regnamespace
       AND p.proname IN (SELECT m[1] FROM steward_files() f, regexp_matches(f.body, '^CREATE OR REPLACE FUNCTION (\w+)\(', 'gn') AS m WHERE f.kind = 'function')
$$;
COMMENT ON FUNCTION steward_schema_functions() IS 'The SQL functions that the extension''s files make.';
