"""Trust beside everything else that may happen at the same time: indexes made, tables rewritten, allies that fall, statements that have not ended."""

import psycopg
import pytest
from conftest import in_parallel, refused, wait_until
from test_trust import WRONG, add_scenes, slow_down
from test_trust_changes import drain, equal_to_a_recount

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def test_what_a_recompute_has_written_is_locked_until_it_commits(db):
    """Whoever makes an index or rewrites the table waits, or the index would lack the rows and the rewrite lose them."""
    add_scenes(db, 50)
    db.run("UPDATE memberships SET trust_weight = 0.7")
    for statement in ("CREATE INDEX CONCURRENTLY another ON trust_scores (score)", "ALTER TABLE trust_scores ALTER score TYPE float8 USING score + 0",
                      "TRUNCATE scenes CASCADE"):
        with db.connect(autocommit=False) as recompute:
            recompute.execute("SELECT trust_mark_all_dirty()")
            assert recompute.execute("SELECT processed FROM trust_recompute(100)").fetchone() == (50,)
            with db.connect() as other:
                other.execute("SET lock_timeout = '300ms'")
                refused(other, statement, "55P03", hint=False)
            recompute.rollback()
        db.run("DROP INDEX IF EXISTS another")
    drain(db)
    assert db.run("SELECT * FROM trust_verify()") == []


@pytest.mark.parametrize("statement", [
    "UPDATE memberships SET trust_weight = 1 WHERE scene_id = md5('1')::uuid RETURNING trust_recompute_scene(scene_id)",
    "WITH u AS (UPDATE memberships SET trust_weight = 1 WHERE scene_id = md5('1')::uuid RETURNING scene_id) SELECT trust_recompute_scene(scene_id) FROM u",
    "SELECT trust_recompute_scene(scene_id) FROM memberships",
])
def test_a_recount_inside_a_statement_that_changes_memberships(db, statement):
    """Its marks come when the statement ends: a sum counted before would take them in twice."""
    add_scenes(db, 3)
    db.run(statement)
    assert db.run("SELECT * FROM trust_verify()") == []
    drain(db)
    assert db.run("SELECT * FROM trust_verify()") == [] and db.one(WRONG) == 0
    db.run("UPDATE memberships SET trust_weight = 0.5")
    drain(db)
    equal_to_a_recount(db)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("fall", ["deleted_at = now()", "moderation_status = 'hidden', moderated_by = 'm', moderation_timestamp = now()"])
def test_an_ally_that_falls_while_the_alliance_is_made(db, isolation, fall):
    add_scenes(db, 3, alliances=0)
    pair = "md5('1')::uuid, md5('2')::uuid"
    with db.connect() as falling:
        falling.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        falling.execute(f"UPDATE scenes SET {fall} WHERE id = md5('2')::uuid")
        db.run(f"INSERT INTO alliances (from_scene_id, to_scene_id, weight) VALUES ({pair}, 0.5)")
        drain(db)
        assert db.one("SELECT alliances FROM trust_scores WHERE scene_id = md5('1')::uuid") == 1
        falling.execute("COMMIT")
    drain(db)
    assert db.one("SELECT alliances FROM trust_scores WHERE scene_id = md5('1')::uuid") == 0
    assert db.one(WRONG) == 0


def test_a_score_stored_between_reading_it_and_counting(db):
    """What was counted equals what was read, and nothing is to be written: but the stored score is another by now."""
    add_scenes(db, 2)
    db.run("UPDATE memberships SET role = 'owner', trust_weight = 0.5 WHERE scene_id = md5('1')::uuid")
    drain(db)
    change = "UPDATE memberships SET trust_weight = %s WHERE scene_id = md5('1')::uuid AND user_did = %s"
    with db.connect(autocommit=False) as one, db.connect(autocommit=False) as two, db.connect(autocommit=False) as holder:
        one.execute(change, (0.25, "did:1"))
        one.execute("INSERT INTO trust_dirty (scene_id) VALUES (md5('1')::uuid)")  # to be counted
        for connection in (one, two, holder):
            connection.execute("SET statement_timeout = '30s'")
        holder.execute("LOCK TABLE scenes IN ACCESS EXCLUSIVE MODE")

        def recompute():
            return one.execute("SELECT processed FROM trust_recompute(timeout => '20 s')").fetchone()[0]

        def between():
            wait_until(lambda: db.one(WAITING), what="a count that waits")
            two.execute(change, (0.75, "did:2"))
            two.execute("SELECT * FROM trust_recompute()")
            two.commit()
            holder.commit()

        in_parallel(recompute, between)
        one.commit()
    assert db.run("SELECT * FROM trust_verify()") == []
    drain(db)
    assert db.run("SELECT * FROM trust_verify()") == [] and db.one(WRONG) == 0


