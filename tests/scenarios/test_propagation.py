"""Transitive trust: small graphs by hand, fakes, deadlines, callers at once, and a real network beside another implementation."""

import csv
import gzip
import re

import igraph
import psycopg
import pytest
from conftest import ROOT, in_parallel, refused, wait_until

DAMPING = 0.85


def name(n):
    return f"00000000-0000-0000-0000-{n:012d}"


def add(db, scenes, alliances=()):
    """Scenes by number, and alliances (from, to, weight)."""
    db.run("INSERT INTO scenes (id, name, owner_did) SELECT id, id::text, 'did:x' FROM unnest(%s::uuid[]) id", ([name(n) for n in scenes],))
    if alliances:
        db.run("INSERT INTO alliances (from_scene_id, to_scene_id, weight) SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::float8[])",
               ([name(a) for a, _, _ in alliances], [name(b) for _, b, _ in alliances], [float(w) for _, _, w in alliances]))


def ranks(db):
    return {int(str(row.scene_id)[-12:]): row.rank for row in db.run("SELECT scene_id, rank FROM trust_ranks")}


def propagate(db, arguments=""):
    (run,) = db.run(f"SELECT * FROM trust_propagate({arguments})")
    return run


def edge_ranks(db, edges, pretrusted=None, **settings):
    """What the function over given edges says: rank, distrust and net rank by node."""
    rows = db.run("SELECT * FROM trust_propagate_edges(%s::text[], %s::text[], %s::float8[], %s, %s::text[], 1000, 1e-13)",
                  (*map(list, zip(*edges)), settings.get("damping", DAMPING), pretrusted))
    return {row.node: row for row in rows}


def test_small_graphs_by_hand(db):
    add(db, [1, 2, 3], [(1, 2, 0.5)])
    run = propagate(db, f"pretrusted => '{{{name(1)}}}', max_iterations => 1000, tolerance => 1e-14")
    assert (run.scenes, run.edges, run.converged, run.changed, run.warm_started, run.timed_out) == (3, 1, True, 3, False, False)
    # Scene 2 trusts nobody, so what it has returns to the pretrusted one: a = 0.15 + 0.85 b, b = 0.85 a. Scene 3 is alone.
    assert ranks(db) == pytest.approx({1: 1 / 1.85, 2: 0.85 / 1.85, 3: 0}, abs=1e-12)
    propagate(db, "max_iterations => 1000, tolerance => 1e-14")
    # All alike: scenes 1 and 3 have a third of what is teleported each, scene 2 besides what flows from scene 1.
    alone = 1 / (3 + 0.85)
    assert ranks(db) == pytest.approx({1: alone, 2: 1.85 * alone, 3: alone}, abs=1e-12)
    propagate(db, "0")
    assert ranks(db) == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3}, abs=1e-9)


def test_what_counts_is_what_counts_for_the_score(db):
    add(db, range(1, 8), [(a, b, 0.5) for a in range(1, 8) for b in range(1, 8) if a != b])
    db.run(f"UPDATE scenes SET deleted_at = now() WHERE id = '{name(5)}'")
    for number, status in ((4, "flagged"), (6, "hidden"), (7, "suspended")):
        db.run(f"UPDATE scenes SET moderation_status = '{status}', moderated_by = 'm', moderation_timestamp = now() WHERE id = '{name(number)}'")
    db.run(f"UPDATE alliances SET status = 'pending' WHERE (from_scene_id, to_scene_id) = ('{name(1)}', '{name(2)}')")
    db.run(f"UPDATE alliances SET deleted_at = now() WHERE (from_scene_id, to_scene_id) = ('{name(3)}', '{name(1)}')")
    run = propagate(db, "tolerance => 1e-13")
    assert (run.scenes, run.edges) == (4, 10)
    expected = edge_ranks(db, [(str(a), str(b), 1) for a in range(1, 5) for b in range(1, 5) if a != b and (a, b) not in ((1, 2), (3, 1))])
    assert ranks(db) == pytest.approx({n: expected[str(n)].rank for n in range(1, 5)}, abs=1e-12)


