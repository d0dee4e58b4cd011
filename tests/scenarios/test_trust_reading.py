"""Reading trust: why a score is what it is, what it was, and what it would be."""

import json
import random

import pytest
from conftest import refused

OWNER = "did:owner"
ONE, ALLY, HIDDEN, OTHER, GONE = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3, 4, 5))


@pytest.fixture
def shop(roles):
    """A scene with members of every kind and alliances that count and don't; its score is 0.39."""
    roles.run(f"""INSERT INTO scenes (id, name, owner_did, moderation_status, moderated_by, moderation_timestamp, deleted_at) VALUES
        ('{ONE}', 'one', '{OWNER}', 'visible', NULL, NULL, NULL), ('{ALLY}', 'ally', 'x', 'visible', NULL, NULL, NULL), ('{OTHER}', 'other', 'x', 'flagged', 'm', now(), NULL),
        ('{HIDDEN}', 'hidden', 'x', 'hidden', 'm', now(), NULL), ('{GONE}', 'gone', 'x', 'visible', NULL, NULL, now())""")
    roles.run(f"""INSERT INTO memberships (scene_id, user_did, role, trust_weight, status) VALUES
        ('{ONE}', 'did:a', 'owner', 0.9, 'active'), ('{ONE}', 'did:b', 'curator', 0.7, 'active'), ('{ONE}', 'did:c', 'member', 0.5, 'active'), ('{ONE}', 'did:d', 'guest', 0.8, 'active'),
        ('{ONE}', 'did:e', 'owner', 1, 'pending'), ('{ONE}', 'did:f', 'owner', 1, 'rejected')""")
    roles.run(f"""INSERT INTO alliances (from_scene_id, to_scene_id, weight, status, deleted_at) VALUES
        ('{ONE}', '{ALLY}', 0.9, 'active', NULL), ('{ONE}', '{OTHER}', 0.7, 'active', NULL), ('{ONE}', '{HIDDEN}', 0.1, 'active', NULL), ('{ONE}', '{GONE}', 0.1, 'active', NULL),
        ('{ALLY}', '{ONE}', 0.2, 'active', NULL), ('{ONE}', '{ALLY}', 0.3, 'dissolved', now())""")
    roles.run("SELECT * FROM trust_recompute()")
    return roles


def explain(db, columns="*"):
    return db.run(f"SELECT {columns} FROM trust_explain('{ONE}')")


def score_without(db, table, row_id):
    """The score that a recompute gives without a row, which is put back."""
    with db.connect(autocommit=False) as connection:
        connection.execute(f"DELETE FROM {table} WHERE id = %s", (row_id,))
        score = connection.execute(f"SELECT trust_recompute_scene('{ONE}')").fetchone()[0]
        connection.rollback()
    return score


def test_an_effect_is_the_score_minus_the_score_without_it(shop):
    rows = explain(shop)
    assert {(row.kind, row.subject, row.name, row.role, row.weight) for row in rows} == {
        ("membership", "did:a", None, "owner", 0.9), ("membership", "did:b", None, "curator", 0.7), ("membership", "did:c", None, "member", 0.5), ("membership", "did:d", None, "guest", 0.8),
        ("alliance", ALLY, "ally", None, 0.9), ("alliance", OTHER, "other", None, 0.7)}
    score = shop.one(f"SELECT score FROM trust_score('{ONE}')")
    for row in rows:
        assert row.effect == pytest.approx(score - score_without(shop, row.kind + "s", row.id), abs=1e-12)
    assert [abs(row.effect) for row in rows] == sorted((abs(row.effect) for row in rows), reverse=True)
    shares = {row.subject: row.share for row in rows}
    assert shares["did:a"] == pytest.approx(0.9 / 1.95) and shares[ALLY] == pytest.approx(0.9 / 1.6)
    assert not any(row.pending for row in rows)


