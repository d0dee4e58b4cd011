"""Scenes to recompute, what slows or breaks a recompute, and what the worker says and serves."""

import json
import re
import urllib.error
import urllib.request

from conftest import wait_until


def add_scenes(db, count, first=1):
    """Dirty scenes with an owner each; scene i is md5 of i."""
    db.run("INSERT INTO scenes (id, name, owner_did) SELECT md5(i::text)::uuid, 'scene ' || i, 'did:' || i FROM generate_series(%s::int, %s) i", (first, first + count - 1))
    db.run("""INSERT INTO memberships (scene_id, user_did, role, status, trust_weight)
              SELECT md5(i::text)::uuid, 'did:' || i, 'owner', 'active', 0.5 FROM generate_series(%s::int, %s) i""", (first, first + count - 1))


def slow_down(db, seconds):
    """Let storing each score take so long; 0: as long as it takes."""
    db.run("DROP TRIGGER IF EXISTS slow ON trust_scores")
    if seconds:
        db.run(f"CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$")
        db.run("CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON trust_scores FOR EACH ROW EXECUTE FUNCTION slow()")


def break_scenes(db, scenes):
    """Let these scenes fail; none: all work again."""
    db.run("DROP TRIGGER IF EXISTS broken ON trust_scores")
    if scenes:
        listed = ", ".join(f"'{scene}'" for scene in scenes)
        db.run(f"""CREATE OR REPLACE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$
                   BEGIN IF NEW.scene_id IN ({listed}) THEN RAISE 'no room for this scene'; END IF; RETURN NEW; END $$""")
        db.run("CREATE TRIGGER broken BEFORE INSERT OR UPDATE ON trust_scores FOR EACH ROW EXECUTE FUNCTION broken()")


def add_runs(db, runs):
    """Record runs as trust_recompute() does, one after another."""
    with db.connect() as connection:
        for columns in runs:
            run = {"duration_ms": 100, "processed": 10, "changed": 0, "failed": 0, "remaining": 0, "avg_weight_variance": 0, "timed_out": False} | columns
            values = ", ".join(["%s"] * len(run))
            connection.execute(f"INSERT INTO trust_recompute_runs (started_at, {', '.join(run)}) VALUES (clock_timestamp(), {values})", tuple(run.values()))


def metrics(db):
    """vw_trust_metrics as a dictionary; buckets by metric and bound."""
    return {row.metric if row.le is None else (row.metric, row.le): row.value for row in db.run("SELECT * FROM vw_trust_metrics")}


def lines(process, message):
    """The log lines of a worker with this message."""
    logged = [json.loads(line) for line in process.log if line.startswith("{")]
    return [line for line in logged if line["msg"] == message]


def logged(process, message, limit=30):
    """The first of them, once there is one."""
    return wait_until(lambda: lines(process, message), limit, f"the line {message}")[0]


def fetch(process, path="/metrics", limit=10):
    """Status and text of a page of a worker that listens on a free port."""
    address = logged(process, "serving metrics")["address"]
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=limit) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def scrape(process):
    """The samples that a worker serves, by name and labels."""
    status, text = fetch(process)
    assert status == 200
    return {name: float(value) for name, value in re.findall(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", text, re.M)}


def described(text):
    """The families that a page names, with their types."""
    named = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    assert set(re.findall(r"^# HELP (\S+) \S", text, re.M)) == set(named)
    return named
