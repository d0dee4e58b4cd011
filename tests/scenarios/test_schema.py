"""Migrations, status, validation, reports; dump and restore."""

import os
import subprocess

import pytest
from conftest import ROOT, create_database, in_parallel, refused

TEMPLATE = "functions/queue.sql"  # made once for each queue
FILES = sorted(
    [str(p.relative_to(ROOT / "sql")) for p in (ROOT / "sql").rglob("*.sql") if not str(p).endswith(TEMPLATE)]
    + [f"{TEMPLATE} ({queue})" for queue in ("events_queue", "marketplace_discovery_queue")]
    + [str(p.relative_to(ROOT)) for p in (ROOT / "views").glob("*.sql")])


def test_migrate_applies_each_file_once(empty_db):
    empty_db.run("CREATE EXTENSION pgsteward")
    first = empty_db.run("SELECT * FROM steward_migrate()")
    assert {row.action for row in first} == {"applied"}
    assert sorted(row.file for row in first) == FILES
    again = empty_db.run("SELECT * FROM steward_migrate()")
    assert {row.action for row in again} == {"unchanged"}
    assert empty_db.run("SELECT * FROM steward_schema_validate()") == []


def test_migrate_from_the_shell(empty_db, pgsteward):
    first = pgsteward("migrate", url=empty_db.url)
    assert first.returncode == 0, first.stderr
    assert all(name in first.stdout for name in FILES)
    before = empty_db.run("SELECT * FROM schema_migrations ORDER BY name")
    again = pgsteward("migrate", url=empty_db.url)
    assert again.returncode == 0, again.stderr
    assert empty_db.run("SELECT * FROM schema_migrations ORDER BY name") == before


def test_every_file_is_carried_in_order(db):
    names = [row.name for row in db.run("SELECT name FROM steward_schema_status()")]
    assert sorted(names) == FILES
    migrations = [name for name in names if name.startswith("migrations/")]
    assert migrations == sorted(migrations) and names[:len(migrations)] == migrations


def test_status_shows_applied_pending_and_changed(db, pgsteward):
    db.run("DELETE FROM schema_migrations WHERE name = 'views/trust.sql'")
    db.run("UPDATE schema_migrations SET checksum = 'edited' WHERE name = 'functions/trust.sql'")
    status = {row.name: row for row in db.run("SELECT * FROM steward_schema_status()")}
    assert status["views/trust.sql"].state == "pending"
    assert status["functions/trust.sql"].state == "changed"
    applied = [row for row in status.values() if row.state == "applied"]
    assert len(applied) == len(FILES) - 2
    assert all(row.checksum == row.applied_checksum and row.applied_at for row in applied)
    shell = pgsteward("status")
    assert all(name in shell.stdout for name in FILES)
    actions = {row.file: row.action for row in db.run("SELECT * FROM steward_migrate()")}
    assert actions["views/trust.sql"] == "applied" and actions["functions/trust.sql"] == "reapplied"
    assert actions["migrations/0003_trust.sql"] == "unchanged" and actions["access.sql"] == "reapplied"


def test_two_callers_at_once(empty_db):
    empty_db.run("CREATE EXTENSION pgsteward")
    results = in_parallel(*[lambda: empty_db.run("SELECT * FROM steward_migrate()")] * 4)
    assert sorted(len([row for row in rows if row.action == "applied"]) for rows in results) == [0, 0, 0, len(FILES)]


def test_a_failing_migration_changes_nothing(empty_db):
    empty_db.run("CREATE EXTENSION pgsteward")
    empty_db.run("CREATE TABLE memberships (mine text)")
    with empty_db.connect() as connection:
        error = refused(connection, "SELECT * FROM steward_migrate()", "42P07")
    assert "migrations/0003_trust.sql" in error.message_primary and "memberships" in error.message_primary
    assert empty_db.one("SELECT to_regclass('events_queue') IS NULL AND to_regclass('schema_migrations') IS NULL")