def test_the_next_run_goes_on_from_the_last(db):
    size = 300
    add(db, range(size), [(n, (n * n + step) % size, 1) for n in range(size) for step in (1, 5) if n != (n * n + step) % size])
    first = propagate(db)
    assert first.converged and first.changed == size and first.iterations > 5
    again = propagate(db)
    assert (again.warm_started, again.iterations, again.changed, again.converged) == (True, 1, 0, True)
    db.run(f"UPDATE alliances SET weight = 0.5 WHERE (from_scene_id, to_scene_id) = ('{name(2)}', '{name(5)}')")
    db.run(f"DELETE FROM scenes WHERE id = '{name(7)}'")
    add(db, [1000], [(1000, 1, 1), (2, 1000, 1)])
    warm = propagate(db, "tolerance => 1e-12, max_iterations => 500")
    assert warm.converged and warm.warm_started and 1000 in ranks(db) and 7 not in ranks(db)
    kept = ranks(db)
    assert sum(kept.values()) == pytest.approx(1, abs=1e-9)
    db.run("TRUNCATE trust_ranks")
    cold = propagate(db, "tolerance => 1e-12, max_iterations => 500")
    assert cold.converged and not cold.warm_started
    assert kept == pytest.approx(ranks(db), abs=1e-11)
    runs = db.run("SELECT * FROM trust_propagation_runs ORDER BY id")
    assert [(r.iterations, r.residual, r.changed) for r in runs] == [(r.iterations, r.residual, r.changed) for r in (first, again, warm, cold)]
    assert all(r.duration_ms >= r.read_ms + r.write_ms > 0 and r.damping == DAMPING and r.pretrusted is None for r in runs)


def long_way(db, size=10_000):
    """A chain, along which rank has a long way to go."""
    db.run("INSERT INTO scenes (id, name, owner_did) SELECT md5(i::text)::uuid, i::text, 'did:x' FROM generate_series(1, %s) i", (size,))
    db.run("INSERT INTO alliances (from_scene_id, to_scene_id) SELECT md5(i::text)::uuid, md5((i + 1)::text)::uuid FROM generate_series(1, %s) i", (size - 1,))
    return "damping => 0.999, pretrusted => ARRAY[md5('1')::uuid], max_iterations => 100000, tolerance => 1e-12"


def test_a_deadline_keeps_what_was_reached(db):
    arguments = long_way(db)
    cut = wait_until(lambda: (run := propagate(db, f"{arguments}, timeout => '50 ms'")).iterations > 0 and run, what="an iteration")
    assert cut.timed_out and not cut.converged and cut.residual > 1e-12
    assert cut.scenes == db.one("SELECT count(*) FROM trust_ranks")
    assert db.run("SELECT level, hint FROM steward_health WHERE check_name = 'trust.propagation'")[0].level == "warn"
    resumed = propagate(db, arguments)
    assert resumed.warm_started and resumed.converged and not resumed.timed_out
    db.run("CREATE TABLE parts AS SELECT * FROM trust_ranks; TRUNCATE trust_ranks")
    whole = propagate(db, arguments)
    assert whole.converged and whole.iterations > resumed.iterations
    assert db.one("SELECT max(abs(p.rank - t.rank)) FROM parts p FULL JOIN trust_ranks t USING (scene_id)") < 1e-9


def test_time_that_is_too_short_to_read_changes_nothing(db):
    long_way(db)
    run = wait_until(lambda: (run := propagate(db, "timeout => '1 ms'")).iterations == 0 and run, what="a run that only reads")
    assert run.timed_out and not run.converged and run.residual is None
    last = db.run("SELECT * FROM trust_propagation_runs ORDER BY id DESC LIMIT 1")[0]
    assert last.timed_out and (last.quantiles is None) == (last.scenes == 0)


def test_a_cancelled_run_leaves_nothing(db):
    arguments = long_way(db)
    with db.connect() as connection:
        pid = connection.info.backend_pid

        def run():
            with pytest.raises(psycopg.errors.QueryCanceled):
                connection.execute(f"SELECT * FROM trust_propagate({arguments.replace('1e-12', '1e-15')}, timeout => '1 min')")

        def cancel():
            wait_until(lambda: db.one("SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'advisory' AND granted", (pid,)), what="the lock")
            db.run("SELECT pg_cancel_backend(%s)", (pid,))

        in_parallel(run, cancel)
    assert db.one("SELECT (SELECT count(*) FROM trust_ranks) + (SELECT count(*) FROM trust_propagation_runs)") == 0
    assert propagate(db, "max_iterations => 1").scenes == 10_000


