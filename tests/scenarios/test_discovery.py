"""Discovery: what counts as inventory, items that fail alone, callers at once, and the order of the gaps."""

import threading

import pytest
from conftest import in_parallel, refused, wait_until

NOBODY = "00000000-0000-0000-0000-0000000000ff"


def interest(n):
    return f"00000000-0000-0000-0000-0000000a{n:04}"


def category(n):
    return f"00000000-0000-0000-0000-0000000c{n:04}"


def add(db, interests=0, categories=0, mapped=()):
    """Interests and categories 1 to so many, and pairs of both that belong together."""
    db.run("""INSERT INTO interest_catalog (id, domain, category, tag)
              SELECT ('00000000-0000-0000-0000-0000000a' || to_char(i, 'FM0000'))::uuid, 'music', 'shelf ' || i, 'tag ' || i
                FROM generate_series(1, %s) i""", (interests,))
    db.run("""INSERT INTO marketplace_categories (id, slug, name, domain, category)
              SELECT ('00000000-0000-0000-0000-0000000c' || to_char(i, 'FM0000'))::uuid, 'category-' || i, 'Category ' || i, 'music', 'records'
                FROM generate_series(1, %s) i""", (categories,))
    for one, other in mapped:
        db.run("INSERT INTO marketplace_interest_map (interest_id, category_id) VALUES (%s, %s)", (interest(one), category(other)))


def stock(db, n, count=1, status="active", quantity=1):
    """Listings of a category."""
    db.run("""INSERT INTO marketplace_listings (category_id, seller_profile_id, title, price_cents, status, stock_quantity)
              SELECT %s, gen_random_uuid(), 'a record', 1000, %s, %s FROM generate_series(1, %s)""", (category(n), status, quantity, count))


def wanted_by(db, n, users, first=1):
    """Users first, first + 1, ... have the interest."""
    db.run("INSERT INTO user_interests (user_id, interest_id) SELECT md5(i::text)::uuid, %s FROM generate_series(%s::int, %s::int) i",
           (interest(n), first, first + users - 1))


def enqueue(db, *pairs, reason="test"):
    """Discovery items, in order; their ids."""
    return [db.one("SELECT enqueue_discovery_item(%s, %s, %s)", (interest(one), other and category(other), reason)) for one, other in pairs]


def lease(db, count=100, ttl=120):
    """Lease items; their ids and the token."""
    rows = db.run("SELECT id, lease_token FROM lease_discovery_items(%s, %s)", (count, ttl))
    return [row.id for row in rows], rows[0].lease_token


def process(db, *pairs):
    """Enqueue, lease and process; a row per item, in order."""
    ids = enqueue(db, *pairs)
    leased, token = lease(db)
    assert sorted(leased) == sorted(ids)
    rows = {row.id: row for row in db.run("SELECT * FROM process_discovery_items(%s, %s)", (leased, token))}
    assert all(row.held for row in rows.values())
    return [rows[item] for item in ids]


def gaps(db):
    """(interest, category) -> (inventory, level)."""
    rows = db.run("SELECT * FROM marketplace_gaps")
    return {(int(str(row.interest_id)[-4:]), row.category_id and int(str(row.category_id)[-4:])): (row.inventory_ct, row.gap_level) for row in rows}


def statuses(db):
    return dict(db.run("SELECT id, status FROM marketplace_discovery_queue"))


def blocked(db):
    """Whether a session waits for another one."""
    return db.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0")


def test_only_active_listings_in_stock_count(db):
    add(db, 5, 5, [(n, n) for n in range(1, 6)])
    stock(db, 1, 9, status="draft")
    stock(db, 1, 9, status="sold")
    stock(db, 1, 9, status="archived")
    stock(db, 1, 9, quantity=0)
    stock(db, 2, 1, quantity=50)
    stock(db, 3, 4)
    stock(db, 4, 5)
    stock(db, 5, 40)
    db.run("INSERT INTO marketplace_listings (seller_profile_id, title, price_cents, status) VALUES (gen_random_uuid(), 'in no category', 1, 'active')")
    rows = process(db, *[(n, n) for n in range(1, 6)])
    assert [(row.status, row.error) for row in rows] == [("done", None)] * 5
    assert gaps(db) == {(1, 1): (0, "critical"), (2, 2): (1, "low"), (3, 3): (4, "low"), (4, 4): (5, "none"), (5, 5): (40, "none")}


