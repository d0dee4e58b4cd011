CREATE FUNCTION steward_schema_report()
RETURNS TABLE (table_name text, row_count bigint, columns bigint, indexes bigint, constraints bigint, triggers bigint, policies bigint,
               row_security boolean, total_bytes bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
DECLARE
    ours regclass;
BEGIN
    FOR ours IN
        SELECT format('%I.%I', steward_schema(), e.object)::regclass FROM steward_catalogue_expected() e
         WHERE e.kind = 'table' AND to_regclass(format('%I.%I', steward_schema(), e.object)) IS NOT NULL ORDER BY e.object
    LOOP
        SELECT c.relname, (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = ours AND a.attnum > 0 AND NOT a.attisdropped),
               (SELECT count(*) FROM pg_index i WHERE i.indrelid = ours),
               (SELECT count(*) FROM pg_constraint k WHERE k.conrelid = ours AND k.contype <> 'n'),
               (SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = ours AND NOT t.tgisinternal),
               (SELECT count(*) FROM pg_policy p WHERE p.polrelid = ours), c.relrowsecurity, pg_total_relation_size(ours)
          INTO table_name, columns, indexes, constraints, triggers, policies, row_security, total_bytes
          FROM pg_class c WHERE c.oid = ours;
        -- A standby has no rows of what is not logged, and may not look.
        row_count := 0;
        IF NOT (pg_is_in_recovery() AND EXISTS (SELECT FROM pg_class c WHERE c.oid = ours AND c.relpersistence = 'u')) THEN
            EXECUTE format('SELECT count(*) FROM %s', ours) INTO row_count;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION steward_schema_report() IS
    'Every table with its exact number of rows, its columns, indexes, constraints, triggers and policies, and its size. Counts every row: for a monthly report, not for a dashboard.';

CREATE FUNCTION steward_schema_stats()
RETURNS TABLE (table_name text, estimated_rows bigint, dead_rows bigint, table_bytes bigint, index_bytes bigint, total_bytes bigint,
               bloat_bytes bigint, bloat_ratio double precision, last_vacuum timestamptz, last_analyze timestamptz)
LANGUAGE sql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
    WITH sized AS (
        SELECT c.oid, c.relname::text AS name, coalesce(nullif(s.n_live_tup, 0), greatest(c.reltuples, 0))::bigint AS live, coalesce(s.n_dead_tup, 0) AS dead,
               pg_table_size(c.oid) AS heap, pg_relation_size(c.oid) AS main, pg_indexes_size(c.oid) AS index,
               coalesce(substring(array_to_string(c.reloptions, ',') FROM 'fillfactor=(\d+)')::int, 100) / 100.0 AS fill,
               (SELECT sum(st.avg_width) FROM pg_stats st WHERE st.schemaname = steward_schema() AND st.tablename = c.relname) AS width,
               greatest(s.last_vacuum, s.last_autovacuum) AS vacuumed, greatest(s.last_analyze, s.last_autoanalyze) AS analyzed
          FROM steward_catalogue_expected() e
          JOIN pg_class c ON c.relname = e.object AND c.relnamespace = quote_ident(steward_schema())::regnamespace
          LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
         WHERE e.kind = 'table'
    ), estimated AS (
        -- A row costs its values, its header of 24 bytes and its line pointer of 4.
        SELECT *, CASE WHEN width IS NULL THEN 0 ELSE greatest(0, main - ceil(live * (width + 28) / fill / 8152) * 8192) END::bigint AS bloat FROM sized
    )
    SELECT name, live, dead, heap, index, heap + index, bloat, CASE WHEN main = 0 THEN 0 ELSE bloat::double precision / main END, vacuumed, analyzed
      FROM estimated ORDER BY heap + index DESC, name
$$;
COMMENT ON FUNCTION steward_schema_stats() IS
    'Every table once, largest first: rows as the statistics estimate them, dead rows, bytes of table and indexes, and the space that vacuuming or rewriting could free (an estimate from average widths; 0 before the first ANALYZE).';
