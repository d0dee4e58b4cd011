"""How fast items come in, and what an item costs: 8 sessions, so many items a statement and commit."""

from contextlib import nullcontext

from benchkit.programs import pgbench
from contestant import CHUNK, PAYLOAD, array
from devkit.layout import dev_dir
from stage import Run

SESSIONS = 8
KINDS = {"single": 1, "batch": 100, "bulk": CHUNK, "copy": CHUNK}
TITLES = {"single": "one item per commit", "batch": "100 items a statement", "bulk": f"{CHUNK:,} items a statement", "copy": f"COPY of {CHUNK:,} items"}


def statement(contestant, kind):
    """The script of a kind and how it is sent: the payload is a parameter, an array a part of the statement."""
    if kind == "single":
        return contestant.one(":payload::jsonb"), "prepared"
    if kind == "copy":
        path = dev_dir() / f"bench/copy-{contestant.family}.tsv"
        path.write_text((contestant.copy_line.format(payload=PAYLOAD) + "\n") * CHUNK)
        path.chmod(0o644)
        return contestant.copy.format(file=path), "simple"
    return contestant.many(array(KINDS[kind])), "simple"


def enqueue(stage, contestant, kind, sessions, beside=nullcontext):
    """One run in a fresh database."""
    with stage.fresh(contestant) as database:
        text, protocol = statement(contestant, kind)
        with beside(database):
            outcome, spent = stage.meter.measure(lambda: pgbench(
                stage.server, database.name, f"{text};\n", sessions, f"--time={stage.options.seconds}", f"--define=payload={PAYLOAD}", protocol=protocol))
    return Run.of(outcome.count * KINDS[kind], outcome.seconds, spent)


def run(stage):
    """Every family; ours also while a worker waits to be woken."""
    contestants = stage.families()
    for kind in KINDS:
        entries = {one.name: (one, nullcontext) for one in contestants if kind != "copy" or one.copy}
        entries |= {f"{one.name}, worker waiting": (one, one.waiting) for one in contestants if one.family == "ours"}
        runs = stage.turns(f"enqueue {kind}", entries, lambda entry, kind=kind: enqueue(stage, entry[0], kind, SESSIONS, entry[1]))
        stage.report(f"Enqueue: {TITLES[kind]}, {SESSIONS} sessions", runs, contestants[0].name, case="enqueue", kind=kind, sessions=SESSIONS)