def test_a_gap_follows_the_listings(db):
    add(db, 1, 1, [(1, 1)])
    process(db, (1, 1))
    assert gaps(db) == {(1, 1): (0, "critical")}
    first = db.one("SELECT last_checked FROM marketplace_gaps")
    stock(db, 1, 5)
    process(db, (1, 1))
    assert gaps(db) == {(1, 1): (5, "none")}
    assert db.one("SELECT last_checked FROM marketplace_gaps") > first
    db.run("UPDATE marketplace_listings SET status = 'sold' WHERE id IN (SELECT id FROM marketplace_listings LIMIT 3)")
    process(db, (1, 1))
    assert gaps(db) == {(1, 1): (2, "low")}


def test_an_item_without_category_checks_all_of_the_interest(db):
    add(db, 2, 4, [(1, 1), (1, 2), (1, 3), (2, 3)])
    stock(db, 1, 7)
    stock(db, 3, 2)
    stock(db, 4, 9)
    process(db, (1, None), (2, None))
    assert gaps(db) == {(1, 1): (7, "none"), (1, 2): (0, "critical"), (1, 3): (2, "low"), (2, 3): (2, "low")}


def test_an_interest_without_category_is_a_critical_gap_until_it_has_one(db):
    add(db, 3, 2, [(2, 1)])
    db.run("UPDATE marketplace_categories SET is_active = false WHERE slug = 'category-1'")
    stock(db, 1, 9)
    stock(db, 2, 9)
    process(db, (1, None), (2, None), (3, None))
    assert gaps(db) == {(1, None): (0, "critical"), (2, None): (0, "critical"), (3, None): (0, "critical")}
    db.run("INSERT INTO marketplace_interest_map (interest_id, category_id) VALUES (%s, %s), (%s, %s)", (interest(1), category(2), interest(3), category(2)))
    process(db, (1, None), (3, 2))
    assert gaps(db) == {(1, 2): (9, "none"), (2, None): (0, "critical"), (3, 2): (9, "none")}


def test_gaps_of_categories_that_serve_the_interest_no_more_go(db):
    add(db, 1, 3, [(1, 1), (1, 2), (1, 3)])
    process(db, (1, None))
    assert set(gaps(db)) == {(1, 1), (1, 2), (1, 3)}
    db.run("DELETE FROM marketplace_interest_map WHERE category_id = %s", (category(1),))
    db.run("UPDATE marketplace_categories SET is_active = false WHERE slug = 'category-2'")
    process(db, (1, 3))
    assert set(gaps(db)) == {(1, 1), (1, 2), (1, 3)}  # only what was asked for
    process(db, (1, None))
    assert set(gaps(db)) == {(1, 3)}


def test_an_item_that_cannot_be_computed_fails_alone_and_for_good(db):
    add(db, 4, 3, [(n, 1) for n in range(1, 5)])
    db.run("UPDATE interest_catalog SET is_active = false WHERE tag = 'tag 2'")
    db.run("UPDATE marketplace_categories SET is_active = false WHERE slug = 'category-3'")
    rows = process(db, (1, None), (2, None), (2, 1), (3, 3), (4, 1))
    assert [row.status for row in rows] == ["done", "error", "error", "error", "done"]
    assert rows[1].error == f"interest {interest(2)} (tag 2) is not active"
    assert rows[3].error == f"category {category(3)} (category-3) is not active"
    assert set(gaps(db)) == {(1, 1), (4, 1)}
    failed = db.run("SELECT id, attempts, last_error FROM marketplace_discovery_queue WHERE status = 'error' ORDER BY id")
    assert [(row.attempts, row.last_error) for row in failed] == [(1, row.error) for row in rows[1:4]]