def test_an_edited_migration_is_refused(db):
    db.run("UPDATE schema_migrations SET checksum = 'edited' WHERE name = 'migrations/0002_queue.sql'")
    with db.connect() as connection:
        error = refused(connection, "SELECT * FROM steward_migrate()", "55000")
    assert "migrations/0002_queue.sql" in error.message_primary
    faults = db.run("SELECT * FROM steward_schema_validate()")
    assert [(row.level, row.kind, row.object, row.fault) for row in faults] == [("error", "file", "migrations/0002_queue.sql", "edited")]


def test_a_schema_newer_than_the_extension_is_refused(db):
    db.run("INSERT INTO schema_migrations (name, kind, checksum, version, duration_ms) VALUES ('migrations/9999_future.sql', 'migration', 'x', '9.9.9', 1)")
    with db.connect() as connection:
        error = refused(connection, "SELECT * FROM steward_migrate()", "55000")
    assert "9999_future" in error.message_primary


def test_validate_reports_all_faults_in_one_run(db, pgsteward):
    assert pgsteward("validate").returncode == 0
    with db.connect() as connection:
        connection.execute("ALTER TABLE scenes DROP COLUMN palette")
        connection.execute("DROP INDEX memberships_scene_status_idx; DROP INDEX alliances_from_idx")
        connection.execute("DROP TRIGGER trust_insert ON memberships")
        connection.execute("ALTER TABLE alliances DISABLE TRIGGER trust_delete")
        connection.execute("ALTER TABLE alliances DROP CONSTRAINT alliances_weight_check")
        connection.execute("ALTER TABLE memberships ALTER role SET DEFAULT 'guest', ALTER since DROP NOT NULL, ALTER record_rkey TYPE text")
        connection.execute("DROP POLICY app_reads_own ON memberships; CREATE POLICY leak ON memberships USING (true)")
        connection.execute("ALTER TABLE scenes DISABLE ROW LEVEL SECURITY")
        connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'scenes_tags_idx'::regclass")
        connection.execute("CREATE OR REPLACE FUNCTION check_ttl(ttl_seconds int) RETURNS void LANGUAGE sql AS ''")
        connection.execute("DROP TABLE audit_log")
        connection.execute("CREATE INDEX mine ON scenes (name)")
    found = {(row.kind, row.object, row.fault) for row in db.run("SELECT * FROM steward_schema_validate()")}
    expected = {
        ("column", "scenes.palette", "missing"), ("index", "memberships.memberships_scene_status_idx", "missing"),
        ("index", "alliances.alliances_from_idx", "missing"), ("trigger", "memberships.trust_insert", "missing"),
        ("trigger", "alliances.trust_delete", "altered"), ("constraint", "alliances.alliances_weight_check", "missing"),
        ("column", "memberships.role", "altered"), ("column", "memberships.since", "altered"), ("column", "memberships.record_rkey", "altered"),
        ("policy", "memberships.app_reads_own", "missing"), ("policy", "memberships.leak", "unexpected"),
        ("table", "scenes", "altered"), ("index", "scenes.scenes_tags_idx", "invalid"),
        ("function", "check_ttl(integer)", "altered"), ("table", "audit_log", "missing"), ("index", "scenes.mine", "unexpected"),
    }
    assert expected <= found
    shell = pgsteward("validate")
    assert shell.returncode == 1
    assert all(name in shell.stdout for name in ("palette", "alliances_from_idx", "trust_insert"))


def index_led_by(db, table, column):
    return db.one("""SELECT count(*) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                      WHERE i.indrelid = %s::regclass AND a.attname = %s AND i.indisvalid AND i.indpred IS NULL""", (table, column))


def test_index_on_memberships_scene_id(db):
    assert index_led_by(db, "memberships", "scene_id") > 0
    db.run("DROP INDEX memberships_scene_status_idx")
    assert "memberships.memberships_scene_status_idx" in [row.object for row in db.run("SELECT object FROM steward_schema_validate()")]


def test_index_on_alliances_from_scene_id(db):
    assert index_led_by(db, "alliances", "from_scene_id") > 0
    db.run("DROP INDEX alliances_from_idx")
    assert "alliances.alliances_from_idx" in [row.object for row in db.run("SELECT object FROM steward_schema_validate()")]


