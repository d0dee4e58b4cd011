-- Every object that the extension's files make, in words that are the same on all versions of PostgreSQL.
CREATE FUNCTION steward_catalogue()
RETURNS TABLE (kind text, object text, definition text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, @extschema@, pg_temp AS $$
DECLARE
    home oid := quote_ident(steward_schema())::regnamespace;
BEGIN
    -- Names of our own schema are written without it, so that the text does not depend on where the extension lives.
    PERFORM set_config('search_path', format('%I, pg_temp', steward_schema()), true);
    RETURN QUERY
    WITH ours AS MATERIALIZED (
        SELECT c.oid, c.relname::text, c.relkind, c.relrowsecurity, c.reloptions, c.relpartbound FROM pg_class c
         WHERE c.relnamespace = home AND c.relkind IN ('r', 'p', 'v', 'S')
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
           AND c.relname IN (SELECT split_part(e.object, '.', 1) FROM steward_catalogue_expected() e
                             UNION ALL
                             SELECT m[1] FROM steward_files() f, regexp_matches(f.body, '^CREATE (?:OR REPLACE )?(?:TABLE|VIEW|SEQUENCE) (\w+)', 'gn') AS m
                             UNION ALL SELECT 'steward_health')
    )
    SELECT o.kind, o.object, btrim(regexp_replace(o.definition, '\s+', ' ', 'g')) FROM (
    SELECT CASE o.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind, o.relname AS object,
           concat_ws(' ', CASE WHEN o.relkind = 'p' THEN 'partitioned by ' || pg_get_partkeydef(o.oid) END,
                     pg_get_expr(o.relpartbound, o.oid), CASE WHEN o.relrowsecurity THEN 'row security' END,
                     array_to_string(ARRAY(SELECT unnest(o.reloptions) ORDER BY 1), ', ')) AS definition
      FROM ours o
    UNION ALL
    SELECT 'column', o.relname || '.' || a.attname,
           concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
                     CASE WHEN a.attidentity <> '' THEN 'identity ' || a.attidentity::text END, 'default ' || pg_get_expr(d.adbin, d.adrelid))
      FROM ours o JOIN pg_attribute a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
      LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE o.relkind <> 'S'
    UNION ALL
    SELECT 'index', o.relname || '.' || i.indexrelid::regclass::text,
           concat_ws(' ', pg_get_indexdef(i.indexrelid, 0, true), CASE WHEN NOT i.indisvalid THEN 'INVALID' END)
      FROM ours o JOIN pg_index i ON i.indrelid = o.oid
    UNION ALL
    SELECT 'constraint', o.relname || '.' || c.conname,
           concat_ws(' ', pg_get_constraintdef(c.oid, true), CASE WHEN NOT c.convalidated THEN 'NOT VALID' END)
      FROM ours o JOIN pg_constraint c ON c.conrelid = o.oid AND c.contype <> 'n'
    UNION ALL
    SELECT 'trigger', o.relname || '.' || t.tgname,
           concat_ws(' ', pg_get_triggerdef(t.oid, true), CASE t.tgenabled WHEN 'O' THEN NULL ELSE 'enabled ' || t.tgenabled::text END)
      FROM ours o JOIN pg_trigger t ON t.tgrelid = o.oid AND NOT t.tgisinternal
    UNION ALL
    SELECT 'policy', o.relname || '.' || p.polname,
           concat_ws(' ', CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                     CASE WHEN NOT p.polpermissive THEN 'restrictive' END,
                     'to ' || array_to_string(ARRAY(SELECT pg_get_userbyid(r) FROM unnest(p.polroles) AS r ORDER BY 1), ', '),
                     'using ' || pg_get_expr(p.polqual, p.polrelid),
                     'with check ' || pg_get_expr(p.polwithcheck, p.polrelid))
      FROM ours o JOIN pg_policy p ON p.polrelid = o.oid
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text,
           concat_ws(' ', md5(p.prosrc), CASE WHEN p.prosecdef THEN 'security definer' END, 'volatility ' || p.provolatile::text)
      FROM pg_proc p WHERE p.oid IN (SELECT steward_schema_functions())
    ) AS o ORDER BY 1, 2;
END $$;
COMMENT ON FUNCTION steward_catalogue() IS
    'What the database has of the objects that the extension''s files make: tables, columns, indexes, constraints, triggers, policies, views and functions, each with its definition.';