def test_an_item_that_breaks_fails_alone_and_is_tried_again(db):
    add(db, 9, 1, [(n, 1) for n in range(1, 10)])
    db.run(f"""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.interest_id = '{interest(7)}' THEN RAISE 'shelf 7 is cursed'; END IF; RETURN NEW; END $$""")
    db.run("CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON marketplace_gaps FOR EACH ROW EXECUTE FUNCTION fail()")
    rows = process(db, *[(n, None) for n in range(1, 10)])
    assert [row.status for row in rows] == ["done"] * 6 + ["queued"] + ["done"] * 2
    assert "cursed" in rows[6].error
    assert {one for one, _ in gaps(db)} == {1, 2, 3, 4, 5, 6, 8, 9}


def test_a_lost_lease_changes_nothing(db):
    add(db, 3, 1, [(1, 1), (2, 1), (3, 1)])
    enqueue(db, (1, None), (2, None), (3, None))
    ids, token = lease(db)
    other = db.one("SELECT gen_random_uuid()")
    assert [(row.held, row.status, row.error) for row in db.run("SELECT * FROM process_discovery_items(%s, %s)", (ids, other))] == [(False, None, None)] * 3
    assert gaps(db) == {} and set(statuses(db).values()) == {"processing"}
    db.run("UPDATE marketplace_discovery_queue SET lease_expires_at = now() - interval '1 second' WHERE id = %s", (ids[0],))
    rows = db.run("SELECT * FROM process_discovery_items(%s, %s)", ([*ids, 999999], token))
    assert [(row.held, row.status) for row in rows] == [(False, None), (True, "done"), (True, "done"), (False, None)]
    assert len(gaps(db)) == 2
    again = db.run("SELECT * FROM process_discovery_items(%s, %s)", (ids, token))
    assert [row.held for row in again] == [False] * 3


def test_nothing_is_done_unless_it_commits(db):
    add(db, 1, 1, [(1, 1)])
    enqueue(db, (1, 1))
    ids, token = lease(db)
    with db.connect(autocommit=False) as connection:
        assert connection.execute("SELECT * FROM process_discovery_items(%s, %s)", (ids, token)).fetchone().status == "done"
        connection.rollback()
    assert gaps(db) == {} and set(statuses(db).values()) == {"processing"}


def test_many_callers_with_the_same_interests_never_deadlock(db):
    add(db, 30, 10, [(n, 1 + (n * 7 + k * 5) % 10) for n in range(1, 31) for k in range(2)])
    db.run("SELECT * FROM refresh_gaps(ARRAY(SELECT id FROM interest_catalog WHERE tag < 'tag 2'))")  # some rows are there, others new to all
    db.run("CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$")
    db.run("CREATE TRIGGER dawdle BEFORE INSERT ON marketplace_gaps FOR EACH ROW EXECUTE FUNCTION dawdle()")
    callers = 4
    for number in range(callers):
        enqueue(db, *[(n, None) for n in (range(30, 0, -1) if number % 2 else range(1, 31))], reason=f"caller {number}")
    barrier = threading.Barrier(callers)

    def caller(number):
        with db.connect() as connection:
            token, ids = lease(db, 30)[::-1]
            barrier.wait(60)
            rows = connection.execute("SELECT * FROM process_discovery_items(%s, %s)", (ids[::-1] if number % 2 else ids, token)).fetchall()
            assert {(row.held, row.status) for row in rows} == {(True, "done")}

    in_parallel(*[lambda number=number: caller(number) for number in range(callers)])
    assert db.one("SELECT count(*) FROM marketplace_discovery_queue WHERE status = 'done'") == callers * 30
    assert len(gaps(db)) == 60
    wait_until(lambda: db.one("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()") == 1, what="the sessions end")
    assert db.one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0  # a batch would survive one, in halves


