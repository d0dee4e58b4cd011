"""What users do with scenes: memberships asked for and decided, alliances made and dissolved."""

import pytest
from conftest import in_parallel, refused

OWNER, OTHER, USER = "did:owner", "did:other", "did:user"
ONE, TWO, HIDDEN, GONE = (f"00000000-0000-0000-0000-00000000000{n}" for n in (1, 2, 3, 4))


@pytest.fixture
def shop(roles):
    """Scenes of two owners."""
    roles.run(f"""INSERT INTO scenes (id, name, owner_did, moderation_status, moderated_by, moderation_timestamp, deleted_at) VALUES
        ('{ONE}', 'one', '{OWNER}', 'visible', NULL, NULL, NULL), ('{TWO}', 'two', '{OTHER}', 'visible', NULL, NULL, NULL),
        ('{HIDDEN}', 'hidden', '{OTHER}', 'hidden', 'did:mod', now(), NULL), ('{GONE}', 'gone', '{OTHER}', 'visible', NULL, NULL, now())""")
    roles.run("SELECT * FROM trust_recompute()")
    return roles


def acting(db, user):
    """The application, on behalf of a user."""
    connection = db.connect("test_app")
    if user:
        connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (user,))
    return connection


def call(db, user, sql):
    """The value of one call."""
    with acting(db, user) as connection:
        return connection.execute(f"SELECT {sql}").fetchone()[0]


def denied(db, user, sql, sqlstate):
    """The error of one call."""
    with acting(db, user) as connection:
        return refused(connection, f"SELECT {sql}", sqlstate)


def score(db):
    db.run("SELECT * FROM trust_recompute()")
    return db.one(f"SELECT score FROM trust_scores WHERE scene_id = '{ONE}'")


def membership(db):
    (row,) = db.run("SELECT id, status, role, trust_weight, since FROM memberships")
    return row


def test_a_membership_is_asked_for_and_approved(shop):
    made = call(shop, USER, f"request_membership('{ONE}')")
    asked = membership(shop)
    assert asked[:4] == (made, "pending", "member", 0.5)
    assert score(shop) == 0
    assert call(shop, OWNER, f"approve_membership('{ONE}', '{USER}')") == made
    assert membership(shop).status == "active" and membership(shop).since > asked.since
    assert score(shop) == 0.25
    actions = shop.run("SELECT action, subject, detail ->> 'by' AS by, actor FROM audit_log ORDER BY id")
    assert [tuple(row) for row in actions] == [("request_membership", ONE, USER, "test_app"), ("approve_membership", ONE, OWNER, "test_app")]


def test_after_a_rejection_one_may_ask_again(shop):
    made = call(shop, USER, f"request_membership('{ONE}')")
    since = membership(shop).since
    call(shop, OWNER, f"reject_membership('{ONE}', '{USER}')")
    assert membership(shop).status == "rejected" and membership(shop).since == since
    shop.run("UPDATE memberships SET role = 'curator', trust_weight = 1")
    assert call(shop, USER, f"request_membership('{ONE}')") == made
    assert membership(shop)[:4] == (made, "pending", "member", 0.5)
    call(shop, OWNER, f"approve_membership('{ONE}', '{USER}')")
    assert score(shop) == 0.25


def test_only_what_is_pending_is_asked_or_decided_once(shop):
    call(shop, USER, f"request_membership('{ONE}')")
    denied(shop, USER, f"request_membership('{ONE}')", "23505")
    call(shop, OWNER, f"approve_membership('{ONE}', '{USER}')")
    denied(shop, USER, f"request_membership('{ONE}')", "23505")
    for decide in ("approve", "reject"):
        assert "active" in denied(shop, OWNER, f"{decide}_membership('{ONE}', '{USER}')", "55000").message_primary
    denied(shop, OWNER, f"request_membership('{ONE}')", "55000")
    assert shop.one("SELECT count(*) FROM audit_log") == 2


