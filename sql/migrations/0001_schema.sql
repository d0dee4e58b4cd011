-- What has been applied to this database, and who did what to it by hand.

CREATE TABLE schema_migrations (
    name        text PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('migration', 'function', 'view', 'access')),
    checksum    text NOT NULL,
    version     text NOT NULL,
    duration_ms double precision NOT NULL CHECK (duration_ms >= 0),
    applied_at  timestamptz NOT NULL DEFAULT now(),
    applied_by  text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE schema_migrations IS
    'Every SQL file that steward_migrate() has applied. Migrations are frozen once applied; functions, views and access rules are applied again when they change.';
COMMENT ON COLUMN schema_migrations.name IS 'Path of the file inside the extension, such as migrations/0001_schema.sql';
COMMENT ON COLUMN schema_migrations.kind IS 'migration (applied once), function, view or access (applied again when changed)';
COMMENT ON COLUMN schema_migrations.checksum IS 'SHA-256 of the file as applied, in hexadecimal';
COMMENT ON COLUMN schema_migrations.version IS 'Version of the extension that applied it';
COMMENT ON COLUMN schema_migrations.duration_ms IS 'How long it took, in milliseconds';
COMMENT ON COLUMN schema_migrations.applied_at IS 'When it was applied last';
COMMENT ON COLUMN schema_migrations.applied_by IS 'The session user who applied it';

CREATE TABLE audit_log (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor   text NOT NULL DEFAULT session_user,
    action  text NOT NULL,
    subject text NOT NULL,
    detail  jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_subject_idx ON audit_log (subject, at);
COMMENT ON TABLE audit_log IS 'Interventions by hand: who requeued, registered or marked what, and when.';
COMMENT ON COLUMN audit_log.id IS 'Order of the entries';
COMMENT ON COLUMN audit_log.at IS 'When it happened';
COMMENT ON COLUMN audit_log.actor IS 'The session user who did it';
COMMENT ON COLUMN audit_log.action IS 'The function that was called, such as requeue_events';
COMMENT ON COLUMN audit_log.subject IS 'What it was done to, such as a table or a topic';
COMMENT ON COLUMN audit_log.detail IS 'Ids and arguments';
