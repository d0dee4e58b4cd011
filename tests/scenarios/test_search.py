"""Search: which scenes are found, in which order, page by page, and by whom."""

import base64
import json
import re
import threading

import pytest
from conftest import refused

BERLIN = "point(13.405, 52.52)"


def scene(n):
    return f"00000000-0000-0000-0000-{n:012}"


def add(db, n, name="a scene", **columns):
    """A scene; all are of the same moment unless they say otherwise."""
    row = {"id": scene(n), "name": name, "owner_did": f"did:{n}", "created_at": "2026-01-01", "updated_at": "2026-01-01"} | columns
    db.run(f"INSERT INTO scenes ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values()))


def found(connection, query="", **arguments):
    """The numbers of the scenes that are found, in order."""
    extra = "".join(f", {key} => {value}" for key, value in arguments.items())
    run = connection.run if hasattr(connection, "run") else lambda sql, values: connection.execute(sql, values).fetchall()
    return [int(str(row.scene_id)[-12:]) for row in run(f"SELECT scene_id FROM search_scenes(%s{extra})", (query,))]


def trust(db, n, score):
    """Gives a scene this score, through a member of that weight."""
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) VALUES (%s, 'did:m', 'owner', 'active', %s)", (scene(n), score))
    db.run("SELECT trust_recompute_scene(%s)", (scene(n),))


def as_app(db, user=None):
    connection = db.connect("test_app")
    if user:
        connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (user,))
    return connection


def test_words_count_by_where_they_stand(db):
    add(db, 1, "night radio", description="jazz and soul")
    add(db, 2, "Jazz", description="records")
    add(db, 3, "vinyl", tags=["deep jazz", "soul"])
    add(db, 4, "print room", description="posters")
    assert found(db, "jazz") == found(db, "JAZZ") == [2, 1, 3]
    assert found(db, "soul jazz") == [1, 3]
    assert found(db, "posters OR records") == [2, 4]
    assert found(db, '"jazz and soul"') == [1]
    assert found(db, "jazz -soul") == [2]
    assert found(db, "radios") == found(db, "!!! ***") == []
    assert found(db, "") == found(db, " \t\n") == [1, 2, 3, 4]
    db.run("UPDATE scenes SET name = 'jazz again', description = NULL WHERE id = %s", (scene(4),))
    db.run("UPDATE scenes SET tags = '{}' WHERE id = %s", (scene(3),))
    assert sorted(found(db, "jazz")) == [1, 2, 4]
    assert found(db, "posters") == []


def test_words_of_scenes_that_were_there_before(db):
    add(db, 1, "Ünïcode & more", description="long " * 20000, tags=["", "a b", "c"])
    add(db, 2, "x" * 255, description="don't 'quote' \\ me")
    add(db, 3, "plain", tags=["last"])
    before = db.run("SELECT id, words FROM scenes ORDER BY id")
    body = db.one("SELECT body FROM steward_files() WHERE name = 'migrations/0009_scenes.sql'")
    db.run("UPDATE scenes SET words = NULL")
    db.run(re.search(r"^UPDATE scenes SET words.*?;", body, re.M | re.S)[0])
    assert db.run("SELECT id, words FROM scenes ORDER BY id") == before
    assert found(db, "last") == [3]


def test_a_text_that_is_too_long_for_an_index_is_stored(db):
    add(db, 1, "long", description=" ".join(f"word{n}" for n in range(400_000)))
    add(db, 2, "wide", description="y" * 3_000_000)
    assert found(db, "word1") == [1]
    assert found(db, "wide") == [2]