def test_what_cannot_be_asked_for(shop):
    for place in (HIDDEN, GONE, "ffffffff-ffff-ffff-ffff-ffffffffffff"):
        denied(shop, USER, f"request_membership('{place}')", "42704")
    denied(shop, USER, "request_membership(NULL)", "22004")
    for sql in (f"request_membership('{ONE}')", f"approve_membership('{ONE}', 'x')", f"reject_membership('{ONE}', 'x')", f"create_alliance('{ONE}', '{TWO}')",
                f"update_alliance('{ONE}', 0.5)", f"dissolve_alliance('{ONE}')"):
        denied(shop, None, sql, "28000")
    denied(shop, "x" * 300, f"request_membership('{ONE}')", "22023")
    assert shop.one("SELECT count(*) FROM memberships") == 0


def test_nobody_learns_who_asked_where(shop):
    call(shop, USER, f"request_membership('{ONE}')")
    said = {denied(shop, user, f"approve_membership('{place}', '{who}')", "42704").message_primary
            for user, place, who in ((OTHER, ONE, USER), (USER, ONE, USER), (OWNER, ONE, "did:nobody"), (OWNER, TWO, USER), (OWNER, GONE, USER),
                                     (OWNER, "ffffffff-ffff-ffff-ffff-ffffffffffff", USER))}
    assert len(said) == 1
    assert membership(shop).status == "pending"


def test_of_two_decisions_at_once_one_wins(shop):
    def decide(verb, user):
        with acting(shop, OWNER) as connection:
            try:
                connection.execute(f"SELECT {verb}_membership('{ONE}', '{user}')")
                return verb
            except Exception as error:
                assert error.sqlstate == "55000"
                return None

    for n in range(8):
        user = f"did:{n}"
        call(shop, user, f"request_membership('{ONE}')")
        won = [verb for verb in in_parallel(lambda: decide("approve", user), lambda: decide("reject", user), lambda: decide("approve", user)) if verb]
        assert len(won) == 1
        assert shop.one(f"SELECT status FROM memberships WHERE user_did = '{user}'") == {"approve": "active", "reject": "rejected"}[won[0]]
        assert shop.one("SELECT count(*) FROM audit_log WHERE detail ->> 'user' = %s", (user,)) == 1


def test_a_decision_waits_for_one_that_has_not_committed(shop):
    call(shop, USER, f"request_membership('{ONE}')")
    with acting(shop, OWNER) as first:
        first.execute("BEGIN")
        first.execute(f"SELECT approve_membership('{ONE}', '{USER}')")
        with acting(shop, OWNER) as second:
            second.execute("SET lock_timeout = '100ms'")
            refused(second, f"SELECT reject_membership('{ONE}', '{USER}')", "55P03", hint=False)
        first.execute("ROLLBACK")
    assert membership(shop).status == "pending"
    call(shop, OWNER, f"reject_membership('{ONE}', '{USER}')")


def test_two_requests_at_once_make_one_membership(shop):
    def ask():
        with acting(shop, USER) as connection:
            try:
                return connection.execute(f"SELECT request_membership('{ONE}')").fetchone()[0]
            except Exception as error:
                assert error.sqlstate == "23505"
                return None

    assert len([made for made in in_parallel(*[ask] * 4) if made]) == 1
    assert membership(shop).status == "pending"


def test_an_alliance_is_made_changed_dissolved_and_made_again(shop):
    shop.run(f"INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES ('{ONE}', '{OWNER}', 'owner', 'active', 1)")
    made = call(shop, OWNER, f"create_alliance('{ONE}', '{TWO}', 0.4, 'friends')")
    assert score(shop) == pytest.approx(0.4)
    denied(shop, OWNER, f"create_alliance('{ONE}', '{TWO}', 0.5)", "23505")
    call(shop, OWNER, f"update_alliance('{made}', 0.6)")
    assert score(shop) == pytest.approx(0.6)
    call(shop, OWNER, f"update_alliance('{made}', reason => 'good friends')")
    assert shop.run("SELECT weight, reason, status FROM alliances") == [(0.6, "good friends", "active")]
    call(shop, OWNER, f"dissolve_alliance('{made}')")
    assert score(shop) == 1
    for sql in (f"dissolve_alliance('{made}')", f"update_alliance('{made}', 0.1)"):
        denied(shop, OWNER, sql, "42704")
    again = call(shop, OWNER, f"create_alliance('{ONE}', '{TWO}', 0.5)")
    assert again != made
    assert score(shop) == 0.5
    assert shop.run("SELECT status, deleted_at IS NULL AS live FROM alliances ORDER BY created_at") == [("dissolved", False), ("active", True)]
    actions = [row.action for row in shop.run(f"SELECT action FROM audit_log WHERE subject = '{ONE}' AND detail ->> 'by' = '{OWNER}' ORDER BY id")]
    assert actions == ["create_alliance", "update_alliance", "update_alliance", "dissolve_alliance", "create_alliance"]


