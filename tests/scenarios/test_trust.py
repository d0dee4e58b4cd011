"""Trust: marking, recomputing, failing, timing out, and many at once."""

import threading
import time
import uuid

import psycopg
import pytest
from conftest import MAJOR, in_parallel, refused, wait_until

SCENE = "00000000-0000-0000-0000-00000000000{}"


def scene(n):
    return SCENE.format(n)


def add_scenes(db, count, members=3, alliances=1):
    """Scenes with members and a ring of alliances, all recomputed."""
    db.run("INSERT INTO scenes (id, name, owner_did) SELECT md5(i::text)::uuid, 'scene ' || i, 'did:' || i FROM generate_series(1, %s) i", (count,))
    db.run("""INSERT INTO memberships (scene_id, user_did, role, status, trust_weight)
              SELECT md5(i::text)::uuid, 'did:' || j, (ARRAY['owner', 'curator', 'member', 'guest'])[1 + (i + j) %% 4], 'active', ((i * 7 + j * 13) %% 101) / 100.0
                FROM generate_series(1, %s) i, generate_series(1, %s) j""", (count, members))
    db.run("""INSERT INTO alliances (from_scene_id, to_scene_id, weight)
              SELECT md5(i::text)::uuid, md5((1 + (i + j * 37) %% %s)::text)::uuid, ((i * 3 + j * 17) %% 101) / 100.0
                FROM generate_series(1, %s) i, generate_series(1, %s) j WHERE i <> 1 + (i + j * 37) %% %s""", (count, count, alliances, count))
    db.run("SELECT * FROM trust_recompute(100000, '5 min')")


WRONG = """SELECT count(*) FROM trust_compute(ARRAY(SELECT id FROM scenes WHERE deleted_at IS NULL)) c
             LEFT JOIN trust_scores t USING (scene_id)
            WHERE abs(t.score - c.score) <= 1e-9 AND t.memberships = c.memberships AND t.alliances = c.alliances IS NOT TRUE
               OR t.score IS NULL OR abs(t.score - c.score) > 1e-9"""


def dirty(db):
    return {row.scene_id for row in db.run("SELECT DISTINCT scene_id FROM trust_dirty")}


def marked_by(db, sql):
    """The scenes that a statement marks."""
    db.run("DELETE FROM trust_dirty")
    db.run(sql)
    return {int(str(s)[-1]) for s in dirty(db)}


def test_the_score_follows_its_inputs(db):
    db.run(f"INSERT INTO scenes (id, name, owner_did) VALUES ('{scene(1)}', 'a', 'x'), ('{scene(2)}', 'b', 'x')")
    db.run(f"INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES ('{scene(1)}', 'u', 'member', 'active', 1.0)")
    db.run(f"INSERT INTO alliances (from_scene_id, to_scene_id, weight) VALUES ('{scene(1)}', '{scene(2)}', 0.5)")
    score = f"SELECT score FROM trust_score('{scene(1)}')"
    db.run("SELECT * FROM trust_recompute()")
    assert db.one(score) == 0.25
    db.run("UPDATE memberships SET role = 'owner'")
    db.run("SELECT * FROM trust_recompute()")
    assert db.one(score) == 0.5
    db.run("UPDATE alliances SET weight = 0.1")
    db.run("SELECT * FROM trust_recompute()")
    assert db.one(score) == pytest.approx(0.1)


def test_only_dirty_scenes_are_processed(db):
    add_scenes(db, 100)
    before = dict(db.run("SELECT scene_id, computed_at FROM trust_scores"))
    db.run("UPDATE memberships SET trust_weight = 0.123 WHERE scene_id = md5('7')::uuid AND user_did = 'did:1'")
    assert db.one("SELECT count(*) FROM trust_dirty") == 1
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.changed, run.remaining) == (1, 1, 0)
    assert db.one("SELECT count(*) FROM trust_dirty") == 0
    after = dict(db.run("SELECT scene_id, computed_at FROM trust_scores"))
    assert len([s for s in after if after[s] != before[s]]) == 1