@pytest.mark.parametrize("known", [False, True])
def test_an_older_count_never_replaces_a_newer_one(db, known):
    add(db, 1, 1, [(1, 1)])
    if known:
        db.run("SELECT * FROM refresh_gaps(%s::uuid[])", ([interest(1)],))
    with db.connect(autocommit=False) as first:
        first.execute("SELECT * FROM refresh_gaps(%s::uuid[])", ([interest(1)],))

        def second():
            return db.run("SELECT inventory_ct, gap_level FROM refresh_gaps(%s::uuid[])", ([interest(1)],))

        def meanwhile():
            wait_until(lambda: blocked(db), what="the second caller waits")
            stock(db, 1, 6)  # after the second caller has begun, before it may write
            first.commit()

        rows, _ = in_parallel(second, meanwhile)
    assert [tuple(row) for row in rows] == [(6, "none")]
    assert gaps(db) == {(1, 1): (6, "none")}


def test_an_interest_being_deleted_is_left_for_later(db):
    add(db, 2, 1, [(1, 1), (2, 1)])
    ids = enqueue(db, (1, 1), (2, 1))
    leased, token = lease(db)
    with db.connect(autocommit=False) as other:
        other.execute("SELECT FROM interest_catalog WHERE id = %s FOR UPDATE", (interest(1),))
        with db.connect(options="-c lock_timeout=5s") as worker:
            rows = {row.id: row for row in worker.execute("SELECT * FROM process_discovery_items(%s, %s)", (leased, token))}
        assert (rows[ids[0]].status, rows[ids[1]].status) == ("queued", "done")
        assert rows[ids[0]].error == f"interest {interest(1)} is locked by another transaction"
        other.execute("DELETE FROM interest_catalog WHERE id = %s", (interest(1),))
        other.commit()
    assert set(gaps(db)) == {(2, 1)}
    assert set(statuses(db)) == {ids[1]}


def test_deleting_while_items_are_processed_does_not_deadlock(db):
    add(db, 2, 2, [(1, 1), (2, 2)])
    enqueue(db, (1, None), (2, None))
    ids, token = lease(db)
    with db.connect(autocommit=False) as worker:
        assert {row.status for row in worker.execute("SELECT * FROM process_discovery_items(%s, %s)", (ids, token))} == {"done"}

        def commit():
            wait_until(lambda: blocked(db), what="the deletion waits")
            worker.commit()

        in_parallel(lambda: db.run("DELETE FROM interest_catalog"), commit)
    assert gaps(db) == {} and statuses(db) == {}


def test_the_runbooks_statement_shows_the_worst_gaps_first(db):
    add(db, 30, 30, [(n, n) for n in range(1, 31)])
    for n in range(1, 31):
        if n % 3:  # 1, 4, ... low; 2, 5, ... none; 3, 6, ... critical
            stock(db, n, 2 if n % 3 == 1 else 8)
        wanted_by(db, n, (n * 7) % 31)
    db.run("SELECT * FROM refresh_gaps(ARRAY(SELECT id FROM interest_catalog))")
    rows = db.run("SELECT * FROM public.vw_gap_severity LIMIT 20;")
    assert rows[0]._fields == ("domain", "category", "gap_level", "ct", "avg_inventory", "demand", "severity")
    everything = [("critical" if n % 3 == 0 else "low" if n % 3 == 1 else "none", (n * 7) % 31, f"shelf {n}") for n in range(1, 31)]
    worst = sorted(everything, key=lambda gap: (["critical", "low", "none"].index(gap[0]), -gap[1]))[:20]
    assert [(row.gap_level, row.demand, row.category) for row in rows] == worst
    assert [row.severity for row in rows] == sorted((row.severity for row in rows), reverse=True)
    assert {(row.gap_level, row.avg_inventory) for row in rows} == {("critical", 0), ("low", 2)}