def test_the_last_member_and_the_last_alliance_have_their_whole_effect(db):
    db.run(f"INSERT INTO scenes (id, name, owner_did) VALUES ('{ONE}', 'one', 'x'), ('{ALLY}', 'ally', 'x')")
    assert explain(db) == []
    db.run(f"INSERT INTO memberships (scene_id, user_did, role, trust_weight, status) VALUES ('{ONE}', 'did:a', 'owner', 0.8, 'active')")
    db.run(f"INSERT INTO alliances (from_scene_id, to_scene_id, weight) VALUES ('{ONE}', '{ALLY}', 0.5)")
    assert [(row.kind, row.share, row.effect) for row in explain(db)] == [("membership", 1, 0.4), ("alliance", 1, -0.4)]
    db.run("UPDATE memberships SET trust_weight = 0")
    assert [(row.share, row.effect) for row in explain(db)] == [(0, 0), (1, 0)]


def test_effects_of_many_members_are_quick(db):
    db.run(f"INSERT INTO scenes (id, name, owner_did) VALUES ('{ONE}', 'one', 'x')")
    db.run(f"INSERT INTO memberships (scene_id, user_did, role, trust_weight, status) SELECT '{ONE}', 'did:' || i, 'guest', i / 20000.0, 'active' FROM generate_series(1, 20000) i")
    with db.connect() as connection:
        connection.execute("SET statement_timeout = '5s'")
        row = connection.execute(f"SELECT count(*), sum(share), max(effect), min(effect) FROM trust_explain('{ONE}')").fetchone()
    mean = 0.3 * 20001 / 40000
    assert row.count == 20000 and row.sum == pytest.approx(1)
    assert (row.max, row.min) == (pytest.approx((0.3 - mean) / 19999, rel=1e-6), pytest.approx((0.3 / 20000 - mean) / 19999, rel=1e-6))


def test_what_changed_since_the_stored_score_is_pending(shop):
    shop.run("UPDATE memberships SET trust_weight = 0.6, updated_at = clock_timestamp() WHERE user_did = 'did:b'")
    pending = [row.subject for row in explain(shop) if row.pending]
    assert pending == ["did:b"]
    shop.run("SELECT * FROM trust_recompute()")
    assert not any(row.pending for row in explain(shop))


def test_who_may_see_trust_weights(shop):
    calls = (f"SELECT * FROM trust_explain('{ONE}')", f"SELECT * FROM trust_simulate('{ONE}', '[]')")
    for role, user, allowed in (("app", OWNER, True), ("app", "did:a", False), ("app", None, False), ("worker", None, True), ("admin", None, True)):
        with shop.connect(f"test_{role}") as connection:
            if user:
                connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (user,))
            for sql in calls:
                if allowed:
                    assert connection.execute(sql).fetchall()
                else:
                    refused(connection, sql, "42501")
            for internal in (f"trust_inputs('{ONE}')", f"check_trust_reader('{ONE}')"):
                refused(connection, f"SELECT * FROM {internal}", "42501", hint=False)
    with shop.connect("test_readonly") as connection:
        for sql in calls:
            refused(connection, sql, "42501", hint=False)


def test_the_acting_role_counts_and_not_the_login(shop):
    with shop.connect() as connection:
        connection.execute("SET ROLE test_app")
        assert connection.execute("SELECT steward_caller()").fetchone()[0] == "test_app"
        refused(connection, f"SELECT * FROM trust_explain('{ONE}')", "42501")
        connection.execute("SET ROLE test_worker")
        assert connection.execute(f"SELECT * FROM trust_explain('{ONE}')").fetchall()
        connection.execute("RESET ROLE")
        assert connection.execute("SELECT steward_caller() = session_user").fetchone()[0]


def test_unknown_scenes_are_refused(shop):
    with shop.connect() as connection:
        for place in (GONE, "ffffffff-ffff-ffff-ffff-ffffffffffff"):
            refused(connection, f"SELECT * FROM trust_explain('{place}')", "42704")
            refused(connection, f"SELECT * FROM trust_simulate('{place}', '[]')", "42704")
        refused(connection, "SELECT * FROM trust_explain(NULL)", "22004")
        refused(connection, "SELECT * FROM trust_simulate(NULL, '[]')", "22004")


def simulate(connection, changes):
    return connection.execute(f"SELECT * FROM trust_simulate('{ONE}', %s)", (json.dumps(changes),)).fetchone()


