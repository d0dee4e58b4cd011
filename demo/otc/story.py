"""The Bitcoin OTC trust network: ratings arrive as events and become memberships, alliances and trust scores."""

import gzip
from pathlib import Path

from devkit.say import DevError

from progress import Step
from report import count, fact, heading, table

HERE = Path(__file__).resolve().parent
TITLE = "Bitcoin OTC, who trusts whom: 35,592 real ratings"
BATCH = 1000
LEAST_RATINGS = 20


def play(stage):
    """The whole demo on a fresh, migrated database."""
    ratings = load(stage)
    enqueue(stage, ratings)
    work(stage)
    check(stage, ratings)
    rankings(stage)
    transitive(stage)
    health(stage)


def load(stage):
    """Load the file; make a scene of each person. Return the number of ratings."""
    heading("Load")
    with Step("load the ratings, make the scenes"):
        for name in ("schema", "handler", "enqueue"):
            stage.script(HERE / f"{name}.sql")
        stage.copy("otc.ratings (rater, ratee, rating, unix_time)", gzip.decompress((HERE / "bitcoin-otc.csv.gz").read_bytes()).decode())
        stage.script(HERE / "people.sql")
    loaded = stage.row("""
        SELECT count(*) AS ratings, count(*) FILTER (WHERE rating < 0) AS negative, min(rated_at)::date AS since,
               max(rated_at)::date AS until, (SELECT count(*) FROM scenes) AS scenes,
               (SELECT count(*) FROM memberships) AS owners, (SELECT dirty_scenes FROM vw_trust_health) AS dirty
          FROM otc.ratings""")
    fact("rows loaded", f"{count(loaded['ratings'])} ratings ({count(loaded['negative'])} negative), {loaded['since']} to {loaded['until']}")
    fact("scenes made", f"{count(loaded['scenes'])}, one per person, each with its owner as the first member")
    fact("marked dirty", f"{count(loaded['dirty'])} scenes, by the triggers on scenes and memberships")
    return int(loaded["ratings"])


def enqueue(stage, ratings):
    """Send each rating as an event."""
    heading("Enqueue")
    batches = range(1, ratings + 1, BATCH)
    with Step("enqueue the ratings as events") as step:
        statements = [f"SELECT otc.enqueue_ratings({first}, {first + BATCH - 1})" for first in batches]
        for done, _ in enumerate(stage.each([*statements, statements[0]]), 1):
            step.at(done, len(batches) + 1)
    queued = stage.row("SELECT sum(ct) AS ct FROM vw_events_queue_health WHERE topic = 'otc.rating' AND status = 'queued'")["ct"]
    fact("events enqueued", f"{count(queued)} in batches of {count(BATCH)}; the first batch was sent twice and counts once, for its keys")


def work(stage):
    """Let the worker empty the queues, and tell what it did."""
    heading("Work: pgsteward run --until-empty, as a role that may only do what workers do")
    stage.pgsteward("run", "--until-empty", "--queue-batch-size", str(BATCH), "--log-level", "warn", user="otc_worker")
    done = stage.row("""
        SELECT sum(attempts) AS leases, count(*) AS acked, count(*) / nullif(extract(epoch FROM max(updated_at) - w.started_at), 0) AS rate,
               (SELECT count(*) FROM memberships) AS memberships, (SELECT count(*) FROM memberships WHERE trust_weight < 0.5 AND role <> 'owner') AS distrust,
               (SELECT count(*) FROM alliances WHERE status = 'active' AND deleted_at IS NULL) AS allied,
               (SELECT count(*) FROM alliances WHERE status = 'pending' AND deleted_at IS NULL) AS pending
          FROM events_queue_done CROSS JOIN (SELECT max(started_at) AS started_at FROM worker_heartbeats) AS w
         WHERE topic = 'otc.rating' GROUP BY w.started_at""")
    trust = stage.row("""
        SELECT count(*) AS runs, sum(processed) AS processed, sum(duration_ms) / 1000 AS seconds,
               sum(processed) / (sum(duration_ms) / 1000) AS rate, (SELECT last_value FROM trust_dirty_generation_seq) AS marks
          FROM trust_recompute_runs""")
    fact("events", f"{count(done['leases'])} leased, {count(done['acked'])} acked, {count(done['rate'])} per second")
    fact("they became", f"{count(done['memberships'])} memberships ({count(done['distrust'])} of distrust), "
                        f"{count(done['allied'])} alliances, {count(done['pending'])} more not returned yet")
    fact("marked dirty", f"{count(trust['marks'])} marks, by the triggers, in the transactions of the changes")
    fact("scenes recomputed", f"{count(trust['processed'])} in {trust['runs']} runs and {float(trust['seconds']):.2f} s of the server: "
                              f"{count(trust['rate'])} per second")


def check(stage, ratings):
    """Nothing may be left, lost, or wrong."""
    found = stage.row("""
        SELECT (SELECT count(*) FROM events_queue WHERE status = 'done') AS done, (SELECT count(*) FROM events_queue WHERE status <> 'done') AS open,
               (SELECT dirty_scenes FROM vw_trust_health) AS dirty, count(*) AS scores,
               (SELECT '; one event says: ' || last_error FROM events_queue WHERE last_error <> '' ORDER BY id LIMIT 1) AS fault,
               count(*) FILTER (WHERE t.scene_id IS NULL OR abs(t.score - c.score) > 1e-9) AS wrong
          FROM trust_compute(ARRAY(SELECT id FROM scenes)) c LEFT JOIN trust_scores t USING (scene_id)""")
    if (int(found["done"]), found["open"], found["dirty"], found["wrong"]) != (ratings, "0", "0", "0"):
        raise DevError(f"the result is not what it must be: {found['done']} of {ratings} events done, {found['open']} not, "
                       f"{found['dirty']} scenes dirty, {found['wrong']} scores wrong{found['fault']}")
    fact("checked", f"no event and no mark is left; all {count(found['scores'])} scores equal the formula computed from scratch")


def rankings(stage):
    """Both ends of the list."""
    query = (HERE / "ranking.sql").read_text()
    for word, direction in (("most", "DESC"), ("least", "ASC")):
        heading(f"The ten {word} trusted, of those with {LEAST_RATINGS} ratings or more (score = alliance factor x membership mean)")
        table(stage.rows(query, direction=direction, least=LEAST_RATINGS))


def transitive(stage):
    """Whom those trust who are trusted."""
    run = stage.row("SELECT scenes, edges, iterations, converged, duration_ms FROM trust_propagate()")
    if run["converged"] != "t":
        raise DevError(f"the ranks have not settled after {run['iterations']} iterations")
    heading("The ten with the highest rank by transitive trust, beside their score (trust_propagate)")
    table(stage.rows((HERE / "transitive.sql").read_text()))
    fact("propagated", f"{count(run['scenes'])} scenes, {count(run['edges'])} alliances, {run['iterations']} iterations, {float(run['duration_ms']):.0f} ms with storing")


def health(stage):
    """What an operator reads first."""
    heading("SELECT * FROM steward_health, after the worker has ended")
    checks = stage.rows("SELECT level, check_name, subject, round(value::numeric, 1)::float AS value, threshold, detail, hint FROM steward_health")
    hints = [row.pop("hint") for row in checks]
    table(checks)
    for row, hint in zip(checks, hints):
        if hint:
            print(f"{row['check_name']}: {hint}", flush=True)
    if any(row["level"] == "error" for row in checks):
        raise DevError("a health check is an error; see above")