def test_unique_index_on_trust_scores_scene_id(db):
    assert db.one("""SELECT count(*) FROM pg_index WHERE indrelid = 'trust_scores'::regclass AND indisunique AND indisvalid
                        AND pg_get_indexdef(indexrelid) LIKE '%%(scene_id)'""") == 1


def test_stats_follow_the_rows(db, pgsteward):
    stats = "SELECT estimated_rows, total_bytes FROM steward_schema_stats() WHERE table_name = 'scenes'"
    (before,) = db.run(stats)
    db.run("INSERT INTO scenes (name, owner_did) SELECT 'scene ' || i, 'did:a' FROM generate_series(1, 10000) i")
    db.run("ANALYZE scenes")
    (after,) = db.run(stats)
    assert abs(after.estimated_rows - 10000) < 500 and after.total_bytes > before.total_bytes
    tables = [row.table_name for row in db.run("SELECT table_name FROM steward_schema_stats()")]
    assert len(tables) == len(set(tables))
    shell = pgsteward("stats")
    assert shell.returncode == 0 and "scenes" in shell.stdout


def test_stats_see_bloat(db):
    db.run("INSERT INTO scenes (name, owner_did) SELECT 'scene ' || i, 'did:a' FROM generate_series(1, 20000) i")
    db.run("VACUUM ANALYZE scenes")
    bloat = "SELECT bloat_ratio FROM steward_schema_stats() WHERE table_name = 'scenes'"
    assert db.one(bloat) < 0.2
    db.run("DELETE FROM scenes WHERE name NOT LIKE '%7'")
    db.run("ANALYZE scenes")
    assert db.one(bloat) > 0.5


def test_report_is_true(db, pgsteward):
    db.run("INSERT INTO scenes (name, owner_did) SELECT 'scene ' || i, 'did:a' FROM generate_series(1, 123) i")
    for row in db.run("SELECT * FROM steward_schema_report()"):
        assert row.row_count == db.one(f"SELECT count(*) FROM {row.table_name}")
        assert row.columns == db.one("SELECT count(*) FROM information_schema.columns WHERE table_name = %s AND table_schema = 'public'", (row.table_name,))
        assert row.indexes == db.one("SELECT count(*) FROM pg_indexes WHERE tablename = %s AND schemaname = 'public'", (row.table_name,))
        if row.table_name == "scenes":
            assert row.row_count == 123
    shell = pgsteward("report")
    assert shell.returncode == 0 and "123" in shell.stdout