def test_a_timeout_never_ends_in_an_error(db):
    """Wherever the time runs out, also between two steps: what was done stays."""
    add_scenes(db, 600)
    timed_out = 0
    with db.connect() as connection:
        connection.execute("SET client_min_messages = debug1")
        for millis in range(1, 61):
            db.run("SELECT trust_mark_all_dirty()")
            run = connection.execute("SELECT * FROM trust_recompute(timeout => make_interval(secs => %s))", (millis / 1000,)).fetchone()
            assert run.processed + run.remaining == 600
            timed_out += run.timed_out
    assert timed_out > 5
    drain(db)
    assert db.one(WRONG) == 0 and db.run("SELECT * FROM trust_verify()") == []


def test_a_lock_of_ones_own_is_no_obstacle(db):
    add_scenes(db, 2)
    db.run("UPDATE memberships SET trust_weight = 0.4")
    with db.connect(autocommit=False) as connection:
        connection.execute("SELECT * FROM trust_scores FOR UPDATE")
        connection.execute("SELECT generation FROM trust_dirty FOR UPDATE")
        assert connection.execute("SELECT processed, remaining FROM trust_recompute()").fetchone() == (2, 0)
        connection.commit()
    assert db.one(WRONG) == 0


def test_a_conflict_is_nobodys_fault(db):
    """A lock that is not got in time ends the call; no scene is blamed for it."""
    add_scenes(db, 3)
    db.run("CREATE INDEX another ON trust_scores (score)")  # rows are then changed by statements, which wait
    with db.connect(autocommit=False) as own:
        own.execute("UPDATE memberships SET trust_weight = 0.9 WHERE user_did = 'did:1'")
        own.execute("SELECT * FROM trust_recompute()")
        db.run("UPDATE memberships SET trust_weight = 0.2 WHERE user_did = 'did:2'")
        with db.connect() as other:
            other.execute("SET lock_timeout = '200ms'")
            refused(other, "SELECT * FROM trust_recompute()", "55P03", hint=False)
        own.commit()
    assert db.one("SELECT max(attempts) FROM trust_dirty") == 0
    drain(db)
    assert db.one(WRONG) == 0


def test_a_column_of_another_type_is_refused(db):
    add_scenes(db, 3)
    db.run("ALTER TABLE trust_scores ALTER membership_points TYPE numeric")
    db.run("UPDATE memberships SET trust_weight = 0.2")
    with db.connect() as connection:
        refused(connection, "SELECT * FROM trust_recompute()", "42703")
        assert connection.execute("SELECT count(*) FROM trust_dirty").fetchone() == (3,)


def test_heirs_of_a_table_are_read_too(db):
    add_scenes(db, 30)
    db.run("CREATE TABLE more () INHERITS (memberships)")
    db.run("INSERT INTO more (scene_id, user_did, role, status, trust_weight) SELECT id, 'did:heir', 'owner', 'active', 1 FROM scenes")
    for size in (1, 1000):
        db.run("SELECT trust_mark_all_dirty()")
        db.run("SELECT * FROM trust_recompute(%s)", (size,))
        assert db.run("SELECT DISTINCT memberships FROM trust_scores") == [(4,)]
    assert db.one(WRONG) == 0


def test_a_slow_batch_keeps_what_it_has_stored(db):
    add_scenes(db, 40)
    db.run("UPDATE memberships SET trust_weight = 0.3")
    slow_down(db, 0.05)
    with db.connect() as connection:
        connection.execute("SET client_min_messages = debug1")
        run = connection.execute("SELECT * FROM trust_recompute(timeout => '500 ms')").fetchone()
    assert run.timed_out and run.processed + run.remaining == 40
    with pytest.raises(psycopg.errors.QueryCanceled), db.connect() as connection:
        connection.execute("SET statement_timeout = '200ms'")
        connection.execute("SELECT * FROM trust_recompute(timeout => '10 s')")