def test_one_caller_at_a_time(db):
    add(db, [1, 2], [(1, 2, 1)])
    with db.connect(autocommit=False) as first, db.connect() as second:
        first.execute("SELECT * FROM trust_propagate()")
        refused(second, "SELECT * FROM trust_propagate()", "55P03")
        assert second.execute("SELECT count(*) FROM trust_ranks").fetchone() == (0,)
        first.commit()
        assert second.execute("SELECT changed FROM trust_propagate()").fetchone() == (0,)

    def call():
        try:
            return propagate(db).scenes
        except psycopg.errors.LockNotAvailable:
            return None

    assert set(in_parallel(*[call] * 8)) <= {2, None}
    assert sum(ranks(db).values()) == pytest.approx(1)


def test_fakes_gain_no_more_than_the_deceived_give(db):
    honest, fakes = 100, 1000
    alliances = [(n, (n + step * 7) % honest, 0.9) for n in range(honest) for step in (1, 2, 3)]
    alliances += [(honest + n, honest + (n + step) % fakes, 1) for n in range(fakes) for step in (1, 2, 3, 4, 5)]
    alliances += [(n, honest + n, 0.3) for n in (3, 50, 77)]
    add(db, range(honest + fakes), alliances)
    assert propagate(db, f"pretrusted => ARRAY(SELECT id FROM scenes WHERE id < '{name(10)}'), max_iterations => 1000, tolerance => 1e-12").converged
    found = ranks(db)
    gained = sum(rank for n, rank in found.items() if n >= honest)
    flow = sum(found[n] * 0.3 / (3 * 0.9 + 0.3) for n in (3, 50, 77))
    assert 0 < gained <= flow * DAMPING / (1 - DAMPING) + 1e-11
    assert gained < 0.05 < 0.5 < sum(found[n] for n in range(honest))
    db.run(f"UPDATE alliances SET status = 'dissolved' WHERE from_scene_id < '{name(honest)}' AND to_scene_id >= '{name(honest)}'")
    propagate(db, f"pretrusted => ARRAY(SELECT id FROM scenes WHERE id < '{name(10)}'), max_iterations => 1000, tolerance => 1e-12")
    assert sum(rank for n, rank in ranks(db).items() if n >= honest) < 1e-10


def test_distrust_by_hand(db):
    found = edge_ranks(db, [("a", "b", 1), ("a", "c", -3), ("b", "c", 1), ("d", "a", -1), ("c", "c", -5), ("e", "e", 1)], pretrusted=["a", "a"])
    assert found["c"].distrust == pytest.approx(0.85 * 0.75 * found["a"].rank)
    assert found["c"].net_rank == pytest.approx(max(0, found["c"].rank - found["c"].distrust))
    assert (found["a"].distrust, found["d"].rank, found["e"].rank) == (0, 0, 0) and found["a"].net_rank == found["a"].rank
    assert sum(row.rank for row in found.values()) == pytest.approx(1)


def test_both_ways_of_reading_agree(db):
    """The owner reads the tables in one pass; where row security binds the caller, rows are read through the executor."""
    add(db, range(200), [(n, (n * 13 + 7) % 200, 0.5) for n in range(200) if n != (n * 13 + 7) % 200])
    db.run(f"UPDATE scenes SET deleted_at = now() WHERE id > '{name(180)}'")
    passes = propagate(db)
    scanned = ranks(db)
    db.run("TRUNCATE trust_ranks")
    db.run("ALTER FUNCTION trust_propagate SECURITY INVOKER")
    db.run("GRANT ALL ON trust_ranks, trust_propagation_runs TO steward_worker")
    with db.connect() as connection:
        connection.execute("SET ROLE steward_worker")
        assert connection.execute("SHOW row_security").fetchone() == ("on",)
        run = connection.execute("SELECT * FROM trust_propagate()").fetchone()
        assert (run.scenes, run.edges, run.iterations) == (passes.scenes, passes.edges, passes.iterations)
        connection.execute("SET pgsteward.trust_propagate_memory = '64kB'")
        assert connection.execute("SELECT changed FROM trust_propagate()").fetchone() == (0,)
        connection.execute("RESET ROLE; CREATE POLICY few ON scenes AS RESTRICTIVE FOR SELECT TO steward_worker USING (name < '00000000-0000-0000-0000-000000000100'); SET ROLE steward_worker")
        assert connection.execute("SELECT scenes FROM trust_propagate()").fetchone() == (100,)
    assert scanned == pytest.approx(ranks(db) | scanned, abs=1e-12)


