-- Health of the schema.

CREATE OR REPLACE VIEW health_schema (check_name, level, subject, value, threshold, detail, hint) AS
SELECT 'schema.files', CASE WHEN count(*) FILTER (WHERE state <> 'applied') > 0 THEN 'error' ELSE 'ok' END, 'schema_migrations',
       count(*) FILTER (WHERE state <> 'applied')::double precision, 0::double precision,
       format('%s files applied, %s not', count(*) FILTER (WHERE state = 'applied'), count(*) FILTER (WHERE state <> 'applied')),
       CASE WHEN count(*) FILTER (WHERE state <> 'applied') > 0 THEN 'SELECT * FROM steward_schema_status() WHERE state <> ''applied''; then steward_migrate().' END
  FROM steward_schema_status();
COMMENT ON VIEW health_schema IS 'The checks of the schema, for steward_health';