def test_what_marks_a_scene(db):
    db.run(f"INSERT INTO scenes (id, name, owner_did) SELECT ('{SCENE[:-2]}' || i)::uuid, 'scene ' || i, 'x' FROM generate_series(1, 5) i")
    assert {int(str(s)[-1]) for s in dirty(db)} == {1, 2, 3, 4, 5}
    one, two, three = scene(1), scene(2), scene(3)
    assert marked_by(db, f"INSERT INTO memberships (scene_id, user_did, status) VALUES ('{one}', 'u', 'active')") == {1}
    assert marked_by(db, "UPDATE memberships SET role = 'curator'") == {1}
    assert marked_by(db, "UPDATE memberships SET trust_weight = 0.9") == {1}
    assert marked_by(db, f"UPDATE memberships SET scene_id = '{two}'") == {1, 2}
    assert marked_by(db, "UPDATE memberships SET updated_at = now()") == set()
    assert marked_by(db, "UPDATE memberships SET role = role") == set()
    assert marked_by(db, "UPDATE memberships SET status = 'rejected'") == {2}
    assert marked_by(db, "UPDATE memberships SET role = 'guest', trust_weight = 0.1") == set(), "what does not count cannot move a score"
    assert marked_by(db, f"INSERT INTO memberships (scene_id, user_did) VALUES ('{one}', 'pending')") == set()
    assert marked_by(db, "UPDATE memberships SET status = 'active'") == {1, 2}
    assert marked_by(db, "DELETE FROM memberships") == {1, 2}
    assert marked_by(db, f"INSERT INTO alliances (from_scene_id, to_scene_id) VALUES ('{one}', '{two}')") == {1}
    assert marked_by(db, "UPDATE alliances SET weight = 0.5") == {1}
    assert marked_by(db, "UPDATE alliances SET reason = 'friends'") == set()
    assert marked_by(db, "UPDATE alliances SET deleted_at = now()") == {1}
    assert marked_by(db, "UPDATE alliances SET deleted_at = NULL") == {1}
    assert marked_by(db, "UPDATE alliances SET status = 'dissolved'") == {1}
    assert marked_by(db, f"UPDATE alliances SET status = 'active', from_scene_id = '{three}'") == {1, 3}
    assert marked_by(db, f"UPDATE scenes SET deleted_at = now() WHERE id = '{two}'") == {2, 3}
    assert marked_by(db, f"UPDATE scenes SET deleted_at = NULL WHERE id = '{two}'") == {2, 3}
    assert marked_by(db, f"UPDATE scenes SET moderation_status = 'suspended', moderated_by = 'm', moderation_timestamp = now() WHERE id = '{two}'") == {2, 3}
    assert marked_by(db, "UPDATE scenes SET description = 'x'") == set()
    assert marked_by(db, f"DELETE FROM scenes WHERE id = '{two}'") == {2, 3}
    assert marked_by(db, "TRUNCATE memberships") == {1, 3, 4, 5}
    assert marked_by(db, "INSERT INTO memberships (scene_id, user_did, status) SELECT id, 'v', 'active' FROM scenes ON CONFLICT (scene_id, user_did) DO UPDATE SET role = 'guest'") == {1, 3, 4, 5}


def test_a_mark_belongs_to_the_transaction_of_the_change(db):
    add_scenes(db, 3)
    with db.connect(autocommit=False) as connection:
        connection.execute("UPDATE memberships SET trust_weight = 0.01")
        assert db.one("SELECT count(*) FROM trust_dirty") == 0
        connection.rollback()
    assert db.one("SELECT count(*) FROM trust_dirty") == 0


def test_marking_twice_counts_once(db):
    add_scenes(db, 1)
    for weight in (0.1, 0.2, 0.3):
        db.run("UPDATE memberships SET trust_weight = %s", (weight,))
    assert db.one("SELECT count(*) FROM trust_dirty") == 1
    assert db.one("SELECT trust_mark_all_dirty()") == 1
    assert db.one("SELECT count(*) FROM trust_dirty") == 1


