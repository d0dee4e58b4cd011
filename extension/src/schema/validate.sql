CREATE FUNCTION steward_schema_validate()
RETURNS TABLE (level text, kind text, object text, fault text, expected text, actual text, hint text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
BEGIN
    RETURN QUERY
    SELECT CASE WHEN s.state = 'pending' THEN 'warn' ELSE 'error' END, 'file', s.name,
           CASE s.state WHEN 'changed' THEN 'edited' ELSE s.state END, s.checksum, s.applied_checksum,
           CASE WHEN s.state = 'newer' THEN 'Install the newer extension on this server.'
                WHEN s.state = 'changed' AND s.kind = 'migration' THEN 'Restore the file; put the change into a new migration.'
                ELSE 'SELECT * FROM steward_migrate();' END
      FROM steward_schema_status() s WHERE s.state <> 'applied';
    -- What a pending file would make is not missing yet.
    IF EXISTS (SELECT FROM steward_schema_status() s WHERE s.state = 'pending') THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH compared AS (
        SELECT coalesce(e.kind, a.kind) AS kind, coalesce(e.object, a.object) AS object, e.definition AS expected, a.definition AS actual,
               e.object IS NOT NULL AS wanted, a.object IS NOT NULL AS found
          FROM steward_catalogue_expected() e FULL JOIN steward_catalogue() a ON a.kind = e.kind AND a.object = e.object
    )
    SELECT CASE WHEN c.wanted OR c.kind IN ('trigger', 'policy') OR c.actual LIKE '%INVALID' THEN 'error' ELSE 'warn' END, c.kind, c.object,
           CASE WHEN NOT c.found THEN 'missing' WHEN c.actual LIKE '%INVALID' THEN 'invalid' WHEN NOT c.wanted THEN 'unexpected' ELSE 'altered' END,
           c.expected, c.actual,
           CASE WHEN c.kind = 'index' AND c.actual LIKE '%INVALID' THEN format('REINDEX INDEX CONCURRENTLY %s;', split_part(c.object, '.', 2))
                WHEN NOT c.wanted THEN 'Not made by the migrations: drop it, or keep it knowingly.'
                WHEN c.kind IN ('function', 'trigger', 'policy', 'view') THEN format('SELECT * FROM steward_migrate(); makes the %s again.', c.kind)
                WHEN c.kind = 'index' THEN c.expected || ';'
                WHEN c.kind = 'constraint' THEN format('ALTER TABLE %s ADD CONSTRAINT %s %s;', split_part(c.object, '.', 1), split_part(c.object, '.', 2), c.expected)
                ELSE format('Make the %s as expected.', c.kind) END
      FROM compared c
     WHERE NOT c.wanted OR NOT c.found OR c.expected <> c.actual OR c.actual LIKE '%INVALID'
     ORDER BY 1, 2, 3;
END $$;
COMMENT ON FUNCTION steward_schema_validate() IS
    'Every difference between the catalogue and what the extension''s files make: missing, altered, invalid and unexpected tables, columns, indexes, constraints, triggers, policies, views and functions, and edited or pending files. No row: the schema is as it should be.';