def test_a_score_is_the_weighted_sum_of_its_parts(db):
    add(db, 1, "jazz", coarse_geohash="u33db2")
    add(db, 2, "jazz club", updated_at="2025-12-02", coarse_geohash="u1hc0")
    trust(db, 1, 0.6)
    db.run("ALTER DATABASE " + db.name + " SET pgsteward.rank_trust_enabled = on")
    rows = db.run(f"SELECT * FROM search_scenes('jazz', {BERLIN}, now => '2026-01-31 00:00+00')")
    assert len(rows) == 2
    for row in rows:
        assert row.score == pytest.approx(0.4 * row.text_match + 0.3 * row.proximity + 0.2 * row.recency + 0.1 * row.trust, abs=1e-15)
        assert row.proximity == pytest.approx(1 / (1 + row.distance_km), rel=1e-12)
        assert 0 < row.text_match < 1
    assert [row.recency for row in rows] == pytest.approx([0.5, 0.25], rel=1e-3)
    assert [(row.trust, row.trust_known) for row in rows] == [(0.6, True), (0, False)]


def test_nearer_scenes_come_first(db):
    add(db, 1, coarse_geohash="r3gx2")  # Sydney
    add(db, 2, coarse_geohash="u33db")  # Berlin
    add(db, 3, allow_precise=True, precise_point="(13.4,52.5)", coarse_geohash="r3gx2")
    add(db, 4)  # nobody knows where
    add(db, 5, coarse_geohash="not a geohash")
    add(db, 6, allow_precise=True, precise_point="(1e300,NaN)", coarse_geohash="u1hc0")  # Cologne, roughly
    rows = db.run(f"SELECT scene_id, distance_km, proximity FROM search_scenes(near => {BERLIN})")
    assert [int(str(row.scene_id)[-12:]) for row in rows] == [3, 2, 6, 1, 4, 5]
    assert rows[0].distance_km == pytest.approx(2.25, abs=0.05)
    assert rows[3].distance_km == pytest.approx(16090, abs=20)
    assert [(row.distance_km, row.proximity) for row in rows[4:]] == [(None, 0), (None, 0)]


TRUE = ["true", "1", "yes", "on", "TRUE", "Yes", "oN"]
FALSE = ["false", "0", "no", "off", "FALSE", "No", "oFF"]


def test_trust_ranks_only_where_it_is_enabled(db):
    for n, score in ((1, 0.1), (2, 0.9), (3, 0.5)):
        add(db, n)
        trust(db, n, score)
    assert found(db) == [1, 2, 3]
    assert db.one("SELECT trust_ranking_enabled()") is False
    with db.connect() as connection:
        for value, order in [*((value, [2, 3, 1]) for value in TRUE), *((value, [1, 2, 3]) for value in FALSE)]:
            connection.execute(f"SET pgsteward.rank_trust_enabled = '{value}'")
            assert found(connection) == order, value
        refused(connection, "SET pgsteward.rank_trust_enabled = 'maybe'", "22023", hint=False)
    assert db.one("SELECT count(*) FROM trust_scores") == 3  # computed in either case


def test_the_environment_of_the_server_is_the_default(own_cluster, monkeypatch):
    def enabled(value):
        monkeypatch.setenv("RANK_TRUST_ENABLED", value)
        own_cluster.restart()
        return own_cluster.psql("-At", "-c", "SELECT trust_ranking_enabled(), current_setting('pgsteward.rank_trust_enabled')").strip()

    own_cluster.psql("-q", "-c", "CREATE EXTENSION pgsteward")
    assert enabled("Yes") == "t|on"
    assert enabled("sometimes") == "f|off"
    monkeypatch.delenv("RANK_TRUST_ENABLED")


def test_missing_trust_is_stated(db):
    add(db, 1)
    add(db, 2)
    trust(db, 2, 0)
    with db.connect() as connection:
        connection.execute("SET pgsteward.rank_trust_enabled = on")
        rows = connection.execute("SELECT trust, trust_known, score FROM search_scenes() ORDER BY scene_id").fetchall()
        assert [(row.trust, row.trust_known) for row in rows] == [(0, False), (0, True)]
        assert rows[0].score == rows[1].score


def pages(connection, query, size, between=lambda: None):
    """All pages of a search, as lists of rows."""
    cursor, seen = None, []
    while True:
        page = connection.execute(f"SELECT * FROM search_scenes(%s, {BERLIN}, %s, %s)", (query, size, cursor)).fetchall()
        if not page:
            return seen
        seen.append(page)
        cursor = page[-1].next_cursor
        between()


