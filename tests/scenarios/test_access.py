"""Roles, grants, row-level security, search paths, comments: the rules that hold for every object."""

from conftest import refused

ALICE, BOB = "did:alice", "did:bob"

OURS = """SELECT p.oid, p.oid::regprocedure::text AS name, p.proconfig, p.prosecdef, l.lanname FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
           LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
           LEFT JOIN pg_extension e ON e.oid = d.refobjid
          WHERE p.pronamespace = 'public'::regnamespace AND (e.extname = 'pgsteward' OR e.oid IS NULL)"""

# Rust functions that look nothing up by name.
PURE = {"discovery_gap_level(bigint)", "discovery_gap_severity(text,bigint)", "queue_head(text,text)", "queue_passed(text,text,timestamp with time zone)",
        "queue_retry_delay(integer,double precision,interval,double precision,interval,double precision)", "steward_catalogue_expected()", "steward_files()", "steward_version()",
        "search_distance(point,point)", "search_place(text)", "search_proximity(double precision)", "search_recency(double precision,double precision)",
        "search_score(double precision,double precision,double precision,double precision,double precision[])",
        "trust_effects(text[],double precision[],double precision[])", "trust_formula(text[],double precision[],double precision[])", "trust_membership_points(text,double precision)", "trust_ranking_enabled()", "trust_role_multiplier(text)"}


def test_every_function_pins_its_search_path(db):
    unpinned = {row.name for row in db.run(OURS) if not any(c.startswith("search_path=") for c in row.proconfig or [])}
    assert unpinned == PURE
    for row in db.run(OURS):
        for setting in row.proconfig or []:
            if setting.startswith("search_path="):
                path = [part.strip() for part in setting.removeprefix("search_path=").split(",")]
                assert path[-1] == "pg_temp", row.name


def test_nothing_is_executable_or_readable_by_public(db):
    executable = db.run(f"SELECT name FROM ({OURS}) f WHERE EXISTS (SELECT FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE p.oid = f.oid AND a.grantee = 0)")
    assert executable == []
    readable = db.run("SELECT relname FROM pg_class c, aclexplode(c.relacl) a WHERE relnamespace = 'public'::regnamespace AND a.grantee = 0")
    assert readable == []


def test_everything_a_dba_sees_has_a_comment(db):
    assert db.run(f"SELECT name FROM ({OURS}) f WHERE obj_description(f.oid, 'pg_proc') IS NULL") == []
    assert db.run("""SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
                        AND obj_description(oid, 'pg_class') IS NULL""") == []
    assert db.run("SELECT name FROM pg_settings WHERE name LIKE 'pgsteward.%' AND (short_desc = '' OR extra_desc = '')") == []


def test_row_security_is_on_for_user_data(db):
    tables = {row.relname for row in db.run("SELECT relname FROM pg_class WHERE relrowsecurity AND relnamespace = 'public'::regnamespace")}
    assert {"scenes", "memberships", "alliances", "events_queue", "events_queue_live", "events_queue_done", "events_queue_error", "event_keys",
            "marketplace_discovery_queue", "marketplace_discovery_queue_live", "user_interests", "marketplace_listings"} <= tables


def test_a_stranger_can_do_nothing(roles):
    with roles.connect("test_stranger") as connection:
        for table in [row.table_name for row in roles.run("SELECT table_name FROM steward_schema_report()")]:
            refused(connection, f"SELECT * FROM {table}", "42501", hint=False)
        for call in ("enqueue_event('x')", "lease_events()", "trust_recompute()", "trust_score(gen_random_uuid())", "steward_migrate()",
                     "steward_schema_validate()", "trust_mark_all_dirty()", "requeue_events('{1}')", "steward_health"):
            refused(connection, f"SELECT * FROM {call}", "42501", hint=False)


def seed(db):
    db.run("""INSERT INTO scenes (id, name, owner_did, visibility) VALUES
        ('00000000-0000-0000-0000-000000000001', 'public', 'did:owner', 'public'),
        ('00000000-0000-0000-0000-000000000002', 'private', 'did:owner', 'private'),
        ('00000000-0000-0000-0000-000000000003', 'unlisted', 'did:bob', 'unlisted')""")
    db.run("""INSERT INTO memberships (scene_id, user_did, role, status) VALUES
        ('00000000-0000-0000-0000-000000000002', 'did:alice', 'member', 'active'),
        ('00000000-0000-0000-0000-000000000002', 'did:bob', 'member', 'pending'),
        ('00000000-0000-0000-0000-000000000001', 'did:bob', 'member', 'active')""")


def seen(db, user, sql):
    with db.connect("test_app") as connection:
        if user:
            connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (user,))
        return {row[0] for row in connection.execute(sql)}


