"""Many workers on one database share the dirty scenes: each is done once, and whoever dies takes nothing along."""

from conftest import wait_until
from test_trust import WRONG, dirty

SCENES = 100_000
LOAD = """
INSERT INTO scenes (id, name, owner_did) SELECT md5(i::text)::uuid, i::text, 'x' FROM generate_series(1, %(scenes)s) i;
INSERT INTO memberships (scene_id, user_did, role, status, trust_weight) SELECT id, 'u', 'owner', 'active', 1 FROM scenes;
"""


def test_1_2_4_and_8_workers_do_each_scene_once(db, worker):
    with db.connect() as connection:
        for statement in (LOAD % {"scenes": SCENES}).strip().split("\n"):
            connection.execute(statement)
        connection.execute("SELECT * FROM trust_recompute(100000, '5 min')")
        connection.execute("VACUUM ANALYZE scenes, memberships, trust_scores, trust_dirty")
    for number, role, score in ((1, "guest", 0.3), (2, "member", 0.5), (4, "curator", 0.8), (8, "owner", 1.0)):
        db.run("TRUNCATE trust_score_history, trust_recompute_runs")
        db.run("UPDATE memberships SET role = %s", (role,))
        assert db.one("SELECT count(*) FROM trust_dirty") == SCENES
        workers = [worker("--until-empty", "--metrics-listen", "off") for _ in range(number)]
        if number == 8:
            # One of them dies in the middle of it: what it had taken is done by the others.
            wait_until(lambda: db.one("SELECT count(*) FROM trust_score_history"), what="work under way")
            workers.pop().kill()
        assert [process.wait() for process in workers] == [0] * len(workers), workers[0].output
        assert not dirty(db)
        assert db.run("SELECT count(*) AS changes, count(DISTINCT scene_id) AS scenes FROM trust_score_history") == [(SCENES, SCENES)]
        assert db.run("SELECT sum(processed) AS processed, sum(failed) AS failed FROM trust_recompute_runs") == [(SCENES, 0)]
        assert db.run("SELECT DISTINCT score FROM trust_scores") == [(score,)]
    assert db.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert db.one(WRONG) == 0 and db.run("SELECT * FROM trust_verify()") == []