def test_demand_counts_each_user_once_and_ties_go_to_the_least_inventory(db):
    add(db, 4, 4, [(1, 1), (1, 2), (2, 2), (3, 3), (4, 4)])
    db.run("UPDATE interest_catalog SET category = 'together' WHERE tag IN ('tag 1', 'tag 2')")
    stock(db, 3, 4)
    stock(db, 4, 2)
    wanted_by(db, 1, 3)
    wanted_by(db, 2, 3, first=2)
    wanted_by(db, 3, 2)
    wanted_by(db, 4, 2, first=50)
    db.run("SELECT * FROM refresh_gaps(ARRAY(SELECT id FROM interest_catalog))")
    rows = db.run("SELECT category, gap_level, ct, avg_inventory, demand FROM vw_gap_severity")
    assert [tuple(row) for row in rows] == [("together", "critical", 3, 0, 4), ("shelf 4", "low", 1, 2, 2), ("shelf 3", "low", 1, 4, 2)]


def test_what_is_not_active_is_not_shown(db):
    add(db, 2, 2, [(1, 1), (2, 1), (2, 2)])
    db.run("SELECT * FROM refresh_gaps(ARRAY(SELECT id FROM interest_catalog))")
    assert db.one("SELECT sum(ct) FROM vw_gap_severity") == 3
    db.run("UPDATE interest_catalog SET is_active = false WHERE tag = 'tag 1'")
    db.run("UPDATE marketplace_categories SET is_active = false WHERE slug = 'category-2'")
    assert [tuple(row) for row in db.run("SELECT category, ct FROM vw_gap_severity")] == [("shelf 2", 1)]


def test_missing_inventory_is_news_and_no_alarm(db):
    check = "SELECT level, value, hint FROM steward_health WHERE check_name = 'discovery.unserved'"
    assert tuple(db.run(check)[0]) == ("ok", 0, None)
    add(db, 3, 2, [(1, 1), (2, 1), (2, 2)])
    stock(db, 2, 1)
    db.run("SELECT * FROM refresh_gaps(ARRAY(SELECT id FROM interest_catalog))")
    assert db.run(check)[0].value == 0  # nobody wants them
    for n in (1, 2, 3):
        wanted_by(db, n, 10)
    (row,) = db.run(check)
    assert (row.level, row.value) == ("ok", 2)  # interest 2 has a listing in one of its categories
    assert "vw_gap_severity" in row.hint


def test_by_hand_for_everything(db):
    add(db, 3, 2, [(1, 1), (1, 2), (2, 1)])
    db.run("UPDATE interest_catalog SET is_active = false WHERE tag = 'tag 3'")
    rows = db.run("SELECT * FROM refresh_gaps(ARRAY(SELECT id FROM interest_catalog ORDER BY id) || %s::uuid, ARRAY[NULL, NULL, NULL, NULL]::uuid[])", (NOBODY,))
    found = [row for row in rows if row.error is None]
    assert [(row.inventory_ct, row.gap_level) for row in found] == [(0, "critical")] * 3
    errors = sorted((row.error, row.retryable) for row in rows if row.error)
    assert errors == [(f"interest {NOBODY} does not exist", False), (f"interest {interest(3)} (tag 3) is not active", False)]
    (row,) = db.run("SELECT * FROM refresh_gaps(%s::uuid[], %s::uuid[])", ([interest(1)], [NOBODY]))
    assert (row.error, row.retryable) == (f"category {NOBODY} does not exist", False)
    twice = db.run("SELECT * FROM refresh_gaps(%s::uuid[], %s::uuid[])", ([interest(1), interest(1), interest(1)], [None, category(1), None]))
    assert len(twice) == 2


