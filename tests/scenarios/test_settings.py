"""Settings: checked when written, old versions kept, one writer after the other."""

import pytest
from conftest import in_parallel, refused

RANKING = '{"text": 0.5, "proximity": 0.2, "recency": 0.1, "trust": 0.2, "half_life_days": 7}'


def set_ranking(connection, value=RANKING, reason="a test"):
    return connection.execute("SELECT set_setting('search.ranking', %s, %s)", (value, reason)).fetchone()[0]


def test_a_new_version_holds_and_the_old_one_is_kept(db):
    before = db.one("SELECT setting('search.ranking')")
    assert before == {"text": 0.4, "proximity": 0.3, "recency": 0.2, "trust": 0.1, "half_life_days": 30}
    moment = db.one("SELECT clock_timestamp()")
    with db.connect() as connection:
        assert set_ranking(connection) == 2
        assert set_ranking(connection, RANKING.replace("0.5", "0.4")) == 3
    assert db.one("SELECT setting('search.ranking') ->> 'text'") == "0.4"
    assert db.one("SELECT setting('search.ranking', %s)", (moment,)) == before
    assert db.one("SELECT setting_version('search.ranking')") == 3
    assert db.one("SELECT setting_version('search.ranking', %s)", (moment,)) == 1
    assert db.run("SELECT version, set_by, reason FROM settings ORDER BY version")[1] == (2, "postgres", "a test")
    assert db.run("SELECT action, subject, detail ->> 'version' FROM audit_log") == [("set_setting", "search.ranking", "2"), ("set_setting", "search.ranking", "3")]


def test_a_setting_changes_the_ranking(db):
    db.run("INSERT INTO scenes (name, owner_did) VALUES ('jazz', 'did:a')")
    with db.connect() as connection:
        set_ranking(connection, '{"text": 0, "proximity": 0, "recency": 0.5, "trust": 0, "half_life_days": 1}')
        row = connection.execute("SELECT score, recency FROM search_scenes('jazz', now => now() + interval '1 day')").fetchone()
    assert row.score == row.recency / 2 == pytest.approx(0.25, rel=1e-3)


WRONG = [
    "[]", "null", "0.4", "{}", '"x"', RANKING.replace("0.5", '"0.5"'), RANKING.replace("0.5", "null"), RANKING.replace("0.5", "-0.1"), RANKING.replace("0.5", "1.1"),
    RANKING.replace("0.5", "0.6"), RANKING.replace("0.5", "1e400"), RANKING.replace(": 7", ": 0"), RANKING.replace(": 7", ": 1e9"), RANKING.replace('"trust"', '"faith"'),
    RANKING.replace("}", ', "more": 1}'), '{"text": 0, "proximity": 0, "recency": 0, "trust": 0, "half_life_days": 7}']


def test_what_is_not_valid_changes_nothing(db):
    with db.connect() as connection:
        for value in WRONG:
            refused(connection, "SELECT set_setting('search.ranking', %s, 'a test')", "22023", (value,))
    assert db.one("SELECT count(*) FROM settings") == 1
    assert db.one("SELECT count(*) FROM audit_log") == 0


def test_a_weight_too_small_to_be_one_is_refused(db):
    """It would be a number in JSON, and none in the formula."""
    value = '{"text": 0.4, "proximity": 1e-400, "recency": 0.2, "trust": 0.1, "half_life_days": 30}'
    with db.connect() as connection:
        refused(connection, "SELECT set_setting('search.ranking', %s, 'why not')", "22023", (value,))
        connection.execute("SELECT * FROM search_scenes()")


def test_other_arguments_are_checked(db):
    with db.connect() as connection:
        for sql, sqlstate in (("setting('nothing')", "42704"), ("setting(NULL)", "22004"), ("setting_version('nothing')", "42704"), (f"set_setting('nothing', '{RANKING}', 'x')", "42704"),
                              (f"set_setting('search.ranking', '{RANKING}', NULL)", "22004"), (f"set_setting('search.ranking', '{RANKING}', ' ')", "22023"),
                              (f"set_setting('search.ranking', '{RANKING}', repeat('x', 501))", "22023"), ("set_setting('search.ranking', NULL, 'x')", "22004")):
            refused(connection, f"SELECT {sql}", sqlstate)
    assert db.one("SELECT setting('search.ranking', '-infinity') IS NOT NULL")
    db.run("INSERT INTO setting_keys (key, description) VALUES ('shop.open', 'whether the shop is open')")
    assert db.one("SELECT setting('shop.open')") is None
    assert db.one("SELECT set_setting('shop.open', 'true', 'no rule says what is valid')") == 1
    assert db.one("SELECT setting('shop.open')") is True
    assert db.one("SELECT setting('shop.open', now() - interval '1 hour')") is None


def test_writers_come_one_after_the_other(db):
    def write():
        with db.connect() as connection:
            return [set_ranking(connection) for _ in range(10)]

    versions = sum(in_parallel(*[write] * 4), [])
    assert sorted(versions) == list(range(2, 42))
    times = [row.valid_from for row in db.run("SELECT valid_from FROM settings WHERE version > 1 ORDER BY version")]
    assert times == sorted(set(times))


def test_two_versions_in_one_transaction_have_times_of_their_own(db):
    with db.connect(autocommit=False) as connection:
        first, second = set_ranking(connection), set_ranking(connection)
        connection.commit()
    assert (first, second) == (2, 3)
    assert db.one("SELECT count(DISTINCT valid_from) FROM settings") == 3


def test_who_reads_and_who_sets(roles):
    for kind, reads in (("readonly", True), ("worker", True), ("admin", True), ("app", False)):
        with roles.connect(f"test_{kind}") as connection:
            for sql in ("SELECT setting('search.ranking')", "SELECT * FROM settings", "SELECT * FROM setting_keys"):
                if reads:
                    connection.execute(sql)
                else:
                    refused(connection, sql, "42501", hint=False)
            if kind != "admin":
                refused(connection, f"SELECT set_setting('search.ranking', '{RANKING}', 'x')", "42501", hint=False)
            refused(connection, "UPDATE settings SET value = '{}'", "42501", hint=False)
    with roles.connect("test_admin") as connection:
        assert set_ranking(connection) == 2
    assert roles.one("SELECT set_by FROM settings WHERE version = 2") == "test_admin"