def test_lives_in_another_schema(empty_db):
    empty_db.run('CREATE SCHEMA "The Steward"')
    empty_db.run('CREATE EXTENSION pgsteward SCHEMA "The Steward"')
    empty_db.run('SELECT * FROM "The Steward".steward_migrate()')
    assert empty_db.run('SELECT * FROM "The Steward".steward_schema_validate()') == []
    with empty_db.connect() as connection:
        connection.execute("""INSERT INTO "The Steward".scenes (id, name, owner_did) VALUES ('00000000-0000-0000-0000-000000000001', 'a', 'did:a')""")
        connection.execute("""INSERT INTO "The Steward".memberships (scene_id, user_did, role, status) VALUES ('00000000-0000-0000-0000-000000000001', 'did:a', 'owner', 'active')""")
        assert connection.execute('SELECT processed FROM "The Steward".trust_recompute()').fetchone().processed == 1
        assert connection.execute("""SELECT score FROM "The Steward".trust_score('00000000-0000-0000-0000-000000000001')""").fetchone().score == 0.5
        connection.execute("""SELECT "The Steward".enqueue_event('x')""")
        assert len(connection.execute('SELECT * FROM "The Steward".lease_events()').fetchall()) == 1
    assert empty_db.one("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


def test_dropping_the_extension_drops_no_data(db):
    db.run("INSERT INTO scenes (name, owner_did) VALUES ('a', 'did:a')")
    db.run("DROP EXTENSION pgsteward CASCADE")
    assert db.one("SELECT count(*) FROM scenes") == 1
    db.run("CREATE EXTENSION pgsteward")
    db.run("SELECT * FROM steward_migrate()")
    assert db.run("SELECT * FROM steward_schema_validate()") == []
    assert db.run("SELECT * FROM steward_health")
    assert db.one("SELECT has_function_privilege('steward_worker', 'trust_recompute(int, interval, bigint, text, uuid, uuid)', 'EXECUTE')")
    assert not db.one("SELECT has_function_privilege('public', 'trust_recompute(int, interval, bigint, text, uuid, uuid)', 'EXECUTE')")


def test_migrate_repairs_what_is_not_a_migration(db):
    db.run("DROP TRIGGER trust_insert ON memberships")
    db.run("ALTER TABLE alliances DISABLE TRIGGER trust_delete")
    db.run("DROP POLICY app_reads_own ON memberships")
    db.run("CREATE OR REPLACE FUNCTION check_ttl(ttl_seconds int) RETURNS void LANGUAGE sql AS ''")
    db.run("DROP VIEW vw_worker_health CASCADE")
    assert len(db.run("SELECT * FROM steward_schema_validate()")) >= 5
    db.run("SELECT * FROM steward_migrate()")
    assert db.run("SELECT * FROM steward_schema_validate()") == []


@pytest.mark.parametrize("form", ["custom", "plain"])
def test_dump_and_restore_into_a_new_cluster(db, own_cluster, form):
    db.run("INSERT INTO scenes (name, owner_did) SELECT 'scene ' || i, 'did:a' FROM generate_series(1, 500) i")
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'did:' || i, 'member', 'active', 0.7 FROM scenes, generate_series(1, 3) i")
    db.run("INSERT INTO alliances (from_scene_id, to_scene_id, weight) SELECT a.id, b.id, 0.5 FROM scenes a JOIN scenes b ON b.name = a.name || '0'")
    db.run("SELECT * FROM trust_recompute(timeout => '5 min')")
    db.run("UPDATE memberships SET trust_weight = 0.1 WHERE scene_id IN (SELECT id FROM scenes LIMIT 7)")
    db.run("SELECT enqueue_events('a.topic', array_agg('{}'::jsonb), array_agg('k' || i)) FROM generate_series(1, 20) i")
    leased = db.run("SELECT * FROM lease_events('a.topic', 5)")
    db.run("SELECT * FROM ack_events(%s, %s)", ([row.id for row in leased[:3]], leased[0].lease_token))

    binaries = db.cluster.bindir
    old, new = [os.environ | c.environment() for c in (db.cluster, own_cluster)]
    restored = create_database(own_cluster, "restored")
    roles = subprocess.run([binaries / "pg_dumpall", "--roles-only", "--no-role-passwords"], env=old, capture_output=True, text=True, check=True).stdout
    subprocess.run([binaries / "psql", "-X", "-q", "-d", "restored"], input=roles, env=new, capture_output=True, text=True, check=True)
    dump = subprocess.run([binaries / "pg_dump", f"--format={form}", db.name], env=old, capture_output=True, check=True).stdout
    restore = ([binaries / "pg_restore", "--exit-on-error", "-d", "restored"] if form == "custom"
               else [binaries / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "restored"])
    done = subprocess.run(restore, input=dump, env=new, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

    for table in [row.table_name for row in db.run("SELECT table_name FROM steward_schema_report()")]:
        rows = f"SELECT t::text FROM {table} t ORDER BY 1"
        assert db.run(rows) == restored.run(rows), table
    assert restored.run("SELECT * FROM steward_schema_validate()") == []
    assert restored.one("SELECT count(*) FROM trust_dirty") == 7
    assert {row.action for row in restored.run("SELECT * FROM steward_migrate()")} == {"unchanged"}
    assert restored.one("SELECT enqueue_event('a.topic')") > max(row.id for row in db.run("SELECT id FROM events_queue"))
    privileges = "SELECT proname, proacl::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY proname, oid::regprocedure::text"
    assert db.run(privileges) == restored.run(privileges)


def test_upgraded_files_reach_the_database(db):
    """A function changed by hand comes back when its file is applied again."""
    db.run("CREATE OR REPLACE FUNCTION steward_user() RETURNS text LANGUAGE sql AS 'SELECT ''evil'''")
    db.run("UPDATE schema_migrations SET checksum = 'old' WHERE name = 'functions/access.sql'")
    db.run("SELECT * FROM steward_migrate()")
    assert db.one("SELECT steward_user()") is None
    assert db.run("SELECT * FROM steward_schema_validate()") == []


def test_events_of_the_first_layout_are_kept(empty_db):
    """From the schema before migration 0005, with events in every state, to the present one."""
    with empty_db.connect() as connection:
        connection.execute("CREATE EXTENSION pgsteward")
        for name in ("0001_schema", "0002_queue", "0003_trust"):
            connection.execute(connection.execute("SELECT body FROM steward_files() WHERE name = %s", (f"migrations/{name}.sql",)).fetchone()[0])
            connection.execute("""INSERT INTO schema_migrations (name, kind, checksum, version, duration_ms)
                                  SELECT name, kind, checksum, '0.1.0', 0 FROM steward_files() WHERE name = %s""", (f"migrations/{name}.sql",))
        connection.execute("INSERT INTO event_topics (topic, handler, max_attempts) VALUES ('known', 'public.handle', 7)")
        connection.execute("""INSERT INTO events_queue (topic, status, priority, run_at, attempts, lease_token, lease_expires_at, idempotency_key, payload, last_error)
            VALUES ('known', 'queued', 5, now() - interval '1 hour', 0, NULL, NULL, 'a', '{"n": 1}', NULL), ('known', 'queued', 0, now() + interval '1 day', 2, NULL, NULL, NULL, '{}', 'x'),
                   ('other', 'leased', 0, now(), 1, '00000000-0000-0000-0000-000000000001', now() + interval '1 hour', NULL, '{}', NULL),
                   ('known', 'done', 0, now(), 1, NULL, NULL, 'b', '{}', NULL), ('known', 'error', 0, now(), 5, NULL, NULL, NULL, '{}', 'broken')""")
        connection.execute("INSERT INTO event_keys (topic, idempotency_key, event_id) SELECT topic, idempotency_key, id FROM events_queue WHERE idempotency_key IS NOT NULL")
        connection.execute("INSERT INTO event_tally (topic, status, ct) VALUES ('known', 'done', 1), ('known', 'error', 1)")
        before = connection.execute("SELECT id, topic, status, priority, run_at, attempts, lease_token, idempotency_key, payload, last_error FROM events_queue ORDER BY id").fetchall()
        connection.execute("SELECT * FROM steward_migrate()")
        after = connection.execute("SELECT id, topic, status, priority, run_at, attempts, lease_token, idempotency_key, payload, last_error FROM events_queue ORDER BY id").fetchall()
        assert after == before
        assert connection.execute("SELECT * FROM steward_schema_validate()").fetchall() == []
        counted = {(row.topic, row.status): row.ct for row in connection.execute("SELECT * FROM vw_events_queue_health").fetchall()}
        assert counted == {("known", "queued"): 2, ("other", "leased"): 1, ("known", "done"): 1, ("known", "error"): 1}
        assert [row.id for row in connection.execute("SELECT id FROM lease_events('known')").fetchall()] == [before[0].id]
        assert connection.execute("SELECT enqueue_event('known', idempotency_key => 'b')").fetchone()[0] == before[3].id
        assert connection.execute("SELECT held FROM ack_events(%s, '00000000-0000-0000-0000-000000000001')", ([before[2].id],)).fetchone()[0]
        assert connection.execute("SELECT enqueue_event('known')").fetchone()[0] > before[4].id
        assert {row.topic: row.registered for row in connection.execute("SELECT topic, registered FROM event_topics WHERE topic IN ('known', 'other')").fetchall()} == {"known": True, "other": False}