CHANGES = [
    ([], "SELECT"),
    ([{"add_membership": "did:new", "role": "curator", "trust_weight": 0.8}], f"INSERT INTO memberships (scene_id, user_did, role, trust_weight, status) VALUES ('{ONE}', 'did:new', 'curator', 0.8, 'active')"),
    ([{"add_membership": "did:new"}], f"INSERT INTO memberships (scene_id, user_did, status) VALUES ('{ONE}', 'did:new', 'active')"),
    ([{"add_membership": "did:new", "status": "pending"}], "SELECT"),
    ([{"membership": "did:e", "status": "active"}], "UPDATE memberships SET status = 'active' WHERE user_did = 'did:e'"),
    ([{"membership": "did:a", "role": "guest"}], "UPDATE memberships SET role = 'guest' WHERE user_did = 'did:a'"),
    ([{"membership": "did:b", "trust_weight": 0}, {"remove_membership": "did:c"}], "UPDATE memberships SET trust_weight = 0 WHERE user_did = 'did:b'; DELETE FROM memberships WHERE user_did = 'did:c'"),
    ([{"membership": "did:b", "trust_weight": 0.1}, {"membership": "did:b", "role": "owner"}], "UPDATE memberships SET trust_weight = 0.1, role = 'owner' WHERE user_did = 'did:b'"),
    ([{"remove_membership": "did:b"}, {"add_membership": "did:b", "trust_weight": 1}], "UPDATE memberships SET trust_weight = 1, role = 'member' WHERE user_did = 'did:b'"),
    ([{"remove_membership": f"did:{n}"} for n in "abcd"], "DELETE FROM memberships"),
    ([{"alliance": ALLY, "weight": 0.4}], f"UPDATE alliances SET weight = 0.4 WHERE to_scene_id = '{ALLY}'"),
    ([{"alliance": ALLY, "status": "pending"}], f"UPDATE alliances SET status = 'pending' WHERE to_scene_id = '{ALLY}'"),
    ([{"alliance": HIDDEN, "weight": 1}], "SELECT"),
    ([{"remove_alliance": ALLY}, {"remove_alliance": OTHER}], f"UPDATE alliances SET deleted_at = now() WHERE from_scene_id = '{ONE}'"),
    ([{"remove_alliance": ALLY}, {"alliance": ALLY.upper()}], f"UPDATE alliances SET weight = 1 WHERE to_scene_id = '{ALLY}' AND deleted_at IS NULL"),
]


def test_a_simulation_tells_what_the_change_does(shop):
    parts = "score, alliance_factor, membership_mean, memberships, alliances"
    with shop.connect(autocommit=False) as connection:
        for changes, statement in CHANGES:
            connection.execute("SET TRANSACTION READ ONLY")
            told = simulate(connection, changes)
            connection.rollback()
            before = connection.execute(f"SELECT {parts} FROM trust_score('{ONE}')").fetchone()
            connection.execute(statement)
            connection.execute(f"SELECT trust_recompute_scene('{ONE}')")
            after = connection.execute(f"SELECT {parts} FROM trust_score('{ONE}')").fetchone()
            connection.rollback()
            for moment, real in (("before", before), ("after", after)):
                assert [getattr(told, f"{part}_{moment}") for part in real._fields] == pytest.approx(list(real), abs=1e-12), changes
            assert told.difference == told.score_after - told.score_before


def test_many_changes_at_once(shop):
    choose = random.Random(7)
    weights = [choose.random() for _ in range(900)]
    with shop.connect() as connection:
        told = simulate(connection, [{"add_membership": f"did:n{n}", "role": "owner", "trust_weight": w} for n, w in enumerate(weights)])
    assert told.memberships_after == 904
    assert told.membership_mean_after == pytest.approx((1.95 + sum(weights)) / 904, abs=1e-12)


