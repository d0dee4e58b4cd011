"""Trust from what has changed: marks carry sums, a recompute adds them up, and a recount proves it at any moment."""

import json
import random
import threading
import uuid
from pathlib import Path

import psycopg
import pytest
from conftest import in_parallel, refused, wait_until
from test_trust import WRONG, add_scenes, dirty

MARKS = "SELECT recount, alliances_changed, members_change, points_change FROM trust_dirty"
SCORES = "SELECT scene_id, (score, alliance_factor, membership_mean, memberships, alliances, membership_points)::text FROM trust_scores"


def drain(db):
    """Recompute until nothing is dirty."""
    while db.run("SELECT * FROM trust_recompute(1000, '1 min')")[0].remaining:
        pass


def equal_to_a_recount(db):
    """Stored scores are, to the last bit, what counting everything anew gives."""
    stored = dict(db.run(SCORES))
    db.run("SELECT trust_mark_all_dirty()")
    drain(db)
    assert dict(db.run(SCORES)) == stored
    assert db.one(WRONG) == 0


def test_a_mark_says_what_has_changed(db):
    add_scenes(db, 2, alliances=2)
    db.run("UPDATE memberships SET role = 'owner', trust_weight = 0.25 WHERE scene_id = md5('1')::uuid AND user_did = 'did:1'")
    (mark,) = db.run(MARKS)
    assert (mark.recount, mark.alliances_changed, mark.members_change) == (False, False, 0) and mark.points_change != 0
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES (md5('1')::uuid, 'did:9', 'guest', 'active', 0.5)")
    (mark,) = db.run(MARKS)
    assert mark.members_change == 1
    db.run("UPDATE alliances SET weight = 0.5 WHERE from_scene_id = md5('1')::uuid")
    (mark,) = db.run(MARKS)
    assert (mark.recount, mark.alliances_changed, mark.members_change) == (False, True, 1)
    assert db.run("SELECT * FROM trust_verify()") == []
    drain(db)
    equal_to_a_recount(db)


def test_a_change_and_its_reversal_keep_the_score(db):
    add_scenes(db, 1)
    before = db.run(SCORES)
    db.run("UPDATE memberships SET trust_weight = 1 - trust_weight")
    db.run("UPDATE memberships SET trust_weight = 1 - trust_weight")
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.changed) == (1, 0)
    assert db.run(SCORES) == before


def test_changed_members_are_not_read_again(db):
    """A scene of many members costs what a scene of few does: their table is not even looked at."""
    add_scenes(db, 2, members=2000)
    db.run("UPDATE memberships SET trust_weight = 0.5 WHERE user_did = 'did:7'")
    with db.connect(autocommit=False) as other:
        other.execute("LOCK TABLE memberships, alliances, scenes IN ACCESS EXCLUSIVE MODE")
        with db.connect() as connection:
            connection.execute("SET lock_timeout = '500ms'")
            assert connection.execute("SELECT processed FROM trust_recompute()").fetchone() == (2,)
            refused(connection, "SELECT count(*) FROM memberships", "55P03", hint=False)
    assert db.one(WRONG) == 0
    equal_to_a_recount(db)


