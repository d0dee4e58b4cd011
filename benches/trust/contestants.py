"""Who recomputes trust: pgsteward, plain SQL, and the per-scene loop of the original design."""

import contextlib
import re
from pathlib import Path

PLAIN = Path(__file__).parent / "plain"
LOOP_SAMPLE = 2000
ROLES = {"owner": 1.0, "curator": 0.8, "member": 0.5, "guest": 0.3}


MEMBERS = "SELECT role, trust_weight FROM memberships WHERE scene_id = %s AND status = 'active'"
WEIGHTS = """
SELECT a.weight FROM alliances a JOIN scenes s ON s.id = a.to_scene_id
 WHERE a.from_scene_id = %s AND a.status = 'active' AND a.deleted_at IS NULL
   AND s.deleted_at IS NULL AND s.moderation_status NOT IN ('hidden', 'suspended')"""
SAVE = """
INSERT INTO trust_scores (scene_id, score, alliance_factor, membership_mean, memberships, alliances, computed_at)
VALUES (%s, %s, %s, %s, %s, %s, now())
    ON CONFLICT (scene_id) DO UPDATE
   SET score = excluded.score, alliance_factor = excluded.alliance_factor, membership_mean = excluded.membership_mean,
       memberships = excluded.memberships, alliances = excluded.alliances, computed_at = excluded.computed_at"""


def recompute(arguments, history=True):
    """pgsteward, one call."""
    def work(connection):
        connection.execute(f"SET pgsteward.trust_history = {'on' if history else 'off'}")
        return connection.execute(f"SELECT processed FROM trust_recompute({arguments})").fetchone()[0]
    return work


def statements(*names):
    """The statements of files in plain/, in order."""
    text = "\n".join((PLAIN / f"{name}.sql").read_text() for name in names)
    return [part.strip() for part in re.sub(r"^--.*\n", "", text, flags=re.M).split(";") if part.strip()]


def plain(*names, settings=(), after=()):
    """Plain SQL in one transaction, with memory enough to hash and sort."""
    script = ["SET LOCAL work_mem = '256MB'", *settings, *statements(*names), *after]

    def work(connection):
        with connection.transaction():
            for statement in script:
                connection.execute(statement)
    return work


PARALLEL = ["SET LOCAL max_parallel_workers_per_gather = 2", "SET LOCAL parallel_setup_cost = 0", "SET LOCAL parallel_tuple_cost = 0"]
HASH = ["SET LOCAL enable_nestloop = off", "SET LOCAL enable_mergejoin = off"]
UNSAFE = "plain SQL, one statement (unsafe)"
PLAIN_VARIANTS = {
    "plain SQL, upsert": plain("claim_temporary", "upsert", "clear"),
    "plain SQL, upsert, hash joins forced": plain("claim_temporary", "upsert", "clear", settings=HASH),
    "plain SQL, update from": plain("claim_temporary", "compute", "update_insert", "clear"),
    "plain SQL, update from, parallel": plain("claim_unlogged", "compute", "update_insert", "clear", settings=PARALLEL, after=["DROP TABLE claimed"]),
    UNSAFE: plain("one_statement"),
}


def loop(connection, scene_at_once=contextlib.nullcontext):
    """The original design: a client that takes one scene after the other, each statement in a transaction of its own."""
    dirty = connection.execute("SELECT generation, scene_id FROM trust_dirty ORDER BY generation LIMIT %s", [LOOP_SAMPLE]).fetchall()
    for generation, scene in dirty:
        with scene_at_once():
            members = connection.execute(MEMBERS, [scene], prepare=True).fetchall()
            weights = [weight for (weight,) in connection.execute(WEIGHTS, [scene], prepare=True)]
            mean = sum(ROLES.get(role, 0.5) * weight for role, weight in members) / len(members) if members else 0.0
            factor = sum(weights) / len(weights) if weights else 1.0
            connection.execute(SAVE, [scene, mean * factor, factor, mean, len(members), len(weights)], prepare=True)
            connection.execute("DELETE FROM trust_dirty WHERE generation = %s", [generation], prepare=True)
    return len(dirty)


def loop_in_transactions(connection):
    """The same with one transaction per scene, which spares a flush of the log."""
    return loop(connection, connection.transaction)


def read(connection):
    """Count the rows that a recompute is about, and do nothing else."""
    for statement in statements("read"):
        connection.execute(statement)


LOOPS = {"loop, each statement commits": loop, "loop, each scene commits": loop_in_transactions}