@pytest.mark.parametrize("query", ["", "jazz"])
def test_pages_are_disjoint_and_complete_while_others_insert(db, query):
    db.run("""INSERT INTO scenes (id, name, owner_did, coarse_geohash, updated_at)
              SELECT md5(i::text)::uuid, repeat('jazz ', 1 + i % 4), 'did:' || i, substr('u33db2u33d2', 1 + i % 5, 5), now() - i % 7 * interval '1 day' FROM generate_series(1, 300) i""")
    db.run("INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'did:m', 'owner', 'active', random() FROM scenes WHERE random() < 0.5")
    db.run("SELECT * FROM trust_recompute()")
    existing = {row.id for row in db.run("SELECT id FROM scenes")}
    stop = threading.Event()

    def insert():
        with db.connect() as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO scenes (name, owner_did, coarse_geohash) SELECT 'jazz ' || gen_random_uuid(), 'did:x', 'u33db' FROM generate_series(1, 20)")

    writer = threading.Thread(target=insert)
    writer.start()
    try:
        with db.connect() as connection:
            connection.execute("SET pgsteward.rank_trust_enabled = on")

            def meanwhile():
                """What later pages must not follow: another ranking, and another flag."""
                connection.execute("""SELECT set_setting('search.ranking', '{"text": 0, "proximity": 0, "recency": 0.1, "trust": 0.9, "half_life_days": 1}', 'a test')""")
                connection.execute("SET pgsteward.rank_trust_enabled = off")

            seen = pages(connection, query, 23, meanwhile)
    finally:
        stop.set()
        writer.join()
    ids = [row.scene_id for page in seen for row in page]
    assert len(ids) == len(set(ids))
    assert set(ids) >= existing
    order = [(-row.score, row.scene_id) for page in seen for row in page]
    assert order == sorted(order)
    assert len(seen) > 10 and all(len(page) == 23 for page in seen[:-1])


def test_a_page_of_one_gives_the_same_order(db):
    for n in range(1, 12):
        add(db, n, "jazz" + " jazz" * (n % 3), updated_at=f"2026-01-{1 + n % 5:02}")
    with db.connect() as connection:
        connection.execute("SET extra_float_digits = 0")
        now = "'2026-02-01 00:00+00'"
        whole = found(connection, "jazz", now=now)
        steps, cursor = [], None
        while page := connection.execute(f"SELECT * FROM search_scenes('jazz', most => 1, cursor => %s, now => {now})", (cursor,)).fetchall():
            steps.append(int(str(page[0].scene_id)[-12:]))
            cursor = page[0].next_cursor
    assert steps == whole and len(steps) == 11


def test_a_cursor_is_checked(db):
    add(db, 1, "jazz")
    add(db, 2, "jazz")
    (row,) = db.run("SELECT * FROM search_scenes('jazz', most => 1)")
    assert found(db, "jazz", cursor=f"'{row.next_cursor}'") == [2]
    assert found(db, "  JAZZ ", cursor=f"'{row.next_cursor}'") == [2]
    content = json.loads(base64.b64decode(row.next_cursor))

    def changed(**keys):
        return base64.b64encode(json.dumps(content | keys).encode()).decode()

    with db.connect() as connection:
        call = "SELECT * FROM search_scenes(%s, cursor => %s)"
        said = refused(connection, call, "22023", ("soul", row.next_cursor))
        assert "another query" in said.message_primary
        refused(connection, f"SELECT * FROM search_scenes('jazz', {BERLIN}, cursor => %s)", "22023", (row.next_cursor,))
        for broken in ("", "x", "!", row.next_cursor[:-8], "bnVsbA==", base64.b64encode(b"[]").decode(), "A" * 2000, base64.b64encode(b"\xff\xfe").decode(),
                       changed(score="NaN"), changed(score=2), changed(id="1"), changed(moment="infinity"), changed(moment=None), changed(ranking=99), changed(ranking="x"), changed(query=None)):
            assert "broken" in refused(connection, call, "22023", ("jazz", broken)).message_primary
    for broken in ("", "x", "A" * 2000, "bnVsbA=="):
        with db.connect() as connection:  # a session that has not seen a cursor before
            assert "broken" in refused(connection, call, "22023", ("jazz", broken)).message_primary