@pytest.mark.parametrize("change", [
    "COPY memberships (scene_id, user_did, role, status, trust_weight) FROM STDIN",
    "UPDATE memberships SET trust_weight = 0.125, role = 'curator'",
    "UPDATE memberships SET scene_id = md5('3')::uuid, user_did = 'did:moved' WHERE scene_id = md5('1')::uuid AND user_did = 'did:1'",
    "UPDATE memberships SET status = CASE user_did WHEN 'did:1' THEN 'pending' WHEN 'did:2' THEN 'rejected' ELSE status END",
    "DELETE FROM memberships WHERE user_did = 'did:2'",
    "DELETE FROM scenes WHERE id = md5('2')::uuid",
    "UPDATE scenes SET deleted_at = now() WHERE id IN (md5('2')::uuid, md5('5')::uuid)",
    "UPDATE alliances SET deleted_at = now() WHERE from_scene_id = md5('2')::uuid",
    "UPDATE alliances SET weight = weight / 2",
    "TRUNCATE memberships",
    "TRUNCATE alliances",
    "TRUNCATE scenes CASCADE",
    "WITH gone AS (DELETE FROM memberships WHERE user_did = 'did:1' RETURNING scene_id) UPDATE memberships SET trust_weight = 1 WHERE scene_id IN (SELECT scene_id FROM gone)",
    "MERGE INTO memberships m USING (VALUES ('did:1', 0.9), ('did:2', 0.1)) AS n (user_did, weight) ON m.user_did = n.user_did "
    "WHEN MATCHED AND n.weight > 0.5 THEN UPDATE SET trust_weight = n.weight WHEN MATCHED THEN DELETE",
])
def test_every_kind_of_change_is_added_up(db, change):
    add_scenes(db, 8, members=3, alliances=3)
    with db.connect() as connection:
        if change.startswith("COPY"):
            connection.execute("UPDATE memberships SET user_did = user_did || ' of old'")
            with connection.cursor().copy(change) as copy:
                for number in range(1, 9):
                    copy.write_row((uuid.UUID(db.one(f"SELECT md5('{number}')")), f"did:{number}", "owner", "active", 0.3))
        else:
            connection.execute(change)
    assert db.run("SELECT * FROM trust_verify()") == []
    drain(db)
    assert db.run("SELECT * FROM trust_verify()") == []
    equal_to_a_recount(db)
    db.run("UPDATE scenes SET deleted_at = NULL")
    db.run("UPDATE alliances SET deleted_at = NULL")
    drain(db)
    equal_to_a_recount(db)


def test_a_rolled_back_change_marks_nothing(db):
    add_scenes(db, 3)
    before = db.run(SCORES)
    with db.connect(autocommit=False) as connection:
        connection.execute("UPDATE memberships SET trust_weight = 0.1")
        connection.execute("SAVEPOINT s")
        connection.execute("DELETE FROM memberships")
        connection.execute("ROLLBACK TO s")
        connection.execute("SELECT * FROM trust_recompute()")
        assert connection.execute("SELECT count(*) FROM trust_verify()").fetchone() == (0,)
        connection.rollback()
    assert not dirty(db) and db.run(SCORES) == before


