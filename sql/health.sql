-- steward_health: the union of the health_<domain> views, so that a domain joins it by having one.

DO $$
BEGIN
    EXECUTE (
        SELECT 'CREATE OR REPLACE VIEW steward_health AS SELECT * FROM ('
            || string_agg(format('SELECT check_name, level, subject, value, threshold, detail, hint FROM %I', viewname), ' UNION ALL ' ORDER BY viewname)
            || ') AS checks ORDER BY array_position(ARRAY[''error'', ''warn'', ''ok''], level), check_name, subject'
          FROM pg_views WHERE schemaname = current_schema AND viewname LIKE 'health\_%');
END $$;
COMMENT ON VIEW steward_health IS
    'Every check of every domain, worst first: read it first. A row says what was checked, its level (ok, warn, error), on what, the value, its threshold, details, and what to run next.';
COMMENT ON COLUMN steward_health.check_name IS 'domain.check';
COMMENT ON COLUMN steward_health.level IS 'ok, warn or error';
COMMENT ON COLUMN steward_health.subject IS 'What was checked: a topic, a table, a worker';
COMMENT ON COLUMN steward_health.value IS 'What was found; seconds for ages, otherwise a count';
COMMENT ON COLUMN steward_health.threshold IS 'Where it turns into an error';
COMMENT ON COLUMN steward_health.detail IS 'The finding in words';
COMMENT ON COLUMN steward_health.hint IS 'What to do about it';