def test_memory_is_refused_with_the_amount_that_suffices(db):
    add(db, range(2000), [(n, n + 1, 1) for n in range(1999)])
    edges = "SELECT count(*) FROM trust_propagate_edges(ARRAY(SELECT i::text FROM generate_series(1, 5000) i), ARRAY(SELECT (i + 1)::text FROM generate_series(1, 5000) i), array_fill(1.0::float8, ARRAY[5000]))"
    for call, rows in (("SELECT scenes FROM trust_propagate()", 2000), (edges, 5001)):
        with db.connect() as connection:
            for limit in ("64kB", "320kB"):
                connection.execute(f"SET pgsteward.trust_propagate_memory = '{limit}'")
                hint = refused(connection, call, "54000").message_hint
            connection.execute(re.search(r"SET [^,]*", hint)[0])
            assert connection.execute(call).fetchone() == (rows,)


def test_wrong_arguments_are_refused(db, empty_db):
    add(db, [1, 2, 3], [(1, 2, 1)])
    db.run(f"UPDATE scenes SET moderation_status = 'hidden', moderated_by = 'm', moderation_timestamp = now() WHERE id = '{name(3)}'")
    shared = [(f"damping => {value}", "22023") for value in ("1", "-0.1", "1.5", "'NaN'", "'inf'", "'-inf'")]
    shared += [(f"tolerance => {value}", "22023") for value in ("0", "-1", "2", "1e-16", "'NaN'", "'inf'")]
    shared += [(f"max_iterations => {value}", "22023") for value in ("0", "-1", "100001")]
    shared += [(f"{argument} => NULL", "22004") for argument in ("damping", "tolerance", "max_iterations")]
    shared += [("pretrusted => '{}'", "22023"), ("pretrusted => '{NULL}'", "22004")]
    alone = [(f"timeout => '{value}'", "22023") for value in ("0", "-1 s", "2 days", "1000 years")]
    alone += [(f"pretrusted => '{{{name(9)}}}'", "42704"), (f"pretrusted => '{{{name(1)},{name(3)}}}'", "55000")]
    edges = [("'{a}', '{b}', '{1}', pretrusted => '{\u2603}'", "42704"), ("NULL, '{b}', '{1}'", "22004"), ("'{a}', NULL, '{1}'", "22004"), ("'{a}', '{b}', NULL", "22004"),
             ("'{NULL}', '{b}', '{1}'", "22004"), ("'{a}', '{NULL}', '{1}'", "22004"), ("'{a}', '{b}', '{NULL}'", "22004"), ("'{a,b}', '{b}', '{1}'", "2202E"),
             ("'{a}', '{b}', '{1,2}'", "2202E"), ("'{a}', '{b}', '{NaN}'", "22003"), ("'{a}', '{b}', '{-inf}'", "22003"), ("'{a}', '{b}', '{1e200}'", "22003")]
    with db.connect() as connection:
        for arguments, sqlstate in shared + alone:
            refused(connection, f"SELECT * FROM trust_propagate({arguments})", sqlstate)
        for arguments, sqlstate in [("'{a}', '{b}', '{1}', " + given, state) for given, state in shared] + edges:
            refused(connection, f"SELECT * FROM trust_propagate_edges({arguments})", sqlstate)
        refused(connection, f"SELECT * FROM trust_rank('{name(9)}')", "42704")
        refused(connection, "SELECT * FROM trust_rank(NULL)", "22004")
        connection.execute("SET default_transaction_read_only = on")
        refused(connection, "SELECT * FROM trust_propagate()", "25006")
    assert db.one("SELECT (SELECT count(*) FROM trust_ranks) + (SELECT count(*) FROM trust_propagation_runs)") == 0
    assert db.one("SELECT count(*) FROM trust_propagate_edges('{}', '{}', '{}')") == 0
    empty_db.run("CREATE EXTENSION pgsteward")
    with empty_db.connect() as connection:
        refused(connection, "SELECT * FROM trust_propagate()", "55000")