def test_a_storm_of_changes_at_any_moment_adds_up(db):
    """Writers of every kind, recomputes of every size and recounts side by side; a checker that never sees a sum that is off."""
    add_scenes(db, 300, members=4, alliances=2)
    db.run("SELECT trust_recompute()")
    writing = threading.Event()
    writing.set()
    changes = [
        "UPDATE memberships SET trust_weight = random(), role = (ARRAY['owner', 'curator', 'member', 'guest'])[1 + floor(random() * 4)::int] WHERE scene_id = {one}",
        "UPDATE memberships SET status = CASE status WHEN 'active' THEN 'rejected' ELSE 'active' END WHERE scene_id = {one} AND user_did < 'did:3'",
        "DELETE FROM memberships WHERE scene_id = {one} AND user_did = 'did:1'",
        "INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES ({one}, 'did:1', 'owner', 'active', random()) ON CONFLICT (scene_id, user_did) DO UPDATE SET trust_weight = random()",
        "UPDATE memberships m SET scene_id = {two} WHERE scene_id = {one} AND user_did = 'did:2' AND NOT EXISTS (SELECT FROM memberships o WHERE o.scene_id = {two} AND o.user_did = 'did:2')",
        "UPDATE alliances SET weight = random(), deleted_at = CASE WHEN random() < 0.3 THEN now() END WHERE from_scene_id = {one}",
        "UPDATE scenes SET deleted_at = CASE WHEN deleted_at IS NULL AND random() < 0.3 THEN now() END WHERE id = {one}",
        "SELECT trust_mark_dirty(ARRAY[{one}, {two}])",
    ]

    def write(seed):
        dice = random.Random(seed)
        done = 0
        with db.connect() as connection:
            while writing.is_set():
                one, two = (f"md5('{dice.randint(1, 300)}')::uuid" for _ in range(2))
                isolation = dice.choice(["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ"])
                connection.execute(f"BEGIN ISOLATION LEVEL {isolation}")
                try:
                    for change in dice.sample(changes, dice.randint(1, 3)):
                        connection.execute(change.format(one=one, two=two))
                    connection.execute(dice.choice(["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"]))
                    done += 1
                except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
                    connection.execute("ROLLBACK")
        return done

    def recompute(size):
        with db.connect() as connection:
            return sum(connection.execute("SELECT processed FROM trust_recompute(%s, '10 s', %s)", (size, 3 * size)).fetchone()[0] for _ in range(150))

    def check():
        with db.connect() as connection:
            off = [connection.execute("SELECT count(*) FROM trust_verify()").fetchone()[0] for _ in range(120)]
        writing.clear()
        return off

    *done, few, some, many, off = in_parallel(lambda: write(1), lambda: write(2), lambda: write(3), lambda: recompute(1), lambda: recompute(10),
                                              lambda: recompute(500), check)
    assert off == [0] * 120
    assert sum(done) > 50 and few and some and many
    drain(db)
    assert db.run("SELECT * FROM trust_verify()") == []
    equal_to_a_recount(db)


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_a_recompute_of_ones_own_change_keeps_others_from_the_score(db, scored, plain):
    """The marks of a change and its recompute in one transaction are seen by nobody: the score itself tells that it is being changed."""
    add_scenes(db, 2)
    if not plain:
        db.run("CREATE INDEX another ON trust_scores (score)")  # rows are then changed by statements
    if not scored:
        db.run("DELETE FROM trust_scores")
    with db.connect(autocommit=False) as own:
        own.execute("UPDATE memberships SET trust_weight = 0.9 WHERE user_did = 'did:1'")
        assert own.execute("SELECT processed FROM trust_recompute()").fetchone() == (2,)
        db.run("UPDATE memberships SET trust_weight = 0.2 WHERE user_did = 'did:2'")

        def recompute():
            with db.connect() as other:
                other.execute("SET statement_timeout = '30s'")
                return other.execute("SELECT processed, failed, remaining FROM trust_recompute()").fetchone()

        def commit():
            wait_until(lambda: db.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'"), what="a wait for the score")
            own.commit()

        if scored and plain:
            result = recompute()  # does not wait
            own.commit()
        else:
            result, _ = in_parallel(recompute, commit)
        assert result == (0, 0, 2)
    assert db.run("SELECT * FROM trust_verify()") == []
    drain(db)
    equal_to_a_recount(db)


def test_a_lie_in_the_stored_sums_is_found_and_mended(db):
    add_scenes(db, 5)
    db.run("UPDATE trust_scores SET membership_points = membership_points + 1 WHERE scene_id = md5('4')::uuid")
    (off,) = db.run("SELECT * FROM trust_verify()")
    assert off.stored_points + off.pending_points == off.counted_points + 1
    assert db.run("SELECT * FROM trust_verify(ARRAY[md5('3')::uuid])") == []
    db.run("SELECT trust_mark_dirty(ARRAY[md5('4')::uuid])")
    drain(db)
    assert db.run("SELECT * FROM trust_verify()") == []


def test_stored_sums_that_cannot_be_are_counted_anew(db):
    add_scenes(db, 3)
    db.run("UPDATE trust_scores SET membership_points = -5, memberships = 0")
    db.run("UPDATE memberships SET trust_weight = 0.5")
    drain(db)
    assert db.one(WRONG) == 0 and db.run("SELECT * FROM trust_verify()") == []


def test_sums_beyond_the_range_are_counted_anew(db):
    add_scenes(db, 1)
    db.run("SELECT trust_mark_dirty(ARRAY[md5('1')::uuid])")
    db.run("UPDATE trust_dirty SET recount = false, points_change = 9000000000000000000")
    db.run("UPDATE memberships SET trust_weight = 1, role = 'owner'")  # the writer does not fail on it
    (mark,) = db.run(MARKS)
    assert mark.recount
    drain(db)
    assert db.one(WRONG) == 0


def test_triggers_of_the_administrator_see_every_row(db):
    """Where a trigger or a rule of somebody else stands, rows are changed by statements that fire it."""
    add_scenes(db, 20)
    db.run("CREATE TABLE seen (what text, scene_id uuid)")
    db.run("""CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO seen VALUES (TG_TABLE_NAME || ' ' || TG_OP, coalesce(NEW.scene_id, OLD.scene_id)); RETURN NULL; END $$""")
    for table in ("trust_scores", "trust_dirty"):
        db.run(f"CREATE TRIGGER see AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION see()")
    db.run("UPDATE memberships SET trust_weight = 0.77")
    assert db.run("SELECT processed, remaining FROM trust_recompute()")[0] == (20, 0)
    assert db.run("SELECT what, count(*) FROM seen GROUP BY what ORDER BY what") == [("trust_dirty DELETE", 20), ("trust_dirty INSERT", 20), ("trust_scores UPDATE", 20)]
    assert db.one(WRONG) == 0


def test_a_column_of_the_administrator_survives(db):
    add_scenes(db, 20)
    db.run("ALTER TABLE trust_scores ADD COLUMN note text DEFAULT 'kept'")
    db.run("UPDATE trust_scores SET note = 'mine'")
    db.run("UPDATE memberships SET trust_weight = 0.77")
    assert db.run("SELECT changed FROM trust_recompute()")[0].changed == 20
    assert db.run("SELECT DISTINCT note FROM trust_scores") == [("mine",)]


def test_stored_scores_keep_their_index(db):
    """Every row is moved many times; the key still finds each, once."""
    add_scenes(db, 400)
    for round_number in range(12):
        db.run("UPDATE memberships SET trust_weight = %s", (round_number / 100,))
        assert db.run("SELECT changed FROM trust_recompute(400)")[0].changed == 400
    with db.connect() as connection:
        connection.execute("SET enable_seqscan = off")
        plan = "\n".join(row[0] for row in connection.execute("EXPLAIN SELECT count(*) FROM trust_scores WHERE scene_id >= '00000000-0000-0000-0000-000000000000'"))
        assert "trust_scores_pkey" in plan
        assert connection.execute("SELECT count(*) FROM trust_scores WHERE scene_id >= '00000000-0000-0000-0000-000000000000'").fetchone() == (400,)
    assert db.one(WRONG) == 0


def test_a_part_of_the_scenes_by_key_or_region(db):
    add_scenes(db, 300)
    db.run("UPDATE scenes SET coarse_geohash = CASE WHEN name LIKE '%%1' THEN 'u4pr' WHEN name LIKE '%%2' THEN 'u4xs' ELSE 'ezjm' END")
    db.run("SELECT trust_mark_all_dirty()")
    assert db.run("SELECT processed, remaining FROM trust_recompute(region => 'u4p')")[0] == (30, 270)
    assert db.run("SELECT processed FROM trust_recompute(region => 'u4')")[0].processed == 30
    upper = "7fffffff-ffff-ffff-ffff-ffffffffffff"
    low = db.one("SELECT count(DISTINCT scene_id) FROM trust_dirty WHERE scene_id <= %s", (upper,))
    assert db.run("SELECT processed FROM trust_recompute(last_scene => %s)", (upper,))[0].processed == low
    assert db.run("SELECT processed, remaining FROM trust_recompute(first_scene => %s)", (upper,))[0] == (240 - low, 0)
    with db.connect() as connection:
        for region in ("''", "'U4'", "'a'", "'u4%'", "'é'"):
            refused(connection, f"SELECT * FROM trust_recompute(region => {region})", "22023")


def test_two_workers_with_regions_of_their_own(db):
    """50,000 scenes: what both have done is disjoint, and together it is everything."""
    db.run("INSERT INTO scenes (id, name, owner_did, coarse_geohash) SELECT md5(i::text)::uuid, i::text, 'x', CASE WHEN i % 2 = 0 THEN 'u4' ELSE 'ez' END || 'pr' FROM generate_series(1, 50000) i")
    one, two = in_parallel(*[lambda region=region: db.run("SELECT * FROM trust_recompute(5000, '2 min', region => %s)", (region,))[0] for region in ("u4", "ez")])
    assert (one.processed, two.processed) == (25_000, 25_000)
    assert not dirty(db) and db.one("SELECT count(*) FROM trust_scores") == 50_000
    assert db.one("SELECT count(*) FROM (SELECT scene_id FROM trust_score_history GROUP BY scene_id HAVING count(*) > 1) twice") == 0


def test_progress_is_told_to_those_who_ask(db):
    add_scenes(db, 150, members=5)
    db.run("UPDATE memberships SET trust_weight = 0.5")
    told = []
    with db.connect() as connection:
        connection.add_notice_handler(lambda notice: told.append((notice.message_primary, notice.message_detail)))
        connection.execute("SET client_min_messages = debug1")
        connection.execute("SELECT * FROM trust_recompute()")
        connection.execute("SET client_min_messages = notice")
        progress = [json.loads(detail) for message, detail in told if message == "recompute progress"]
        assert progress == [{"processed": n, "total": 150} for n in range(10, 151, 10)]
        scenes = {row["scene_id"]: row for row in (json.loads(detail) for message, detail in told if message == "trust score recomputed")}
        stored = {str(row.scene_id): {"scene_id": str(row.scene_id), "score": row.score, "memberships": row.memberships, "alliances": row.alliances}
                  for row in db.run("SELECT * FROM trust_scores")}
        assert scenes == stored
        told.clear()
        db.run("UPDATE memberships SET trust_weight = 0.6")
        connection.execute("SELECT * FROM trust_recompute()")
        assert told == []


def test_history_has_a_row_for_each_change(db):
    add_scenes(db, 2)
    db.run("DELETE FROM trust_score_history")
    scores = []
    for weight in (0.1, 0.2, 0.2, 0.3):
        db.run("UPDATE memberships SET trust_weight = %s WHERE scene_id = md5('1')::uuid", (weight,))
        db.run("SELECT trust_recompute()")
        scores.append(db.one("SELECT score FROM trust_scores WHERE scene_id = md5('1')::uuid"))
    kept = db.run("SELECT * FROM trust_score_history ORDER BY changed_at")
    assert [row.score for row in kept] == [scores[0], scores[1], scores[3]]
    db.run("UPDATE scenes SET deleted_at = now() WHERE id = md5('1')::uuid")
    with db.connect() as connection:
        connection.execute("SELECT trust_recompute()")
        assert connection.execute("SELECT score FROM trust_score_history WHERE scene_id = md5('1')::uuid ORDER BY changed_at DESC LIMIT 1").fetchone() == (None,)
        connection.execute("SET pgsteward.trust_history = off")
        connection.execute("DELETE FROM trust_score_history")
        connection.execute("UPDATE memberships SET trust_weight = 0.9")
        connection.execute("SELECT trust_recompute()")
        assert connection.execute("SELECT count(*) FROM trust_score_history").fetchone() == (0,)


def peak_kb(connection, work):
    """How much the memory of a session's process has grown at most."""
    status = Path(f"/proc/{connection.info.backend_pid}/status")
    read = lambda name: int(next(line for line in status.read_text().splitlines() if line.startswith(name)).split()[1])
    before = read("RssAnon")
    connection.execute(work)
    return read("VmHWM") - before - read("RssFile") - read("RssShmem")


def test_memory_is_bounded_by_a_setting(db):
    add_scenes(db, 40_000, members=1, alliances=0)
    grown = {}
    for limit in ("4MB", "1GB"):
        db.run("SELECT trust_mark_all_dirty()")
        with db.connect() as connection:
            connection.execute("SELECT trust_role_multiplier('owner')")
            connection.execute(f"SET pgsteward.trust_recompute_memory = '{limit}'")
            grown[limit] = peak_kb(connection, "SELECT * FROM trust_recompute(1000000, '5 min')")
        assert not dirty(db)
    assert grown["4MB"] < 8_000 and grown["4MB"] < grown["1GB"] / 2, grown
    with db.connect() as connection:
        connection.execute("SELECT trust_role_multiplier('owner')")
        refused(connection, "SET pgsteward.trust_recompute_memory = '1kB'", "22023", hint=False)