def test_wrong_arguments_are_refused(db):
    with db.connect() as connection:
        refused(connection, "SELECT * FROM process_discovery_items(NULL, gen_random_uuid())", "22004")
        refused(connection, "SELECT * FROM process_discovery_items('{1}', NULL)", "22004")
        refused(connection, "SELECT * FROM process_discovery_items('{1,NULL}', gen_random_uuid())", "22004")
        refused(connection, "SELECT * FROM refresh_gaps(NULL)", "22004")
        refused(connection, "SELECT * FROM refresh_gaps(ARRAY[NULL]::uuid[])", "22004")
        refused(connection, f"SELECT * FROM refresh_gaps('{{{interest(1)}}}', '{{}}')", "2202E")
        refused(connection, "SELECT discovery_gap_level(-1)", "22003")
        refused(connection, "SELECT discovery_gap_severity('worst', 1)", "22023")
        refused(connection, "SELECT discovery_gap_severity('low', -1)", "22003")


def test_the_worker_role_processes_without_reading_user_data(db):
    add(db, 1, 1, [(1, 1)])
    stock(db, 1, 5)
    enqueue(db, (1, None))
    with db.connect() as connection:
        connection.execute("SET ROLE steward_worker")
        (item,) = connection.execute("SELECT * FROM lease_discovery_items()").fetchall()
        (row,) = connection.execute("SELECT * FROM process_discovery_items(%s, %s)", ([item.id], item.lease_token)).fetchall()
        assert (row.held, row.status) == (True, "done")
        assert connection.execute("SELECT gap_level FROM marketplace_gaps").fetchone().gap_level == "none"
        assert len(connection.execute("SELECT * FROM vw_gap_severity").fetchall()) == 1
        for table in ("user_interests", "marketplace_listings"):
            refused(connection, f"SELECT * FROM {table}", "42501", hint=False)
        refused(connection, "DELETE FROM marketplace_gaps", "42501", hint=False)


@pytest.fixture
def people(db):
    """Interests and listings of two users."""
    add(db, 2, 1, [(1, 1)])
    db.run("INSERT INTO user_interests (user_id, interest_id) VALUES (%s, %s), (%s, %s), (%s, %s)",
           (interest(1), interest(1), interest(1), interest(2), interest(2), interest(1)))
    for status in ("active", "draft", "sold"):
        db.run("INSERT INTO marketplace_listings (seller_profile_id, title, price_cents, status) VALUES (%s, %s, 1, %s)", (interest(1), status, status))
    return db


def as_user(connection, user):
    connection.execute("SET ROLE steward_app")
    connection.execute("SELECT set_config('pgsteward.user_id', %s, false)", (user,))


@pytest.mark.parametrize(("user", "interests", "titles"), [
    (interest(1), 2, {"active", "draft", "sold"}), (interest(2), 1, {"active"}), (interest(1).upper(), 2, {"active", "draft", "sold"}),
    ("did:web:ada", 0, {"active"}), ("", 0, {"active"})])
def test_users_see_their_own_interests_and_what_is_offered(people, user, interests, titles):
    with people.connect() as connection:
        as_user(connection, user)
        assert len(connection.execute("SELECT * FROM user_interests").fetchall()) == interests
        assert {row.title for row in connection.execute("SELECT title FROM marketplace_listings")} == titles
        assert len(connection.execute("SELECT * FROM interest_catalog").fetchall()) == 2
        for sql in ("SELECT * FROM marketplace_gaps", "SELECT * FROM vw_gap_severity", "UPDATE marketplace_listings SET price_cents = 0",
                    "DELETE FROM interest_catalog", "SELECT * FROM refresh_gaps('{}')"):
            refused(connection, sql, "42501", hint=False)


def test_users_change_their_own_interests_only(people):
    with people.connect() as connection:
        as_user(connection, interest(2))
        connection.execute("INSERT INTO user_interests (user_id, interest_id, affinity) VALUES (%s, %s, 0.3)", (interest(2), interest(2)))
        refused(connection, f"INSERT INTO user_interests (user_id, interest_id) VALUES ('{NOBODY}', '{interest(2)}')", "42501", hint=False)
        refused(connection, f"UPDATE user_interests SET user_id = '{NOBODY}'", "42501", hint=False)
        assert connection.execute("DELETE FROM user_interests").rowcount == 2
    assert people.one("SELECT count(*) FROM user_interests") == 2