def test_bad_input_is_refused(db):
    with db.connect() as connection:
        for call, sqlstate in (("NULL", "22004"), ("most => NULL", "22004"), ("now => NULL", "22004"), ("most => 0", "22023"), ("most => -1", "22023"), ("most => 1001", "22023"),
                               ("repeat('x', 1000000)", "22023"), (r"E'a\x01b'", "22023"), (r"E'\x7f'", "22023"), ("now => 'infinity'", "22023"),
                               ("near => point('NaN', 0)", "22023"), ("near => point(0, 'NaN')", "22023"), ("near => point('Infinity', 0)", "22023"),
                               ("near => point(0, 90.01)", "22023"), ("near => point(-180.01, 0)", "22023")):
            refused(connection, f"SELECT * FROM search_scenes({call})", sqlstate)
        connection.execute("SELECT * FROM search_scenes('ünï 🦀 ''; DROP TABLE scenes; -- \\')")
        assert connection.execute("SELECT * FROM search_scenes('x', point(180, -90), 1000)").fetchall() == []


def test_who_finds_which_scenes(roles):
    add(roles, 1, visibility="public")
    add(roles, 2, visibility="private")
    add(roles, 3, visibility="unlisted")
    add(roles, 4, deleted_at="2026-01-02")
    for n, status in ((5, "flagged"), (6, "hidden"), (7, "suspended")):
        add(roles, n, moderation_status=status, moderated_by="did:mod", moderation_timestamp="2026-01-02")
    roles.run("INSERT INTO memberships (scene_id, user_did, status) VALUES (%s, 'did:in', 'active'), (%s, 'did:asks', 'pending'), (%s, 'did:in', 'active')", (scene(2), scene(2), scene(3)))
    for user, expected in ((None, [1, 5]), ("did:stranger", [1, 5]), ("did:asks", [1, 5]), ("did:in", [1, 2, 5]), ("did:2", [1, 2, 5]), ("did:3", [1, 5]), ("did:6", [1, 5])):
        with as_app(roles, user) as connection:
            assert found(connection) == found(connection, "scene") == expected, user
    for role in ("test_worker", "test_admin"):
        with roles.connect(role) as connection:
            assert found(connection) == [1, 5]
    with roles.connect("test_readonly") as connection:
        refused(connection, "SELECT * FROM search_scenes()", "42501", hint=False)


def test_a_policy_of_the_application_holds_in_a_search(roles):
    add(roles, 1, "jazz")
    add(roles, 2, "jazz")
    roles.run(f"CREATE POLICY shop_hides ON scenes AS RESTRICTIVE FOR SELECT TO steward_app USING (id <> '{scene(1)}')")
    with as_app(roles) as connection:
        assert found(connection, "jazz", most=1) == [2]
    assert found(roles, "jazz") == [1, 2]


def test_words_are_found_by_the_index(roles):
    roles.run("""INSERT INTO scenes (name, description, owner_did) SELECT 'scene ' || i, 'about ' || md5(i::text), 'did:' || i FROM generate_series(1, 20000) i""")
    add(roles, 1, "theremin")
    roles.run("VACUUM ANALYZE scenes")
    plan = json.dumps(roles.one("EXPLAIN (FORMAT json) SELECT id FROM scenes WHERE words @@ websearch_to_tsquery('simple', 'theremin') AND deleted_at IS NULL"))
    assert "scenes_words_idx" in plan and "Seq Scan" not in plan
    with as_app(roles) as connection:
        for _ in range(8):  # the plan that is kept for any query too
            assert found(connection, "theremin") == [1]
    scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'scenes_words_idx'"
    assert roles.one(scans) >= 8