def test_only_active_rows_that_stand_count(db):
    db.run(f"INSERT INTO scenes (id, name, owner_did) SELECT ('{SCENE[:-2]}' || i)::uuid, 'scene ' || i, 'x' FROM generate_series(1, 5) i")
    db.run(f"""INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES
        ('{scene(1)}', 'a', 'owner', 'active', 1), ('{scene(1)}', 'b', 'guest', 'pending', 0), ('{scene(1)}', 'c', 'guest', 'rejected', 0)""")
    db.run(f"""INSERT INTO alliances (from_scene_id, to_scene_id, weight, status, deleted_at) VALUES
        ('{scene(1)}', '{scene(2)}', 0.8, 'active', NULL), ('{scene(1)}', '{scene(3)}', 0, 'pending', NULL), ('{scene(1)}', '{scene(4)}', 0, 'active', now()),
        ('{scene(1)}', '{scene(5)}', 0.1, 'active', NULL), ('{scene(2)}', '{scene(1)}', 0.5, 'active', NULL)""")
    db.run(f"UPDATE scenes SET moderation_status = 'hidden', moderated_by = 'm', moderation_timestamp = now() WHERE id = '{scene(5)}'")
    db.run("SELECT * FROM trust_recompute()")
    (row,) = db.run(f"SELECT * FROM trust_score('{scene(1)}')")
    assert (row.score, row.alliance_factor, row.membership_mean, row.memberships, row.alliances) == (0.8, 0.8, 1.0, 1, 1)
    db.run(f"UPDATE scenes SET moderation_status = 'flagged' WHERE id = '{scene(5)}'")
    db.run("SELECT * FROM trust_recompute()")
    assert db.one(f"SELECT alliance_factor FROM trust_score('{scene(1)}')") == pytest.approx(0.45)
    db.run(f"UPDATE scenes SET deleted_at = now() WHERE id = '{scene(1)}'")
    db.run("SELECT * FROM trust_recompute()")
    assert db.one(f"SELECT count(*) FROM trust_scores WHERE scene_id = '{scene(1)}'") == 0


def test_both_ways_of_reading_agree(db):
    """A few scenes are read by index, many in one pass: the scores are the same."""
    add_scenes(db, 2000, members=4, alliances=3)
    db.run("UPDATE memberships SET status = 'pending' WHERE user_did = 'did:2'")
    db.run("UPDATE scenes SET deleted_at = now() WHERE name LIKE '%%7'")
    db.run("UPDATE scenes SET moderation_status = 'suspended', moderated_by = 'm', moderation_timestamp = now() WHERE name LIKE '%%3'")
    db.run("ANALYZE")
    db.run("SELECT trust_mark_all_dirty()")
    # Scenes that have fallen make the recompute look once more at those that vouch for them.
    assert db.run("SELECT * FROM trust_recompute(1)")[0].processed >= 2000
    few = dict(db.run("SELECT scene_id, (score, alliance_factor, membership_mean, memberships, alliances)::text FROM trust_scores"))
    assert db.one(WRONG) == 0
    db.run("TRUNCATE trust_scores")
    db.run("SELECT trust_mark_all_dirty()")
    assert db.run("SELECT * FROM trust_recompute(100000)")[0].processed == 2000
    assert db.one(WRONG) == 0
    many = dict(db.run("SELECT scene_id, (score, alliance_factor, membership_mean, memberships, alliances)::text FROM trust_scores"))
    assert few.keys() == many.keys()


def slow_down(db, seconds):
    db.run(f"""CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$""")
    db.run("CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON trust_scores FOR EACH ROW EXECUTE FUNCTION slow()")


def test_the_timeout_ends_a_cycle_and_keeps_its_progress(db):
    add_scenes(db, 150)
    db.run("UPDATE memberships SET trust_weight = 0.77")
    slow_down(db, 0.02)
    began = time.monotonic()
    (run,) = db.run("SELECT * FROM trust_recompute(timeout => '1 s')")
    assert time.monotonic() - began < 1.5
    assert run.timed_out and 0 < run.processed < 150 and run.processed + run.remaining == 150
    assert db.one("SELECT count(DISTINCT scene_id) FROM trust_dirty") == run.remaining
    assert db.one("SELECT timed_out FROM trust_recompute_runs ORDER BY id DESC LIMIT 1")
    db.run("DROP TRIGGER slow ON trust_scores")
    (rest,) = db.run("SELECT * FROM trust_recompute()")
    assert rest.processed == run.remaining and not rest.timed_out
    assert db.one(WRONG) == 0


def test_the_timeout_argument_overrides_the_setting(db):
    add_scenes(db, 150)
    db.run("UPDATE memberships SET trust_weight = 0.77")
    slow_down(db, 0.02)
    with db.connect() as connection:
        connection.execute("SELECT trust_role_multiplier('owner')")
        connection.execute("SET pgsteward.trust_recompute_timeout = '30s'")
        began = time.monotonic()
        run = connection.execute("SELECT * FROM trust_recompute(timeout => '200ms')").fetchone()
        assert run.timed_out and time.monotonic() - began < 0.7
        connection.execute("SET pgsteward.trust_recompute_timeout = '300ms'")
        assert connection.execute("SELECT * FROM trust_recompute()").fetchone().timed_out
        assert connection.execute("SELECT 1 FROM pg_sleep(0.5)").fetchone()  # nothing is cancelled afterwards