SENSELESS = [
    ('{"membership": "did:a", "role": "guest"}', "22023"), ("1", "22023"), ("null", "22023"), ("[1]", "22023"), ("[null]", "22023"), ("[[]]", "22023"), ("[{}]", "22023"),
    ('[{"role": "guest"}]', "22023"), ('[{"membership": "did:a", "remove_membership": "did:a"}]', "22023"), ('[{"membership": "did:a"}]', "22023"),
    ('[{"membership": "did:a", "weight": 1}]', "22023"), ('[{"alliance": "' + ALLY + '", "trust_weight": 1}]', "22023"), ('[{"remove_membership": "did:a", "role": "guest"}]', "22023"),
    ('[{"membership": "did:a", "trust_weight": 1.01}]', "22023"), ('[{"membership": "did:a", "trust_weight": -1e400}]', "22023"), ('[{"membership": "did:a", "trust_weight": "0.5"}]', "22023"),
    ('[{"membership": "did:a", "trust_weight": null}]', "22023"), ('[{"membership": "did:a", "role": "admin"}]', "22023"), ('[{"membership": "did:a", "role": null}]', "22023"),
    ('[{"membership": "did:a", "role": ["owner"]}]', "22023"), ('[{"membership": "did:a", "status": "dissolved"}]', "22023"), ('[{"membership": "did:nobody", "role": "guest"}]', "42704"),
    ('[{"membership": 5, "role": "guest"}]', "22023"), ('[{"add_membership": " "}]', "22023"), ('[{"add_membership": "did:a"}]', "42710"), ('[{"add_membership": "did:e"}]', "42710"),
    ('[{"remove_membership": "did:nobody"}]', "42704"), ('[{"remove_membership": "did:a"}, {"membership": "did:a", "role": "guest"}]', "42704"),
    ('[{"alliance": "ally"}]', "22023"), ('[{"alliance": "' + ONE + '"}]', "22023"), ('[{"alliance": "' + GONE + '"}]', "42704"), ('[{"alliance": "ffffffff-ffff-ffff-ffff-ffffffffffff"}]', "42704"),
    ('[{"alliance": "' + ALLY + '", "status": "gone"}]', "22023"), ('[{"remove_alliance": "' + ALLY + '"}, {"remove_alliance": "' + ALLY + '"}]', "42704"),
    (json.dumps([{"membership": "did:a", "role": "guest"}] * 1001), "22023")]


def test_a_change_that_makes_no_sense_is_refused(shop):
    with shop.connect() as connection:
        for changes, sqlstate in SENSELESS:
            refused(connection, f"SELECT * FROM trust_simulate('{ONE}', %s)", sqlstate, (changes,))
        refused(connection, f"SELECT * FROM trust_simulate('{ONE}', NULL)", "22004")


def history(db, arguments=""):
    return db.run(f"SELECT * FROM trust_history('{ONE}'{arguments})")


def test_the_history_tells_every_change_newest_first(shop):
    for weight in (0.8, 0.6, 0.6, 0.4):
        shop.run(f"UPDATE alliances SET weight = {weight} WHERE from_scene_id = '{ONE}' AND to_scene_id = '{ALLY}'")
        shop.run("SELECT * FROM trust_recompute()")
    rows = history(shop)
    assert [row.alliance_factor for row in rows] == pytest.approx([0.55, 0.65, 0.75, 0.8])
    assert [row.score for row in rows] == pytest.approx([f * 0.4875 for f in (0.55, 0.65, 0.75, 0.8)])
    assert [row.change for row in rows[:3]] == [newer.score - older.score for newer, older in zip(rows, rows[1:])]
    assert rows[3].change is None
    assert [(row.memberships, row.alliances) for row in rows] == [(4, 2)] * 4
    assert history(shop, ", most => 2") == rows[:2]
    with shop.connect() as connection:
        since = connection.execute(f"SELECT * FROM trust_history('{ONE}', %s)", (rows[1].changed_at,)).fetchall()
    assert since == rows[:2]


def test_a_long_history_is_read_once(shop):
    """20,000 changes: each is compared with the one before, not with all before."""
    shop.run(f"INSERT INTO trust_score_history SELECT '{ONE}', now() - make_interval(secs => i), i / 20000.0, 1, 1, 1, 1 FROM generate_series(1, 20000) i")
    with shop.connect() as connection:
        connection.execute("SET statement_timeout = '10s'")
        rows = connection.execute(f"SELECT score, change FROM trust_history('{ONE}', most => 3, since => now() - interval '1 hour') OFFSET 1").fetchall()
        assert [row.score for row in rows] == [1 / 20000, 2 / 20000] and all(row.change == pytest.approx(-1 / 20000) for row in rows)
        assert len(connection.execute(f"SELECT * FROM trust_history('{ONE}', most => 100000)").fetchall()) == 20001