def test_only_the_owner_vouches(shop):
    made = call(shop, OWNER, f"create_alliance('{ONE}', '{TWO}')")
    denied(shop, OTHER, f"create_alliance('{ONE}', '{TWO}')", "42501")
    for user in (OTHER, USER):
        denied(shop, user, f"update_alliance('{made}', 0)", "42501")
        denied(shop, user, f"dissolve_alliance('{made}')", "42501")
    assert shop.run("SELECT weight, deleted_at FROM alliances") == [(1, None)]


def test_one_vouches_only_for_what_one_may_see(shop):
    shop.run(f"UPDATE scenes SET visibility = 'private' WHERE id = '{TWO}'")
    denied(shop, OWNER, f"create_alliance('{ONE}', '{TWO}')", "42704")
    shop.run(f"INSERT INTO memberships (scene_id, user_did, status) VALUES ('{TWO}', '{OWNER}', 'active')")
    assert call(shop, OWNER, f"create_alliance('{ONE}', '{TWO}')")
    assert call(shop, OTHER, f"create_alliance('{TWO}', '{HIDDEN}')")  # a scene of one's own, whatever became of it


def test_terms_of_an_alliance_are_checked(shop):
    made = call(shop, OWNER, f"create_alliance('{ONE}', '{TWO}', 1, repeat('ü', 256))")
    for sql, sqlstate in ((f"create_alliance('{ONE}', '{ONE}')", "22023"), (f"create_alliance('{ONE}', '{GONE}')", "42704"), (f"create_alliance('{ONE}', '{HIDDEN}')", "42704"),
                          (f"create_alliance('{GONE}', '{TWO}')", "42704"), (f"create_alliance(NULL, '{TWO}')", "22004"), (f"create_alliance('{ONE}', NULL)", "22004"),
                          (f"create_alliance('{ONE}', '{TWO}', NULL)", "22004"),
                          ("update_alliance(NULL, 0.5)", "22004"), ("dissolve_alliance(NULL)", "22004"), (f"update_alliance('{made}')", "22023")):
        denied(shop, OWNER, sql, sqlstate)
    for weight in ("-0.1", "1.1", "'NaN'", "'Infinity'", "-1e308"):
        denied(shop, OWNER, f"create_alliance('{ONE}', '{TWO}', {weight})", "22003")
        denied(shop, OWNER, f"update_alliance('{made}', {weight})", "22003")
    for reason in ("''", "E' \\t\\n'", "repeat('x', 257)"):
        denied(shop, OWNER, f"create_alliance('{ONE}', '{TWO}', 1, {reason})", "22023")
        denied(shop, OWNER, f"update_alliance('{made}', reason => {reason})", "22023")
    assert shop.one("SELECT count(*) FROM alliances") == 1


def test_workers_and_dashboards_do_not_act_for_users(shop):
    for role in ("test_worker", "test_readonly"):
        with shop.connect(role) as connection:
            connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (OWNER,))
            for sql in (f"request_membership('{ONE}')", f"approve_membership('{ONE}', 'x')", f"create_alliance('{ONE}', '{TWO}')", f"decide_membership('{ONE}', 'x', 'active')"):
                refused(connection, f"SELECT {sql}", "42501", hint=False)
    with acting(shop, OWNER) as connection:
        for sql in (f"decide_membership('{ONE}', 'x', 'active')", f"own_alliance('{ONE}')"):
            refused(connection, f"SELECT {sql}", "42501", hint=False)