def test_an_unsettled_result_is_said_to_be_so(db):
    with db.connect() as connection:
        said = []
        connection.add_notice_handler(lambda notice: said.append((notice.severity, notice.message_primary)))
        connection.execute("SELECT * FROM trust_propagate_edges('{a,b,c}', '{b,c,a}', '{1,1,1}', pretrusted => '{a}', max_iterations => 2)")
        assert [severity for severity, text in said if "not settled after 2 iterations" in text] == ["WARNING"]
    add(db, [1, 2, 3], [(1, 2, 1), (2, 3, 1)])
    run = propagate(db, "max_iterations => 2")
    assert (run.iterations, run.converged, run.timed_out) == (2, False, False) and run.residual > 1e-9


def test_no_scene_is_no_rank(db):
    run = propagate(db)
    assert (run.scenes, run.edges, run.converged, run.changed) == (0, 0, True, 0)
    add(db, [1])
    assert propagate(db).changed == 1 and ranks(db) == {1: 1}
    db.run("DELETE FROM scenes")
    assert propagate(db).changed == 1 and ranks(db) == {}


def test_reading_a_rank(db):
    add(db, range(1, 5), [(2, 1, 1), (3, 1, 1), (4, 1, 1), (1, 2, 1)])
    assert db.run(f"SELECT rank, percentile, scenes, converged FROM trust_rank('{name(1)}')") == [(None, None, None, None)]
    propagate(db, "tolerance => 1e-12, max_iterations => 1000")
    add(db, [5])
    rows = [db.run(f"SELECT * FROM trust_rank('{name(n)}')")[0] for n in range(1, 6)]
    assert [row.percentile for row in rows] == [1, 0.75, 0.5, 0.5, None]
    assert rows[0].times_average == pytest.approx(4 * rows[0].rank) and rows[0].scenes == 4 and rows[0].converged
    assert rows[4].rank is None and rows[4].propagated_at is not None
    propagate(db, "timeout => '1 ms'")
    assert db.one(f"SELECT percentile FROM trust_rank('{name(1)}')") == 1


def test_who_may_do_what(db):
    add(db, [1, 2], [(1, 2, 1)])
    with db.connect() as connection:
        connection.execute("SET ROLE steward_worker")
        assert connection.execute("SELECT changed FROM trust_propagate()").fetchone() == (2,)
        for role in ("steward_app", "steward_readonly"):
            connection.execute(f"RESET ROLE; SET ROLE {role}")
            assert connection.execute(f"SELECT rank FROM trust_rank('{name(1)}')").fetchone().rank < 0.5
            refused(connection, "SELECT * FROM trust_propagate()", "42501", hint=False)
            refused(connection, "SELECT * FROM trust_propagate_edges('{}', '{}', '{}')", "42501", hint=False)
            refused(connection, "UPDATE trust_ranks SET rank = 1", "42501", hint=False)
        assert connection.execute("SELECT count(*) FROM trust_ranks").fetchone() == (2,)
        connection.execute("RESET ROLE; SET ROLE steward_app")
        refused(connection, "SELECT * FROM trust_ranks", "42501", hint=False)


def test_health_and_expiry(db):
    check = "SELECT level, detail FROM steward_health WHERE check_name = 'trust.propagation'"
    assert db.run(check)[0].level == "ok"
    add(db, [1, 2], [(1, 2, 1)])
    propagate(db, "max_iterations => 1")
    assert db.run(check)[0].level == "warn"
    propagate(db)
    assert db.run(check)[0].level == "ok"
    db.run("UPDATE trust_propagation_runs SET started_at = started_at - interval '2 days'")
    assert db.run(check)[0].level == "ok"
    db.run("INSERT INTO memberships (scene_id, user_did, status) SELECT id, 'did:y', 'active' FROM scenes")
    db.run("SELECT * FROM trust_recompute()")
    assert db.run(check)[0] == ("warn", "the ranks of 2 scenes are older than a day, and trust has changed since")
    assert [db.one("SELECT expire_trust_propagation_runs(keep => '1 day')") for _ in range(2)] == [1, 0]
    assert db.one(f"SELECT percentile FROM trust_rank('{name(2)}')") == 1
    with db.connect() as connection:
        for arguments, sqlstate in (("0", "22023"), ("NULL", "22004"), ("1, NULL", "22004"), ("1, '-1 s'", "22023")):
            refused(connection, f"SELECT expire_trust_propagation_runs({arguments})", sqlstate)


