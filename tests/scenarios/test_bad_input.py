"""Every function with every kind of wrong argument: an error that the user can read, never a bug's, never a crash."""

import random

import psycopg

POOL = {
    "int4": ["NULL", "0", "-1", "1", "5", "2147483647", "-2147483648"],
    "int8": ["NULL", "0", "-1", "7", "9223372036854775807", "-9223372036854775808"],
    "float8": ["NULL", "0", "-0.0", "1", "1.5", "'NaN'", "'Infinity'", "'-Infinity'", "1e308", "5e-324"],
    "text": ["NULL", "''", "'t'", "'owner'", "repeat('x', 100000)", "'🦀 ünï\n\t'", "'; DROP TABLE scenes; --'", "E'\\\\x00'", "'%s%n%I'"],
    "bool": ["NULL", "true", "false"],
    "uuid": ["NULL", "'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000001'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"],
    "interval": ["NULL", "'0'", "'-1 s'", "'1 ms'", "'1 s'", "'1 month'", "'100000 years'", "'-178000000 years'"],
    "timestamptz": ["NULL", "now()", "'infinity'", "'-infinity'", "'4713-01-01 BC'", "'294276-12-31'", "'2026-02-29'::text::timestamptz"],
    "jsonb": ["NULL", "'{}'", "'[]'", "'null'", "'\"x\"'", "'1e400'", "'{\"n\": {\"n\": [1, null, \"🦀\"]}}'", "(repeat('[', 5000) || repeat(']', 5000))::jsonb"],
    "point": ["NULL", "point(0, 0)", "point(13.4, 52.5)", "point(181, -91)", "point('NaN', 'Infinity')"],
    "tsquery": ["NULL", "''", "'a'", "'!a & (b | c:*)'"],
    "regproc": ["NULL", "'now'", "'pg_catalog.sin'", "0", "4294967295"],
    "event_topics": ["NULL", "(SELECT t FROM event_topics t LIMIT 1)"],
    "anyelement": ["NULL::int", "1", "'x'::text"],
}
FUNCTIONS = """SELECT p.proname AS name, p.proretset AS set, ARRAY(SELECT t.typname FROM unnest(p.proargtypes) WITH ORDINALITY a(oid, n) JOIN pg_type t ON t.oid = a.oid ORDER BY n) AS types
                 FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prorettype <> 'trigger'::regtype ORDER BY 1"""
CALLS = 4000


def argument(choose, kind):
    """A value of the type, more often wrong than right."""
    if kind.startswith("_"):
        element = kind[1:]
        size = choose.choice([-1, 0, 1, 2, 5])
        if size < 0:
            return f"NULL::{element}[]"
        return f"ARRAY[{', '.join(choose.choice(POOL[element]) for _ in range(size))}]::{element}[]"
    value = choose.choice(POOL[kind])
    return value if kind in ("anyelement", "event_topics") else f"{value}::{kind}"


def test_no_argument_reaches_a_bug(db):
    db.run("INSERT INTO scenes (id, name, owner_did) VALUES ('00000000-0000-0000-0000-000000000001', 'a', 'did:a')")
    functions = db.run(FUNCTIONS)
    assert len(functions) > 40
    choose = random.Random(20261122)  # the same calls every time
    answers, refusals = 0, {}
    with db.connect(autocommit=False) as connection:
        connection.execute("SET pgsteward.user_id = 'did:a'")
        connection.commit()
        for n in range(CALLS):
            function = functions[n % len(functions)]
            call = f"SELECT * FROM {function.name}({', '.join(argument(choose, kind) for kind in function.types)})"
            try:
                connection.execute("SET LOCAL statement_timeout = '5s'")
                connection.execute(call)
                answers += 1
            except psycopg.Error as error:
                assert error.sqlstate, f"the connection is gone after: {call[:300]}"
                refusals.setdefault(error.sqlstate, call)
                assert not error.sqlstate.startswith(("XX", "57")), f"{error.sqlstate} {error.diag.message_primary}: {call[:300]}"
                assert "panick" not in str(error) and "src/" not in str(error), f"{error}: {call[:300]}"
            connection.rollback()
    assert answers > CALLS / 20 and len(refusals) > 3
    assert db.one("SELECT count(*) FROM scenes") == 1