def test_a_cancellation_by_the_user_is_not_a_timeout(db):
    add_scenes(db, 50)
    db.run("UPDATE memberships SET trust_weight = 0.77")
    slow_down(db, 0.05)
    with db.connect() as connection:
        threading.Timer(0.5, connection.cancel).start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SELECT * FROM trust_recompute()")
    assert db.one("SELECT count(DISTINCT scene_id) FROM trust_dirty") == 50


def test_a_huge_batch_fits_itself_into_a_short_timeout(db):
    add_scenes(db, 30_000)
    db.run("UPDATE memberships SET trust_weight = 0.66")
    calls = 0
    while db.run("SELECT * FROM trust_recompute(1000000, '250 ms')")[0].remaining:
        calls += 1
        assert calls < 100, "no progress"
    assert db.one(WRONG) == 0


def test_a_limit_per_cycle_takes_the_oldest(db):
    add_scenes(db, 1000, members=1)
    db.run("SELECT trust_mark_dirty(ARRAY[md5(i::text)::uuid]) FROM generate_series(1, 1000) i")
    (run,) = db.run("SELECT * FROM trust_recompute(max_scenes => 100)")
    assert (run.processed, run.remaining) == (100, 900)
    left = dirty(db)
    assert all(uuid.UUID(db.one(f"SELECT md5('{i}')::uuid").hex) not in left for i in (1, 50, 100))
    assert db.one("SELECT md5('101')::uuid") in left


def test_a_failing_scene_stops_nobody_and_ends_in_quarantine(db):
    add_scenes(db, 200)
    db.run("""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.scene_id = md5('13')::uuid THEN RAISE 'scene 13 is cursed'; END IF; RETURN NEW; END $$""")
    db.run("CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON trust_scores FOR EACH ROW EXECUTE FUNCTION fail()")
    db.run("UPDATE memberships SET trust_weight = 0.77")
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.failed, run.remaining) == (199, 1, 1)
    (mark,) = db.run("SELECT * FROM trust_dirty")
    assert mark.attempts == 1 and "cursed" in mark.last_error and mark.retry_at > mark.marked_at
    assert db.run("SELECT * FROM trust_recompute()")[0].failed == 0  # it waits
    for attempt in range(2, 6):
        db.run("UPDATE trust_dirty SET retry_at = now()")
        assert db.run("SELECT * FROM trust_recompute()")[0].failed == 1
        assert db.one("SELECT attempts FROM trust_dirty") == attempt
    assert db.one("SELECT quarantined FROM vw_trust_health") == 1
    assert db.one("SELECT level FROM steward_health WHERE check_name = 'trust.quarantined'") == "warn"
    db.run("UPDATE trust_dirty SET retry_at = now()")
    assert db.run("SELECT * FROM trust_recompute()")[0].failed == 0  # quarantined
    db.run("DROP TRIGGER fail ON trust_scores")
    db.run("SELECT trust_mark_dirty(ARRAY[md5('13')::uuid])")
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert (run.processed, run.remaining) == (1, 0)
    assert db.one(WRONG) == 0


def test_a_new_change_lifts_the_quarantine(db):
    add_scenes(db, 2)
    db.run("SELECT trust_mark_dirty(ARRAY[md5('1')::uuid])")
    db.run("UPDATE trust_dirty SET attempts = 5, quarantined_at = now(), last_error = 'x'")
    db.run("UPDATE memberships SET trust_weight = 0.01 WHERE scene_id = md5('1')::uuid")
    assert db.run("SELECT * FROM trust_recompute()")[0].processed == 1


def test_a_change_during_a_recompute_is_not_lost(db):
    add_scenes(db, 1)
    db.run("UPDATE memberships SET trust_weight = 0.5")
    with db.connect(autocommit=False) as recompute:
        recompute.execute("SELECT * FROM trust_recompute()")
        # The mark is cleared but not committed: the writer neither waits nor is forgotten.
        db.run("UPDATE memberships SET trust_weight = 0.9")
        assert db.run("SELECT * FROM trust_recompute()")[0].processed == 0  # somebody works on it
        recompute.commit()
    assert db.one("SELECT count(*) FROM trust_dirty") == 1
    assert db.run("SELECT * FROM trust_recompute()")[0].processed == 1
    assert db.one(WRONG) == 0