@pytest.fixture(scope="module")
def otc():
    """The ratings of the Bitcoin OTC network: rater, ratee, rating."""
    with gzip.open(ROOT / "demo/otc/bitcoin-otc.csv.gz", "rt") as file:
        return [(row[0], row[1], float(row[2])) for row in list(csv.reader(file))[1:]]


def spearman(pairs):
    """The rank correlation of two lists of values, given as pairs; equal values share their place."""
    def places(values):
        order, place = sorted(range(len(values)), key=values.__getitem__), [0.0] * len(values)
        begin = 0
        while begin < len(order):
            end = begin
            while end < len(order) and values[order[end]] - values[order[begin]] < 1e-12:
                end += 1
            for at in order[begin:end]:
                place[at] = (begin + end - 1) / 2
            begin = end
        return place
    first, second = (places(list(values)) for values in zip(*pairs))
    mean = (len(first) - 1) / 2
    return sum((a - mean) * (b - mean) for a, b in zip(first, second)) / (sum((a - mean) ** 2 for a in first) * sum((b - mean) ** 2 for b in second)) ** 0.5


@pytest.mark.parametrize("trusted", [None, ["1", "13", "35"]])
def test_the_otc_network_as_another_implementation_ranks_it(db, otc, trusted):
    people = sorted({person for rating in otc for person in rating[:2]})
    number = {person: n for n, person in enumerate(people)}
    positive = [(number[a], number[b], rating) for a, b, rating in otc if rating > 0]
    graph = igraph.Graph(n=len(people), edges=[edge[:2] for edge in positive], directed=True)
    reset = [1.0 if trusted is None or person in trusted else 0.0 for person in people]
    expected = graph.personalized_pagerank(damping=DAMPING, reset=reset, weights=[edge[2] for edge in positive])
    found = edge_ranks(db, otc, trusted)
    pairs = [(found[person].rank, expected[number[person]]) for person in people]
    assert max(abs(a - b) for a, b in pairs) < 1e-6
    assert round(spearman(pairs), 3) == 1
    given = {}
    for a, _, rating in otc:
        given[a] = given.get(a, 0) + abs(rating)
    against = dict.fromkeys(people, 0.0)
    for a, b, rating in otc:
        against[b] += DAMPING * expected[number[a]] * max(0, -rating) / given[a]
    assert max(abs(found[person].distrust - against[person]) for person in people) < 1e-6


def test_the_otc_network_in_the_tables(db, otc):
    """Stored ranks are those of the function over edges."""
    db.run("INSERT INTO scenes (id, name, owner_did) SELECT md5(id)::uuid, id, 'did:x' FROM (SELECT unnest(%s::text[]) UNION SELECT unnest(%s::text[])) p (id)",
           ([rating[0] for rating in otc], [rating[1] for rating in otc]))
    trusting = [rating for rating in otc if rating[2] > 0]
    db.run("INSERT INTO alliances (from_scene_id, to_scene_id, weight) SELECT md5(a)::uuid, md5(b)::uuid, w / 10 FROM unnest(%s::text[], %s::text[], %s::float8[]) e (a, b, w)",
           tuple(map(list, zip(*trusting))))
    run = propagate(db, "tolerance => 1e-13, max_iterations => 1000")
    assert (run.scenes, run.edges, run.converged) == (5881, len(trusting), True)
    found = edge_ranks(db, otc)
    stored = db.run("SELECT s.name, t.rank FROM trust_ranks t JOIN scenes s ON s.id = t.scene_id")
    assert len(stored) == 5881 and max(abs(row.rank - found[row.name].rank) for row in stored) < 1e-12