def test_hidden_scenes_stay_hidden_from_the_owner_of_an_ally(shop):
    private = "00000000-0000-0000-0000-000000000006"
    shop.run(f"INSERT INTO scenes (id, name, owner_did, visibility) VALUES ('{private}', 'closed', 'x', 'private')")
    with shop.connect("test_app") as connection:
        connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (OWNER,))
        for scene in (private, HIDDEN, GONE, "00000000-0000-0000-0000-0000000000ff"):
            if scene != HIDDEN:  # the scene has an alliance with that one
                refused(connection, f"SELECT * FROM trust_simulate('{ONE}', '[{{\"alliance\": \"{scene}\"}}]')", "42704")
        shop.run(f"UPDATE scenes SET visibility = 'private', name = 'renamed' WHERE id = '{ALLY}'")
        names = {row.subject: row.name for row in connection.execute(f"SELECT subject, name FROM trust_explain('{ONE}') WHERE kind = 'alliance'")}
        assert names == {ALLY: None, OTHER: "other"}
    assert {row.name for row in explain(shop) if row.kind == "alliance"} == {"renamed", "other"}


def test_the_history_of_a_scene_that_is_gone(shop):
    shop.run(f"UPDATE scenes SET deleted_at = now() WHERE id = '{ONE}'")
    shop.run("SELECT * FROM trust_recompute()")
    assert [(row.score is None, row.change) for row in history(shop)] == [(True, None), (False, None)]
    shop.run(f"DELETE FROM scenes WHERE id = '{ONE}'")
    assert len(history(shop)) == 2


def test_everybody_reads_histories_and_their_arguments_are_checked(shop):
    for kind in ("app", "worker", "readonly", "admin"):
        with shop.connect(f"test_{kind}") as connection:
            assert len(connection.execute(f"SELECT * FROM trust_history('{ONE}')").fetchall()) == 1
    with shop.connect() as connection:
        for arguments, sqlstate in (("NULL", "22004"), (f"'{ONE}', most => NULL", "22004"), (f"'{ONE}', most => 0", "22023"), (f"'{ONE}', most => 100001", "22023"),
                                    ("'ffffffff-ffff-ffff-ffff-ffffffffffff'", "42704")):
            refused(connection, f"SELECT * FROM trust_history({arguments})", sqlstate)


def test_old_changes_expire(shop):
    shop.run(f"INSERT INTO trust_score_history (scene_id, changed_at, score) SELECT '{ONE}', now() - i * interval '10 days', 0.1 FROM generate_series(1, 20) i")
    assert shop.one("SELECT expire_trust_history(5)") == 5
    assert shop.one("SELECT expire_trust_history()") == 7
    assert shop.one("SELECT expire_trust_history()") == 0
    assert len(history(shop)) == 9
    assert shop.one("SELECT expire_trust_history(keep => '35 days')") == 5
    with shop.connect("test_worker") as connection:
        assert connection.execute("SELECT expire_trust_history(keep => '0')").fetchone()[0] > 0
        for arguments, sqlstate in (("0", "22023"), ("1000001", "22023"), ("NULL", "22004"), ("1, NULL", "22004"), ("1, '-1 s'", "22023"), ("1, '2000 years'", "22023")):
            refused(connection, f"SELECT expire_trust_history({arguments})", sqlstate)
    with shop.connect("test_app") as connection:
        refused(connection, "SELECT expire_trust_history()", "42501", hint=False)


def test_a_score_tells_the_last_run(shop):
    (row,) = shop.run(f"SELECT * FROM trust_score('{ONE}')")
    assert row.last_run_at == shop.one("SELECT max(started_at) FROM trust_recompute_runs")
    assert row.score == pytest.approx(row.alliance_factor * row.membership_mean, abs=1e-15)
    shop.run("UPDATE memberships SET trust_weight = 0.1 WHERE user_did = 'did:a'")
    shop.run("SELECT * FROM trust_recompute()")
    assert shop.one(f"SELECT last_run_at FROM trust_score('{ONE}')") > row.last_run_at