def test_a_change_that_commits_late_is_not_lost(db):
    add_scenes(db, 1)
    with db.connect(autocommit=False) as writer:
        writer.execute("UPDATE memberships SET trust_weight = 0.9 WHERE user_did = 'did:1'")
        db.run("UPDATE memberships SET trust_weight = 0.4 WHERE user_did = 'did:2'")
        db.run("SELECT * FROM trust_recompute()")
        writer.commit()
    db.run("SELECT * FROM trust_recompute()")
    assert db.one(WRONG) == 0 and db.one("SELECT count(*) FROM trust_dirty") == 0


@pytest.mark.parametrize("isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
def test_writers_of_any_isolation_level_mark_without_failing(db, isolation):
    add_scenes(db, 3)
    with db.connect(autocommit=False) as writer:
        writer.isolation_level = isolation
        writer.execute("SELECT count(*) FROM trust_dirty")
        db.run("UPDATE memberships SET trust_weight = 0.3 WHERE user_did = 'did:1'")
        db.run("SELECT * FROM trust_recompute()")
        writer.execute("UPDATE memberships SET trust_weight = 0.9 WHERE user_did = 'did:2'")
        writer.commit()
    assert db.run("SELECT * FROM trust_recompute()")[0].processed == 3
    assert db.one(WRONG) == 0


def test_recompute_one_scene(db):
    add_scenes(db, 3)
    db.run("UPDATE memberships SET role = 'owner', trust_weight = 1")
    db.run("UPDATE alliances SET weight = 1")
    assert db.one("SELECT trust_recompute_scene(md5('2')::uuid)") == 1.0
    assert len(dirty(db)) == 2
    assert db.one("SELECT trust_recompute_scene(md5('2')::uuid)") == 1.0  # dirty or not


def test_stale_until_recomputed(db):
    add_scenes(db, 1)
    score = "SELECT stale, computed_at IS NULL AS live, score FROM trust_score(md5('1')::uuid)"
    assert db.run(score)[0].stale is False
    db.run("UPDATE memberships SET trust_weight = 0.99")
    assert db.run(score)[0].stale is True
    db.run("DELETE FROM trust_scores")
    (row,) = db.run(score)
    assert row.live and row.stale and row.score == pytest.approx(db.one("SELECT score FROM trust_compute(ARRAY[md5('1')::uuid])"))


def test_the_run_says_how_much_scores_moved(db):
    db.run(f"INSERT INTO scenes (id, name, owner_did) VALUES ('{scene(1)}', 'a', 'x'), ('{scene(2)}', 'b', 'x')")
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'u', 'owner', 'active', 0.5 FROM scenes")
    assert db.run("SELECT * FROM trust_recompute()")[0].avg_weight_variance == 0  # none had a score
    db.run(f"UPDATE memberships SET trust_weight = 0.6 WHERE scene_id = '{scene(1)}'")
    db.run(f"UPDATE memberships SET trust_weight = 0.2 WHERE scene_id = '{scene(2)}'")
    (run,) = db.run("SELECT * FROM trust_recompute()")
    assert run.avg_weight_variance == pytest.approx((0.1 + 0.3) / 2)
    (kept,) = db.run("SELECT * FROM trust_recompute_runs ORDER BY id DESC LIMIT 1")
    assert (kept.processed, kept.changed, kept.avg_weight_variance) == (run.processed, run.changed, run.avg_weight_variance)


def test_bad_input_is_refused(db):
    add_scenes(db, 2)
    db.run("INSERT INTO alliances (from_scene_id, to_scene_id) VALUES (md5('1')::uuid, md5('2')::uuid)")
    db.run("SELECT * FROM trust_recompute()")
    nobody = "'00000000-0000-0000-0000-0000000000ff'"
    with db.connect() as connection:
        refused(connection, f"SELECT * FROM trust_score({nobody})", "42704")
        refused(connection, f"SELECT trust_recompute_scene({nobody})", "42704")
        refused(connection, f"SELECT trust_mark_dirty(ARRAY[md5('1')::uuid, {nobody}])", "42704")
        refused(connection, "SELECT trust_mark_dirty(ARRAY[NULL::uuid])", "42704")
        assert not dirty(db)
        for call in ("trust_score(NULL)", "trust_recompute(NULL)", "trust_mark_dirty(NULL)"):
            refused(connection, f"SELECT * FROM {call}", "22004")
        refused(connection, "SELECT trust_recompute_scene(NULL)", "22004")
        for call in ("0", "-1", "2000000", "500, '0 s'", "500, '-1 s'", "500, '2 days'", "500, 'infinity'", "500, '1 s', 0", "500, '1 s', -5"):
            if "infinity" in call and MAJOR < 17:
                continue  # intervals have no infinity there
            refused(connection, f"SELECT * FROM trust_recompute({call})", "22023")
        for weight in ("1.5", "-0.1", "'NaN'", "'Infinity'"):
            refused(connection, f"UPDATE memberships SET trust_weight = {weight}", "23514", hint=False)
            refused(connection, f"UPDATE alliances SET weight = {weight}", "23514", hint=False)
            refused(connection, f"SELECT trust_formula(ARRAY['owner'], ARRAY[{weight}::float8])", "22003")
        refused(connection, "UPDATE memberships SET trust_weight = NULL", "23502", hint=False)
        refused(connection, "UPDATE memberships SET role = 'emperor'", "23514", hint=False)
        refused(connection, "UPDATE memberships SET status = 'maybe'", "23514", hint=False)
        refused(connection, "UPDATE alliances SET status = 'revoked'", "23514", hint=False)
        refused(connection, "SELECT trust_formula(ARRAY['owner', 'guest'], ARRAY[1.0::float8])", "2202E")
        refused(connection, "SELECT trust_formula(ARRAY['owner'], ARRAY[NULL::float8])", "22004")
        for setting in ("'0'", "'-5s'", "'2d'", "'soon'"):
            refused(connection, f"SET pgsteward.trust_recompute_timeout = {setting}", "22023", hint=False)
    with db.connect(autocommit=False) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        refused(connection, "SELECT * FROM trust_recompute()", "25000")


def test_a_soft_deleted_pair_can_be_made_again(db):
    add_scenes(db, 2)
    pair = "INSERT INTO alliances (from_scene_id, to_scene_id, weight) VALUES (md5('1')::uuid, md5('2')::uuid, 0.5)"
    db.run("DELETE FROM alliances")
    db.run(pair)
    with db.connect() as connection:
        refused(connection, pair, "23505", hint=False)
    db.run("UPDATE alliances SET deleted_at = now()")
    db.run(pair)


def test_before_migration_the_error_says_so(empty_db):
    empty_db.run("CREATE EXTENSION pgsteward")
    with empty_db.connect() as connection:
        refused(connection, "SELECT * FROM trust_recompute()", "55000")
        refused(connection, "SELECT trust_recompute_scene(gen_random_uuid())", "55000")


def test_many_callers_while_memberships_change(db):
    """8 callers over 50,000 dirty scenes while another session keeps changing memberships."""
    add_scenes(db, 50_000, members=2)
    db.run("UPDATE memberships SET trust_weight = 0.5")
    writing = threading.Event()
    writing.set()
    counts = []

    def write():
        with db.connect() as connection:
            n = 0
            while writing.is_set():
                n += 1
                connection.execute("""UPDATE memberships SET trust_weight = random(), role = (ARRAY['owner', 'curator', 'member', 'guest'])[1 + floor(random() * 4)::int]
                                       WHERE scene_id IN (SELECT md5(floor(random() * 50000)::int::text)::uuid FROM generate_series(1, 20))""")
                connection.execute("UPDATE alliances SET deleted_at = CASE WHEN deleted_at IS NULL THEN now() END WHERE from_scene_id = md5(%s::text)::uuid", (n % 50_000,))
            counts.append(n)

    def recompute():
        processed = 0
        with db.connect() as connection:
            for _ in range(40):
                run = connection.execute("SELECT * FROM trust_recompute(500, '10 s', 2500)").fetchone()
                assert run.failed == 0
                processed += run.processed
        return processed

    writer = threading.Thread(target=write)
    writer.start()
    processed = in_parallel(*[recompute] * 8)
    writing.clear()
    writer.join()
    assert counts and counts[0] > 20 and sum(processed) >= 50_000
    wait_until(lambda: db.run("SELECT * FROM trust_recompute(10000, '1 min')")[0].remaining == 0, 60, "an empty backlog")
    assert db.one(WRONG) == 0
    assert db.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