def test_the_application_sees_through_row_security(roles):
    seed(roles)
    names = "SELECT name FROM scenes"
    assert seen(roles, None, names) == {"public"}
    assert seen(roles, ALICE, names) == {"public", "private"}
    assert seen(roles, BOB, names) == {"public", "unlisted"}
    assert seen(roles, "did:owner", names) == {"public", "private"}
    members = "SELECT user_did || ' ' || scene_id FROM memberships"
    assert seen(roles, None, members) == set()
    assert len(seen(roles, ALICE, members)) == 1
    assert len(seen(roles, BOB, members)) == 2
    assert len(seen(roles, "did:owner", members)) == 3
    roles.run("UPDATE scenes SET moderation_status = 'hidden', moderated_by = 'm', moderation_timestamp = now() WHERE name = 'public'")
    assert seen(roles, ALICE, names) == {"private"}
    roles.run("UPDATE scenes SET deleted_at = now() WHERE name = 'private'")
    assert seen(roles, "did:owner", names) == {"public"}


def test_the_user_can_come_from_a_jwt(roles):
    seed(roles)
    with roles.connect("test_app") as connection:
        connection.execute("""SELECT set_config('request.jwt.claims', '{"sub": "did:alice"}', false)""")
        assert len(connection.execute("SELECT FROM memberships").fetchall()) == 1


def test_the_application_enqueues_but_touches_no_table(roles):
    with roles.connect("test_app") as connection:
        assert connection.execute("SELECT enqueue_event('x')").fetchone()[0] > 0
        for sql in ("SELECT * FROM events_queue", "SELECT * FROM lease_events()", "INSERT INTO trust_scores DEFAULT VALUES",
                    "DELETE FROM memberships", "SELECT * FROM trust_recompute()", "SELECT * FROM event_keys", "SELECT * FROM worker_heartbeats"):
            refused(connection, sql, "42501", hint=False)


def test_the_worker_role_does_its_work_and_no_more(roles):
    seed(roles)
    roles.run("SELECT enqueue_event('x')")
    with roles.connect("test_worker") as connection:
        (event,) = connection.execute("SELECT * FROM lease_events()").fetchall()
        assert connection.execute("SELECT held FROM ack_events(%s, %s)", ([event.id], event.lease_token)).fetchone().held
        run = connection.execute("SELECT * FROM trust_recompute()").fetchone()
        assert (run.processed, run.failed) == (3, 0)
        connection.execute("SELECT * FROM steward_health")
        for sql in ("SELECT * FROM events_queue", "UPDATE memberships SET role = 'owner'", "DELETE FROM scenes",
                    "SELECT register_topic('x', 'now')", "SELECT * FROM steward_migrate()", "SELECT * FROM audit_log"):
            refused(connection, sql, "42501", hint=False)


def test_the_readonly_role_reads_health_and_no_user_data(roles):
    with roles.connect("test_readonly") as connection:
        for view in ("steward_health", "vw_events_queue_health", "vw_trust_health", "vw_worker_health", "steward_schema_status()"):
            connection.execute(f"SELECT * FROM {view}")
        for table in ("memberships", "scenes", "events_queue", "worker_heartbeats"):
            refused(connection, f"SELECT * FROM {table}", "42501", hint=False)


def test_the_admin_role_does_what_runbooks_do(roles):
    roles.run("SELECT enqueue_event('x')")
    with roles.connect("test_admin") as connection:
        connection.execute("UPDATE events_queue SET status='queued', lease_token=NULL, lease_expires_at=NULL WHERE status='leased' AND lease_expires_at < now()")
        connection.execute("SELECT * FROM requeue_events('{1}')")
        connection.execute("SELECT * FROM steward_schema_validate()")
        connection.execute("SELECT trust_mark_all_dirty()")
        connection.execute("SELECT * FROM audit_log")


def test_an_evil_schema_in_the_callers_path_is_not_used(roles):
    seed(roles)
    with roles.connect("test_worker") as connection:
        connection.execute("CREATE TEMP TABLE trust_dirty (generation bigint, scene_id uuid)")
        connection.execute("CREATE TEMP TABLE scenes (id uuid)")
        connection.execute("CREATE FUNCTION pg_temp.trust_mark_dirty(uuid[]) RETURNS bigint LANGUAGE sql AS 'SELECT 1/0::bigint'")
        connection.execute("SET search_path = pg_temp, public")
        assert connection.execute("SELECT processed FROM public.trust_recompute()").fetchone().processed == 3


def test_only_a_superuser_may_create_the_extension(roles):
    roles.run("DROP EXTENSION pgsteward CASCADE")
    with roles.connect("test_admin") as connection:
        refused(connection, "CREATE EXTENSION pgsteward", "42501")
